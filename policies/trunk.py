"""One pass over packed sequences: hidden states, log-probs and entropy at chosen positions.

The trainer needs no generation, so sequences are padded on the right: with a causal mask no
token ever sees the padding, and no attention mask is needed. When the lowest layers are frozen,
their output is the same in every epoch: it is taken once and the passes with gradient start at
the first trained layer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from instructrec.errors import PolicyError


class Trunk:
    """The transformer under a causal language model, cut at its first trained layer.

    Args:
        model: A causal language model of transformers, or a PEFT model around one.

    Raises:
        PolicyError: The model computes its logits in a way that this class does not reproduce.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        causal = base_causal_lm(model)
        self.base: Any = causal.base_model
        self.lm_head: Any = causal.get_output_embeddings()
        self.num_frozen = _leading_frozen_layers(self.base)
        """Layers below the cut; 0 means that passes start at the token ids."""
        self._upper = _layers_from(self.base, self.num_frozen) if self.num_frozen else None
        self._check(causal)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.base.config.get_text_config().hidden_size)

    def full(self, ids_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Runs all layers.

        Args:
            ids_BT: Token ids, padded on the right.

        Returns:
            Final hidden states (B, T, H), and those that enter the first trained layer
            (B, T, H), or None when nothing is frozen.
        """
        if not self.num_frozen:
            return self.base(input_ids=ids_BT, use_cache=False).last_hidden_state, None
        captured: list[Tensor] = []
        layer = self.base.layers[self.num_frozen]
        hook = layer.register_forward_pre_hook(
            lambda _module, args, kwargs: captured.append(
                args[0] if args else kwargs["hidden_states"]
            ),
            with_kwargs=True,
        )
        try:
            final = self.base(input_ids=ids_BT, use_cache=False).last_hidden_state
        finally:
            hook.remove()
        return final, captured[0]

    def upper(self, cut_BTH: Tensor) -> Tensor:
        """Runs the layers from the cut on, given the states that enter them: (B, T, H)."""
        assert self._upper is not None, "upper() needs a trunk with frozen layers"
        return self._upper(inputs_embeds=cut_BTH, use_cache=False).last_hidden_state

    def token_logprobs(
        self, hidden_NH: Tensor, tokens_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of the given tokens and entropies, from the states before those tokens.

        The output layer runs in float32 whatever the precision around it: rounded logits would
        be the largest part of the difference between sampler and trainer.

        Returns:
            ``log softmax(logits / temperature)`` at the tokens (N,), and the entropy of that
            distribution in nats (N,) without gradient.
        """
        with torch.autocast(hidden_NH.device.type, enabled=False):
            logits_NV = self.lm_head(hidden_NH.float())
        if temperature != 1.0:
            logits_NV = logits_NV / temperature
        all_logprobs_NV = logits_NV.log_softmax(-1)
        logprobs_N = all_logprobs_NV.gather(-1, tokens_N[:, None]).squeeze(-1)
        with torch.no_grad():
            entropy_N = -(all_logprobs_NV.exp() * all_logprobs_NV).sum(-1)
        return logprobs_N, entropy_N

    @torch.no_grad()
    def _check(self, causal: nn.Module) -> None:
        """Compares both ways through the trunk with the model's own logits on a few tokens."""
        device = self.lm_head.weight.device
        vocabulary = int(self.lm_head.weight.shape[0])
        ids_BT = torch.arange(14, device=device).reshape(2, 7) % vocabulary
        was_training = causal.training
        causal.eval()
        expected = causal(input_ids=ids_BT, use_cache=False).logits.float()
        final, cut = self.full(ids_BT)
        if not _close(self.lm_head(final).float(), expected):
            raise PolicyError(
                f"{type(causal).__name__} changes its logits after the output layer (a soft cap "
                "or a scale), which the trainer would ignore. Use a model whose logits are the "
                "output layer applied to the last hidden state, such as Llama or Qwen."
            )
        if cut is not None and not _close(self.lm_head(self.upper(cut)).float(), expected):
            self.num_frozen, self._upper = 0, None  # e.g. position embeddings added at the bottom
        causal.train(was_training)


def base_causal_lm(model: Any) -> Any:
    """The causal language model itself, or the one under a PEFT model."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _close(actual: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().max().clamp(min=1.0)
    return bool((actual - expected).abs().max() <= 1e-3 * scale)


def _leading_frozen_layers(base: Any) -> int:
    """Number of layers before the first trained weight; 0 when an embedding is trained."""
    layers = getattr(base, "layers", None)
    if not isinstance(layers, nn.ModuleList) or _trains(base.get_input_embeddings()):
        return 0
    trained = (i for i, layer in enumerate(layers) if _trains(layer))
    return next(trained, 0)  # nothing trains in the layers: there is no layer to cut before


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _layers_from(base: Any, first: int) -> nn.Module:
    """A second view of the same weights that holds only the layers from ``first`` on."""
    view = copy.copy(base)
    view._modules = dict(base._modules)
    view._modules["layers"] = nn.ModuleList(list(base.layers)[first:])
    return view


def pad_right(rows: Sequence[Tensor], value: float = 0.0) -> Tensor:
    """Stacks tensors of different length (first dimension) into (B, T, ...)."""
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)

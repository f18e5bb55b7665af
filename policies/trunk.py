"""One pass over packed sequences: hidden states, log-probs and entropy at chosen positions.

The trainer needs no generation, so sequences are padded on the right: with a causal mask no
token ever sees the padding, and no attention mask is needed. Two things save work without
changing a result beyond float noise. When the lowest layers are frozen, their output is the same
in every epoch: it is taken once and the passes with gradient start at the first trained layer.
And tokens that all sequences begin with (the chat template's opening) run once for all rows;
gradients reach them through the keys and values that the rows share.

Shape suffixes: B rows, L columns, P columns that all rows share, S = L - P columns of their own,
H hidden size, N chosen positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from instructrec.errors import PolicyError
from instructrec.policies.cpu_passes import quick_passes
from instructrec.policies.embedding import look_up, quick_embedding
from instructrec.policies.kv_cache import new_cache
from instructrec.policies.logits import chosen_logprobs, float32_logits
from instructrec.policies.tape import on_input


@dataclass(frozen=True)
class CutStates:
    """The states that enter the first trained layer."""

    own_BSH: Tensor
    """Those of each row's own columns."""
    shared_1PH: Tensor | None
    """Those of the columns that all rows share; None when there are none."""


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
        self.num_frozen = leading_frozen_layers(self.base)
        """Layers below the cut; 0 means that passes start at the token ids."""
        self._upper = _layers_from(self.base, self.num_frozen) if self.num_frozen else None
        self._embedding = quick_embedding(self.base)
        self.can_share = (
            causal.config._attn_implementation == "sdpa" and new_cache(causal.config)[1]
        )
        """Whether rows may share their first columns: plain attention over the whole context."""
        self._check(causal)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.base.config.get_text_config().hidden_size)

    def full(self, ids_BL: Tensor, shared: int = 0) -> tuple[Tensor, CutStates | None]:
        """Runs all layers.

        Args:
            ids_BL: Token ids, padded on the right.
            shared: First columns that are the same in all rows and run once (0 where
                ``can_share`` is False).

        Returns:
            Final hidden states of the other columns (B, S, H), and the states that enter the
            first trained layer, or None when nothing is frozen.
        """
        captured: list[Tensor] = []
        hook = None
        if self.num_frozen:
            hook = on_input(self.base.layers[self.num_frozen], captured.append)
        try:
            final_BSH = self._from_ids(ids_BL, shared)
        finally:
            if hook is not None:
                hook.remove()
        if not captured:
            return final_BSH, None
        return final_BSH, CutStates(captured[-1], captured[0] if shared else None)

    def _from_ids(self, ids_BL: Tensor, shared: int) -> Tensor:
        own, common = ids_BL[:, shared:], ids_BL[:1, :shared] if shared else None
        return states_from_ids(self.base, self._embedding, own, common)

    def upper(self, cut: CutStates) -> Tensor:
        """Runs the layers from the cut on, given the states that enter them: (B, S, H)."""
        assert self._upper is not None, "upper() needs a trunk with frozen layers"
        return _run(self._upper, "inputs_embeds", cut.own_BSH, cut.shared_1PH)

    def token_logprobs(
        self,
        hidden_NH: Tensor,
        tokens_N: Tensor,
        temperature: float,
        *,
        entropy_gradient: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs of the given tokens and entropies, from the states before those tokens.

        The output layer runs in float32 whatever the precision around it; see ``float32_logits``.

        Returns:
            ``log softmax(logits / temperature)`` at the tokens (N,), and the entropy of that
            distribution in nats (N,), with gradient only where ``entropy_gradient`` asks for it.
        """
        logits_NV = float32_logits(self.lm_head, hidden_NH)
        if temperature != 1.0:
            logits_NV = logits_NV.div_(temperature)
        if not (entropy_gradient and torch.is_grad_enabled()):
            return chosen_logprobs(logits_NV, tokens_N)
        all_logprobs_NV = logits_NV.log_softmax(-1)
        logprobs_N = all_logprobs_NV.gather(-1, tokens_N[:, None]).squeeze(-1)
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
        if not expected.isfinite().all():
            raise PolicyError(
                f"the logits of this {type(causal).__name__} are not finite: expected a model "
                "whose weights are numbers. Load an undamaged copy, or an earlier checkpoint of it."
            )
        final, cut = self.full(ids_BT)
        if not _close(self.lm_head(final).float(), expected):
            raise PolicyError(
                f"{type(causal).__name__} changes its logits after the output layer (a soft cap "
                "or a scale), which the trainer would ignore. Use a model whose logits are the "
                "output layer applied to the last hidden state, such as Llama or Qwen."
            )
        if cut is not None and not _close(self.lm_head(self.upper(cut)).float(), expected):
            self.num_frozen, self._upper = 0, None  # e.g. position embeddings added at the bottom
        if self.can_share:
            self.can_share = self._shares_correctly(vocabulary, causal)
        causal.train(was_training)

    def _shares_correctly(self, vocabulary: int, causal: nn.Module) -> bool:
        """Whether rows with a common beginning give the same states with and without sharing."""
        ids_BL = torch.arange(14, device=self.lm_head.weight.device).reshape(2, 7) % vocabulary
        ids_BL[1, :3] = ids_BL[0, :3]
        whole, _ = self.full(ids_BL)
        own, cut = self.full(ids_BL, shared=3)
        parts = [own] if cut is None else [own, self.upper(cut)]
        return all(_close(part, whole[:, 3:]) for part in parts)


def states_from_ids(
    base: Any, embedding: nn.Embedding | None, own_BS: Tensor, shared_1P: Tensor | None = None
) -> Tensor:
    """Runs a transformer; returns its last hidden states of the rows' own columns (B, S, H).

    Args:
        base: The transformer.
        embedding: Its ``quick_embedding``.
        own_BS: Token ids of the rows' own columns.
        shared_1P: Those of the columns before them, which all rows share.
    """
    if embedding is None or not torch.is_grad_enabled():
        return _run(base, "input_ids", own_BS, shared_1P)
    looked_up = None if shared_1P is None else look_up(embedding, shared_1P)
    return _run(base, "inputs_embeds", look_up(embedding, own_BS), looked_up)


def _run(base: Any, name: str, own: Tensor, shared: Tensor | None) -> Tensor:
    """Runs a transformer; returns its last hidden states of the rows' own columns (B, S, H).

    Args:
        base: The transformer.
        name: ``input_ids`` or ``inputs_embeds``.
        own: The rows' own columns.
        shared: The columns before them (one row), which all rows share.
    """
    with quick_passes(own.device):
        return _states(base, name, own, shared)


def _states(base: Any, name: str, own: Tensor, shared: Tensor | None) -> Tensor:
    if shared is None:
        return base(**{name: own}, use_cache=False).last_hidden_state
    before, columns = shared.shape[1], own.shape[1]
    cache = DynamicCache()
    base(**{name: shared}, past_key_values=cache, use_cache=True)
    layers: Sequence[Any] = cache.layers
    for layer in layers:
        if layer.is_initialized:  # a view that starts above layer 0 leaves the lower ones empty
            layer.keys = layer.keys.expand(own.shape[0], -1, -1, -1)
            layer.values = layer.values.expand(own.shape[0], -1, -1, -1)
    mask = torch.ones(columns, before + columns, dtype=torch.bool, device=own.device).tril(before)
    positions = torch.arange(before, before + columns, device=own.device)
    return base(
        **{name: own},
        attention_mask=mask[None, None].expand(own.shape[0], 1, -1, -1),
        position_ids=positions[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state


def base_causal_lm(model: Any) -> Any:
    """The causal language model itself, or the one under a PEFT model."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _close(actual: Tensor, expected: Tensor) -> bool:
    scale = expected.abs().max().clamp(min=1.0)
    return bool((actual - expected).abs().max() <= 1e-3 * scale)


def leading_frozen_layers(base: Any) -> int:
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
    view: Any = copy.copy(base)
    view._modules = dict(base._modules)
    view._modules["layers"] = nn.ModuleList(list(base.layers)[first:])
    types = getattr(base.config, "layer_types", None)
    if types is not None:  # models look up what a layer may see by its place
        view.config = copy.copy(base.config)
        view.config.layer_types = types[first:]
    return view


def pad_right(rows: Sequence[Tensor | list[int] | list[bool]], value: float = 0.0) -> Tensor:
    """Stacks tensors, or lists of numbers, of different length into (B, T, ...)."""
    tensors = [torch.as_tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

"""The reference policy of the KL penalty: always the policy as it was at update 0."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.trunk import CutStates, Trunk, base_causal_lm
from instructrec.rl.config import PPOConfig
from instructrec.rl.experience import Packed


class AdapterReference:
    """The policy with its adapters switched off: no second copy of the weights."""

    def __init__(self, trunk: Trunk, temperature: float) -> None:
        self.trunk = trunk
        self.temperature = temperature

    @torch.no_grad()
    def logprobs(self, sequences: Packed, cut: CutStates | None) -> Tensor:
        """See Reference.logprobs."""
        peft_model: Any = self.trunk.model
        with peft_model.disable_adapter():
            return _logprobs(self.trunk, sequences, cut, self.temperature)


class FrozenReference:
    """A frozen copy of the trained weights; frozen weights are shared with the policy.

    Args:
        model: The policy's model.
        temperature: Of the sampling.
        dtype: Precision of the passes. Matrices are copied in it: each pass would round them.
    """

    def __init__(self, model: nn.Module, temperature: float, dtype: torch.dtype) -> None:
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        rounded = set(_rounded(model))
        clone = copy.deepcopy(model, memo=shared)
        self.trunk = Trunk(clone)  # cut where the policy is cut, before everything is frozen
        self.temperature = temperature
        clone.eval().requires_grad_(False)
        for name, parameter in clone.named_parameters():
            if name in rounded:
                parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def logprobs(self, sequences: Packed, cut: CutStates | None) -> Tensor:
        """See Reference.logprobs."""
        return _logprobs(self.trunk, sequences, cut, self.temperature)


def _logprobs(trunk: Trunk, sequences: Packed, cut: CutStates | None, temperature: float) -> Tensor:
    """Log-probs of the action tokens, from the cut on where its states are known."""
    if cut is not None:
        final_BSH = trunk.upper(cut)
    else:
        final_BSH, _ = trunk.full(sequences.ids_BL, sequences.shared)
    return trunk.token_logprobs(sequences.states(final_BSH), sequences.tokens_N, temperature)[0]


def _rounded(model: nn.Module) -> Iterator[str]:
    """Names of the trained weights that a pass multiplies with in its own precision.

    Not those of the output layer, which computes in float32, and not the small ones of adapters.
    """
    if hasattr(model, "peft_config"):
        return
    head = base_causal_lm(model).get_output_embeddings()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            for name, parameter in module.named_parameters(prefix=path, recurse=False):
                if parameter.requires_grad:
                    yield name


def reference_bytes(policy: CausalLMPolicy) -> int:
    """Memory of the reference's own weights; 0 where it is the policy without its adapters."""
    if _switches_adapters_off(policy):
        return 0
    trained = {n: p for n, p in policy.model.named_parameters() if p.requires_grad}
    saved = policy.compute_dtype.itemsize - 4
    rounded = sum(trained[name].numel() for name in _rounded(policy.model))
    return sum(p.nbytes for p in trained.values()) + saved * rounded


def make_reference(
    policy: CausalLMPolicy, trunk: Trunk, config: PPOConfig
) -> AdapterReference | FrozenReference | None:
    """Adapters switched off where the policy starts with fresh ones, else a frozen copy.

    With adapters that were trained before, switching them off would give the policy of an earlier
    stage and not the one at update 0. Without a KL there is no reference.
    """
    if not config.kl_coef:
        return None
    if _switches_adapters_off(policy):
        return AdapterReference(trunk, config.temperature)
    return FrozenReference(trunk.model, config.temperature, policy.compute_dtype)


def _switches_adapters_off(policy: CausalLMPolicy) -> bool:
    return hasattr(policy.model, "peft_config") and not policy.continues_adapter

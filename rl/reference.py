"""The reference policy of the KL penalty: always the policy as it was at update 0."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.trunk import CutStates, Trunk
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
            final_BSH, _ = self.trunk.full(sequences.ids_BL, sequences.shared)
            return self.trunk.token_logprobs(
                sequences.states(final_BSH), sequences.tokens_N, self.temperature
            )[0]


class FrozenReference:
    """A frozen copy of the trained weights; frozen weights are shared with the policy."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        clone = copy.deepcopy(model, memo=shared)
        self.trunk = Trunk(clone)  # cut where the policy is cut, before everything is frozen
        self.temperature = temperature
        clone.eval().requires_grad_(False)

    @torch.no_grad()
    def logprobs(self, sequences: Packed, cut: CutStates | None) -> Tensor:
        """See Reference.logprobs."""
        if cut is not None:
            final_BSH = self.trunk.upper(cut)
        else:
            final_BSH, _ = self.trunk.full(sequences.ids_BL, sequences.shared)
        return self.trunk.token_logprobs(
            sequences.states(final_BSH), sequences.tokens_N, self.temperature
        )[0]


def make_reference(
    policy: CausalLMPolicy, trunk: Trunk, temperature: float
) -> AdapterReference | FrozenReference:
    """Adapters switched off where the policy starts with fresh ones, else a frozen copy.

    With adapters that were trained before, switching them off would give the policy of an earlier
    stage and not the one at update 0.
    """
    if hasattr(trunk.model, "peft_config") and not policy.continues_adapter:
        return AdapterReference(trunk, temperature)
    return FrozenReference(trunk.model, temperature)

"""Critics: a value head on the policy's own trunk, or a model of its own.

They live outside the policy module, so that saving, pushing, adapters and weight copies see a
pristine language model.
"""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from instructrec.errors import PolicyError
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.embedding import quick_embedding
from instructrec.policies.loading import load_source, reward_model_folder
from instructrec.policies.norms import quick_norms
from instructrec.policies.quiet import quiet_transformers
from instructrec.policies.trunk import base_causal_lm, states_from_ids


class ValueHead(nn.Module):
    """V(s) as a linear function of a last hidden state, in float32.

    It starts at zero: every value is then 0 instead of noise of the size of the hidden state,
    and explained variance starts at 0 instead of far below.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Returns V for each of N hidden states (N, H) as (N,) float32."""
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return self.linear(hidden_NH.float()).squeeze(-1)


class Critic(nn.Module, ABC):
    """Says what the states of a batch are worth."""

    @abstractmethod
    def forward(
        self, policy_states_NH: Tensor, ids_BL: Tensor, row_N: Tensor, state_N: Tensor
    ) -> Tensor:
        """Returns V (N,) of N states of a batch.

        Args:
            policy_states_NH: The policy's last hidden states there.
            ids_BL: Token ids of the sequences, padded on the right.
            row_N: Row of each state.
            state_N: Position of each state.
        """


class SharedCritic(Critic):
    """A value head on the policy's trunk: no forward pass of its own.

    Args:
        hidden_size: Width of the policy's hidden states.
        detach: Whether the value loss stops at the head and leaves the trunk to the policy.
    """

    def __init__(self, hidden_size: int, *, detach: bool) -> None:
        super().__init__()
        self.head = ValueHead(hidden_size)
        self.detach = detach

    def forward(
        self, policy_states_NH: Tensor, ids_BL: Tensor, row_N: Tensor, state_N: Tensor
    ) -> Tensor:
        """See Critic.forward."""
        return self.head(policy_states_NH.detach() if self.detach else policy_states_NH)


class SeparateCritic(Critic):
    """A transformer of its own with a value head.

    Args:
        backbone: Transformer without output layer.
        head: Value head on its last hidden states.
    """

    def __init__(self, backbone: nn.Module, head: ValueHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        quick_norms(backbone)

    @functools.cached_property  # where the backbone lives by the first pass is what counts
    def _embedding(self) -> nn.Embedding | None:
        return quick_embedding(self.backbone)

    def forward(
        self, policy_states_NH: Tensor, ids_BL: Tensor, row_N: Tensor, state_N: Tensor
    ) -> Tensor:
        """See Critic.forward."""
        hidden_BLH = states_from_ids(self.backbone, self._embedding, ids_BL)
        return self.head(hidden_BLH[row_N, state_N])


class NoCritic(Critic):
    """Says that every state is worth 0, and has nothing to learn."""

    def forward(
        self, policy_states_NH: Tensor, ids_BL: Tensor, row_N: Tensor, state_N: Tensor
    ) -> Tensor:
        """See Critic.forward."""
        return torch.zeros(len(row_N), device=ids_BL.device)


def make_critic(
    policy: CausalLMPolicy, kind: str, *, detach: bool, source: str | None = None
) -> Critic:
    """Makes a critic on the policy's device.

    Args:
        policy: The policy as it starts.
        kind: ``shared`` or ``separate``.
        detach: See SharedCritic.
        source: Model that a separate critic starts from. The score layer of a reward model (a
            sequence classifier with one label, or the run folder that trained one) becomes the
            value head; with any other model the head starts at zero. None copies the policy;
            weights that are frozen there are shared.

    Raises:
        PolicyError: The model cannot be loaded, or does not read the policy's token ids.
    """
    hidden_size = int(policy.model.config.get_text_config().hidden_size)
    if kind == "shared":
        return SharedCritic(hidden_size, detach=detach).to(policy.device)
    if source is None:
        frozen = {id(p): p for p in policy.model.parameters() if not p.requires_grad}
        clone = copy.deepcopy(base_causal_lm(policy.model).base_model, memo=frozen)
        return SeparateCritic(clone, ValueHead(hidden_size)).to(policy.device)
    critic = _load_critic(source)
    ours = int(policy.model.config.get_text_config().vocab_size)
    backbone: Any = critic.backbone
    theirs = int(backbone.config.get_text_config().vocab_size)
    if theirs < ours:
        raise PolicyError(
            f"the critic {source!r} has a vocabulary of {theirs} tokens and the policy one of "
            f"{ours}: a critic reads the policy's token ids. Take a model of the same family."
        )
    return critic.to(policy.device)


def _load_critic(source: str) -> SeparateCritic:
    """Loads a reward model with its score layer, or another model with a fresh head."""
    source = reward_model_folder(source)
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            names: Any = getattr(config, "architectures", None) or [""]
            if not names[0].endswith("ForSequenceClassification") or config.num_labels != 1:
                raise _NoRewardModel
            model = AutoModelForSequenceClassification.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
    except (_NoRewardModel, OSError, ValueError):
        backbone = load_source(source).model.base_model
        return SeparateCritic(backbone, ValueHead(backbone.config.get_text_config().hidden_size))
    head = ValueHead(config.get_text_config().hidden_size)
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear) or score.weight.shape != head.linear.weight.shape:
        raise PolicyError(
            f"the reward model {source!r} ({names[0]}) has no layer `score` from "
            f"{head.linear.in_features} to 1: expected a causal language model's sequence "
            "classifier. Take such a reward model, or ppo.critic_model = null."
        )
    with torch.no_grad():
        head.linear.weight.copy_(score.weight)
        if score.bias is not None:
            head.linear.bias.copy_(score.bias)
    return SeparateCritic(model.base_model, head)


class _NoRewardModel(Exception):
    """The source is no sequence classifier with one label."""

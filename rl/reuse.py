"""Whether the trainer takes over what decoding has computed, and how far that is from its own.

Log-probs, values and the states below the first trained layer are those of the rollout engine, so
the trainer's pass over the rollout is spared. The first minibatch of an update runs before any
step, so it tells what the trainer itself would have said. A minibatch may hold few tokens, so the
judgement goes by a mean over recent updates, as many of them as ``FEWEST`` tokens need; an engine
beyond ``LIMIT`` is not relied on again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from instructrec import processes
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.trunk import Trunk
from instructrec.rl.drift import Drift, measure_drift
from instructrec.rl.experience import Experience

LIMIT = 0.02
"""Mean difference of log-probs up to which decoding stands in for the trainer (nats)."""
MEMORY = 0.8
"""What the tokens of an update still weigh in the next one's judgement, while enough are left."""
FEWEST = 200
"""Tokens behind a judgement, in weighted number; fewer say too little. Minibatches of fewer tokens
are added up until there are as many."""


class DecodingReuse:
    """Keeps the states of decoding while they agree with the trainer's.

    Args:
        policy: Who answers.
        trunk: Its transformer, as the trainer runs it.
        wanted: Whether to begin with it.
    """

    def __init__(self, policy: CausalLMPolicy, trunk: Trunk, *, wanted: bool) -> None:
        self._policy = policy
        self._trunk = trunk
        self.trusted = wanted
        """Whether the next rollout keeps states."""
        self.used = False
        """Whether the update at hand relies on what decoding kept."""
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._last = (0.0, 0)
        self._difference = 0.0
        self._tokens = 0.0

    def keeping(self) -> AbstractContextManager[Any]:
        """The context to collect a rollout in."""
        if not self.trusted:
            return nullcontext()
        return self._policy.keeping_states(self._trunk.num_frozen)

    def begin(self, experience: Experience) -> None:
        """Notes whether this update relies on what decoding kept."""
        self.used, self._pairs, self._last = bool(experience.kept), [], (0.0, 0)

    def forget(self) -> None:
        """Drops what ``compare`` took down: its minibatch is computed again."""
        self._pairs = []

    def compare(self, experience: Experience, rows: Sequence[int], logprobs_N: Tensor) -> None:
        """Takes down the trainer's log-probs of some episodes before the first step."""
        if self.used:
            sampler_N = experience.sampler_logprobs(rows)
            self._pairs.append((sampler_N, logprobs_N.detach().float()))

    def measure(self) -> Drift | None:
        """How far decoding was from what ``compare`` took down, in all processes.

        Returns:
            The drift; None where nothing was compared.
        """
        own = [(sampler_N.cpu(), trainer_N.cpu()) for sampler_N, trainer_N in self._pairs]
        pairs = [pair for of_process in processes.gather(own) for pair in of_process]
        if not pairs:
            return None
        sampler_N, trainer_N = (torch.cat(side) for side in zip(*pairs, strict=True))
        drift = measure_drift(sampler_N, trainer_N, torch.ones_like(sampler_N, dtype=torch.bool))
        self._last = drift.mean, drift.tokens
        return drift

    def end(self) -> dict[str, float]:
        """Judges the update by what was measured last; returns its metrics."""
        self._judge(*self._last)
        return {"rollout/reused": float(self.used)}

    def _judge(self, difference: float, tokens: int) -> None:
        # What is known is forgotten only as far as enough of it is left to judge by.
        weight = MEMORY if MEMORY * self._tokens + tokens >= FEWEST else 1.0
        self._difference = weight * self._difference + difference * tokens
        self._tokens = weight * self._tokens + tokens
        if tokens and self._tokens >= FEWEST:
            self.trusted = self._difference <= LIMIT * self._tokens

    def state_dict(self) -> dict[str, Any]:
        """Whether the engine is still trusted, and what that goes by."""
        return {
            "trusted": self.trusted,
            "difference": self._difference,
            "tokens": self._tokens,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.trusted = state["trusted"]
        self._difference, self._tokens = state["difference"], state["tokens"]

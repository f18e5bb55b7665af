"""Playing episodes turn by turn, token in, token out.

A conversation is one growing list of token ids: what the policy sampled stays as sampled, and what
the environment says is appended behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from instructrec.envs.vector import InstructionVectorEnv
from instructrec.policies.base import Prompt, Responses, StopReason, TokenPolicy
from instructrec.policies.config import Sampling
from instructrec.policies.tape import TokenStates
from instructrec.rewards.base import RewardBatch


@dataclass
class Episode:
    """An episode while it is played; ids, mask and logprobs are aligned."""

    prompt_ids: list[int] = field(default_factory=list)
    """Token ids before the first answer."""
    ids: list[int] = field(default_factory=list)
    """Token ids behind the prompt: answers as sampled, and messages between them."""
    mask: list[bool] = field(default_factory=list)
    """True where the policy produced the token."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probs under the distribution that sampled; 0.0 where the environment wrote."""
    text: str = ""
    """The last answer."""
    answer_ids: list[int] = field(default_factory=list)
    """Its token ids."""
    ends: list[int] = field(default_factory=list)
    """Index of the last token of each answer."""
    stop_reasons: list[StopReason] = field(default_factory=list)
    """Why each answer ended."""
    rewards: list[float] = field(default_factory=list)
    """What each answer earned; NaN for an answer without a reward."""
    states: TokenStates | None = None
    """Hidden states of the whole conversation but its last token, where the policy keeps them."""
    unfinished: bool = False
    """Whether the episode was stopped although it could have gone on."""

    @property
    def next_prompt(self) -> list[int]:
        """The whole conversation so far."""
        return self.prompt_ids + self.ids

    def answer(
        self,
        text: str,
        prompt_ids: list[int],
        ids: list[int],
        logprobs: list[float],
        stop_reason: StopReason,
        states: TokenStates | None,
    ) -> None:
        """Appends what the policy sampled."""
        if not self.ends:
            self.prompt_ids = prompt_ids
        self.states = states
        self.text, self.answer_ids = text, ids
        self.ids = self.ids + ids
        self.mask = self.mask + [True] * len(ids)
        self.logprobs = self.logprobs + logprobs
        self.ends.append(len(self.ids) - 1)
        self.stop_reasons.append(stop_reason)

    def listen(self, policy: TokenPolicy, message: str, max_new_tokens: int) -> bool:
        """Appends what the environment says; False when that leaves no room for an answer."""
        ids = policy.follow_up(self.answer_ids, message)
        if len(self.next_prompt) + len(ids) + max_new_tokens > policy.max_length:
            self.unfinished = True
            return False
        self.ids = self.ids + ids
        self.mask = self.mask + [False] * len(ids)
        self.logprobs = self.logprobs + [0.0] * len(ids)
        return True

    def paid(self, penalty: float) -> list[tuple[int, float]]:
        """Place and reward of each turn; an answer that was cut pays the penalty."""
        return [
            (end, reward - penalty * (reason is StopReason.LENGTH))
            for end, reward, reason in zip(self.ends, self.rewards, self.stop_reasons, strict=True)
        ]


def play(
    policy: TokenPolicy, env: InstructionVectorEnv, prompts: Sequence[Prompt], sampling: Sampling
) -> tuple[list[Episode], RewardBatch]:
    """Plays the episodes that the environment shows to their end.

    Args:
        policy: Who answers.
        env: Vector environment after a reset, autoreset DISABLED.
        prompts: The B instructions that it shows.
        sampling: How answers are drawn.

    Returns:
        B episodes, and the rewards of their last answers.
    """
    episodes = [Episode() for _ in prompts]
    going = list(range(len(prompts)))
    batches: list[tuple[list[int], RewardBatch]] = []
    responses = policy.respond(prompts, sampling=sampling)
    while going:
        for i, *answer in zip(going, *_fields_of(responses), strict=True):
            episodes[i].answer(*answer)
        messages, batch = _step(env, episodes, going)
        batches.append((going, batch))
        going = [
            i
            for i, message in messages.items()
            if episodes[i].listen(policy, message, sampling.max_new_tokens)
        ]
        if going:
            responses = policy.respond_ids([episodes[i].next_prompt for i in going], sampling)
    return episodes, _last_rewards(batches, len(prompts))


def _fields_of(responses: Responses) -> tuple[Sequence[Any], ...]:
    """The responses field by field, in the order of ``Episode.answer``."""
    ids, logprobs, reasons = responses.response_ids, responses.logprobs, responses.stop_reasons
    states = responses.states or [None] * len(responses)
    return responses.texts, responses.prompt_ids, ids, logprobs, reasons, states


def _step(
    env: InstructionVectorEnv, episodes: list[Episode], going: list[int]
) -> tuple[dict[int, str], RewardBatch]:
    """Has the last answers of some episodes scored with one call.

    Returns:
        The message to each episode that goes on, and the rewards of the ``going`` ones.
    """
    active = np.zeros(len(episodes), dtype=np.bool_)
    active[going] = True
    is_active = active.tolist()
    texts = [e.text if on else "" for e, on in zip(episodes, is_active, strict=True)]
    ids = [e.answer_ids if on else [] for e, on in zip(episodes, is_active, strict=True)]
    observations, rewards, terminated, truncated, _ = env.step(
        texts, {"completion_ids": ids}, active
    )
    batch = env.last_batch
    assert batch is not None, "a step always scores"
    messages = {}
    for i in going:
        episodes[i].rewards.append(float(rewards[i]))
        episodes[i].unfinished = bool(truncated[i]) and not terminated[i]
        if not (terminated[i] or truncated[i] or np.isnan(rewards[i])):
            messages[i] = observations[i]
    return messages, batch


def _last_rewards(batches: list[tuple[list[int], RewardBatch]], size: int) -> RewardBatch:
    """Joins the batches of all turns: of each episode its last answer; times are added up.

    Args:
        batches: Of each turn, the episodes and their rewards in that order.
        size: B, the number of episodes.
    """
    first = batches[0][1]
    if len(batches) == 1:
        return first
    last = {i: (batch, row) for going, batch in batches for row, i in enumerate(going)}
    order = [last[i] for i in range(size)]
    return RewardBatch(
        total=np.array([batch.total[row] for batch, row in order]),
        parts={k: np.array([batch.parts[k][row] for batch, row in order]) for k in first.parts},
        status={k: [batch.status[k][row] for batch, row in order] for k in first.status},
        messages={k: [batch.messages[k][row] for batch, row in order] for k in first.messages},
        seconds={k: sum(batch.seconds[k] for _, batch in batches) for k in first.seconds},
        normalised=np.array([batch.earned[row] for batch, row in order])
        if first.normalised is not None
        else None,
        cached={k: [batch.cached[k][row] for batch, row in order] for k in first.cached},
    )

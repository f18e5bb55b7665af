"""Playing episodes turn by turn, in training and in evaluation alike.

With a policy of tokens a conversation is one growing list of token ids, token in, token out: what
the policy sampled stays as sampled, and what the environment says is appended behind it. Any other
policy (a scripted one, say) sees the conversation as messages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from instructrec.crash_points import crash_point
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import NonFiniteLogitsError, PolicyError
from instructrec.policies.base import Message, Policy, Prompt, Responses, StopReason, TokenPolicy
from instructrec.policies.config import Sampling
from instructrec.rewards.base import RewardBatch

if TYPE_CHECKING:
    from instructrec.policies.tape import TokenStates


@dataclass
class Turn:
    """An answer, what it earned, and what the environment said then."""

    text: str
    """The answer."""
    ids: list[int]
    """Its token ids as sampled; empty for a policy without tokens."""
    logprobs: list[float]
    """Log-probs of these under the distribution that sampled."""
    stop_reason: StopReason | None
    """Why it ended; None where the policy does not say."""
    score: float = float("nan")
    """Reward of the answer itself; NaN without one."""
    reward: float = float("nan")
    """What the environment paid for the turn; NaN for an answer without a reward."""
    message: str | None = None
    """What the environment said to it; None where the episode ended."""


@dataclass
class Episode:
    """An episode while it is played; ids, mask and logprobs are aligned."""

    prompt: Prompt
    """The instruction."""
    turns: list[Turn] = field(default_factory=list)
    """The answers so far."""
    prompt_ids: list[int] = field(default_factory=list)
    """Token ids before the first answer."""
    ids: list[int] = field(default_factory=list)
    """Token ids behind the prompt: answers as sampled, and messages between them."""
    mask: list[bool] = field(default_factory=list)
    """True where the policy produced the token."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probs under the distribution that sampled; 0.0 where the environment wrote."""
    ends: list[int] = field(default_factory=list)
    """Index of the last token of each answer."""
    states: TokenStates | None = None
    """Hidden states of the whole conversation but its last token, where the policy keeps them."""
    unfinished: bool = False
    """Whether the episode was stopped although it could have gone on."""
    counts: dict[str, float] = field(default_factory=dict)
    """What the environment counted in the episode, such as calls of tools."""

    @property
    def last(self) -> Turn:
        """The last answer."""
        return self.turns[-1]

    @property
    def next_ids(self) -> list[int]:
        """The whole conversation so far as tokens."""
        return self.prompt_ids + self.ids

    @property
    def conversation(self) -> Prompt:
        """The conversation so far: the instruction as it is, or messages that begin with it."""
        if not self.turns:
            return self.prompt
        said: list[Message] = (
            [{"role": "user", "content": self.prompt}]
            if isinstance(self.prompt, str)
            else list(self.prompt)
        )
        for turn in self.turns:
            said.append({"role": "assistant", "content": turn.text})
            said.append({"role": "user", "content": turn.message or ""})
        return said

    @property
    def rewards(self) -> list[float]:
        """What each turn earned; NaN for an answer without a reward."""
        return [turn.reward for turn in self.turns]

    @property
    def stop_reasons(self) -> list[StopReason | None]:
        """Why each answer ended."""
        return [turn.stop_reason for turn in self.turns]

    def answer(self, turn: Turn, prompt_ids: list[int]) -> None:
        """Appends what the policy said; ``prompt_ids`` is what it was given."""
        if not self.turns:
            self.prompt_ids = prompt_ids
        self.turns.append(turn)
        self.ids = self.ids + turn.ids
        self.mask = self.mask + [True] * len(turn.ids)
        self.logprobs = self.logprobs + turn.logprobs
        self.ends.append(len(self.ids) - 1)

    def listen(self, policy: TokenPolicy, max_new_tokens: int) -> bool:
        """Appends what the environment said; False when that leaves no room for an answer."""
        assert self.last.message is not None, "the environment ended the episode"
        ids = policy.follow_up(self.last.ids, self.last.message)
        if len(self.next_ids) + len(ids) + max_new_tokens > policy.max_length:
            self.unfinished = True
            return False
        self.ids = self.ids + ids
        self.mask = self.mask + [False] * len(ids)
        self.logprobs = self.logprobs + [0.0] * len(ids)
        return True

    def paid(self, penalty: float) -> list[tuple[int, float]]:
        """Place and reward of each turn; an answer that was cut pays the penalty."""
        return [
            (end, turn.reward - penalty * (turn.stop_reason is StopReason.LENGTH))
            for end, turn in zip(self.ends, self.turns, strict=True)
        ]


class Played(NamedTuple):
    """Episodes that were played to their end."""

    episodes: list[Episode]
    """One for each instruction."""
    rewards: RewardBatch
    """The rewards of their last answers."""
    waited_s: float
    """Seconds that the answers waited for the environment, which asks the rewards."""


def play(policy: Policy, env: InstructionVectorEnv, sampling: Sampling, chunks: int = 1) -> Played:
    """Plays the episodes that the environment shows to their end.

    Args:
        policy: Who answers. One with ``respond_ids`` (a `TokenPolicy`) goes on behind its tokens.
        env: Vector environment of B copies after a reset, autoreset DISABLED.
        sampling: How answers are drawn.
        chunks: Parts of equal size that are answered one after the other. While the policy answers
            one, the environment scores the one before it, in a thread; so with several chunks
            rewards are asked for parts of a batch.

    Raises:
        PolicyError: The policy gave another number of answers than it was asked for, a prompt
            does not fit into its window, or its chat template forbids turns.
    """
    tokens = cast(TokenPolicy, policy) if hasattr(policy, "respond_ids") else None
    episodes = [Episode(item.prompt) for item in env.instructions]
    going = list(range(len(episodes)))
    batches: list[tuple[list[int], RewardBatch]] = []
    waited = 0.0
    with ThreadPoolExecutor(1, thread_name_prefix="scoring") as scorer:
        while going:
            steps: list[tuple[list[int], Callable[[], RewardBatch]]] = []
            is_first = not batches
            for part in _parts(going, chunks):
                asked = [episodes[i] for i in part]
                try:
                    if tokens is not None and not is_first:
                        ids = [episode.next_ids for episode in asked]
                        responses = tokens.respond_ids(ids, sampling)
                    else:
                        prompts = [episode.conversation for episode in asked]
                        responses = policy.respond(prompts, _columns(env, part), sampling)
                except NonFiniteLogitsError as error:
                    raise _named(error, env, part) from error
                _record(policy, asked, responses)
                crash_point("rollout.answered")
                step = partial(_step, env, episodes, part)
                steps.append((part, scorer.submit(step).result if chunks > 1 else step))
            start = time.perf_counter()
            batches += [(part, step()) for part, step in steps]
            waited += time.perf_counter() - start
            going = [i for i in going if episodes[i].last.message is not None]
            if tokens is not None:
                going = [i for i in going if episodes[i].listen(tokens, sampling.max_new_tokens)]
    return Played(episodes, _last_rewards(batches, len(episodes)), waited)


def _named(
    error: NonFiniteLogitsError, env: InstructionVectorEnv, part: Sequence[int]
) -> NonFiniteLogitsError:
    """The same error with the instruction that it happened on."""
    if error.row is None:
        return error
    item = env.instructions[part[error.row]]
    return NonFiniteLogitsError(f"instruction {item.id!r}: {error}", error.row)


def _parts(going: Sequence[int], chunks: int) -> list[list[int]]:
    """Cuts the episodes that go on into parts of about one size."""
    cuts = np.array_split(np.asarray(going), min(chunks, len(going)))
    return [cut.tolist() for cut in cuts]


def _columns(env: InstructionVectorEnv, going: Sequence[int]) -> dict[str, list[object]]:
    """Columns of the instructions of some episodes."""
    items = env.instructions
    return {name: [items[i].columns.get(name) for i in going] for name in env.task.columns}


def _record(policy: Policy, asked: Sequence[Episode], responses: Responses) -> None:
    """Appends answers to their episodes."""
    if len(responses) != len(asked):
        raise PolicyError(
            f"policy {policy.name!r} gave {len(responses)} responses to {len(asked)} prompts: "
            "respond() must answer each prompt once."
        )
    for row, episode in enumerate(asked):
        turn = Turn(
            text=responses.texts[row],
            ids=responses.response_ids[row] if responses.response_ids else [],
            logprobs=responses.logprobs[row] if responses.logprobs else [],
            stop_reason=responses.stop_reasons[row] if responses.stop_reasons else None,
        )
        episode.answer(turn, responses.prompt_ids[row] if responses.prompt_ids else [])
        episode.states = responses.states[row] if responses.states else None


def _step(env: InstructionVectorEnv, episodes: list[Episode], going: list[int]) -> RewardBatch:
    """Has the last answers of some episodes scored with one call; returns their rewards."""
    active = np.zeros(len(episodes), dtype=np.bool_)
    active[going] = True
    is_active = active.tolist()
    texts = [e.last.text if on else "" for e, on in zip(episodes, is_active, strict=True)]
    ids = [e.last.ids if on else [] for e, on in zip(episodes, is_active, strict=True)]
    extras = {"completion_ids": ids} if any(ids) else None
    observations, rewards, terminated, truncated, info = env.step(texts, extras, active)
    crash_point("rollout.scored")
    batch = env.last_batch
    assert batch is not None, "a step always scores"
    for row, i in enumerate(going):
        turn = episodes[i].last
        turn.score, turn.reward = float(batch.total[row]), float(rewards[i])
        episodes[i].unfinished = bool(truncated[i]) and not terminated[i]
        episodes[i].counts = {name: float(info[name][i]) for name in env.counted}
        if not (terminated[i] or truncated[i] or np.isnan(rewards[i])):
            turn.message = _said(observations[i])
    return batch


def _said(observation: str | Sequence[Message]) -> str:
    """What the environment said last, where it shows that alone or the whole conversation."""
    return observation if isinstance(observation, str) else observation[-1]["content"]


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
    seconds = {k: sum(batch.seconds[k] for _, batch in batches) for k in first.seconds}
    return first.with_rows([last[i] for i in range(size)], seconds)

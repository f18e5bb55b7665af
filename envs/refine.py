"""Several tries at one instruction: the policy is told what its answer earned and tries again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from instructrec.envs.episode import TaskLike
from instructrec.envs.instruction import InstructionEnv
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import ConfigError, unknown_name
from instructrec.rewards.combine import CombinedReward

TurnReward = Literal["improvement", "last"]
"""What a turn earns; see `RefineRules.turn_reward`."""

TRY_AGAIN = "Your answer was: {answer}\nIts reward is {reward:.2f} of {full_marks:.2f}. Try again."
"""What the environment says after an answer without full marks."""


@dataclass(frozen=True)
class Attempt:
    """Where an episode stands."""

    turn: int = 0
    """Answers given so far."""
    score: float = 0.0
    """Reward of the last answer; 0 before the first."""


@dataclass(frozen=True)
class RefineRules:
    """When an episode goes on, what is said then, and what a turn earns.

    Raises:
        ConfigError: A setting is out of its range.
    """

    full_marks: float
    """An answer with this reward, or more, ends the episode."""
    max_chars: int
    """Longest message; the answer that it repeats is cut to fit."""
    max_turns: int = 3
    """Answers after which the episode ends in any case."""
    turn_reward: TurnReward = "improvement"
    """``improvement``: what an answer earns beyond the one before it (the first: all of it).
    ``last``: nothing, but for the last answer. Both add up to the reward of the last answer.
    (Were every answer paid in full, failing first would pay.)"""

    def __post_init__(self) -> None:
        if isinstance(self.max_turns, bool) or not isinstance(self.max_turns, int):
            raise ConfigError(f"max_turns = {self.max_turns!r}: expected an integer >= 1.")
        if self.max_turns < 1:
            raise ConfigError(f"max_turns = {self.max_turns}: expected 1 or more.")
        is_number = isinstance(self.full_marks, int | float)
        if not is_number or not math.isfinite(self.full_marks):
            raise ConfigError(f"full_marks = {self.full_marks!r}: expected a finite number.")
        if self.turn_reward not in get_args(TurnReward):
            known = get_args(TurnReward)
            raise ConfigError(unknown_name("turn_reward", str(self.turn_reward), known))

    def judge(
        self, before: Attempt, answer: str, score: float
    ) -> tuple[float, str | None, Attempt]:
        """Rewards an answer and decides whether there is another try.

        Args:
            before: Where the episode stood.
            answer: The answer.
            score: Its reward; NaN (failed, or not applicable) ends the episode.

        Returns:
            The turn's reward, the message that asks for another try (None: the episode is over),
            and where the episode stands now.
        """
        after = Attempt(before.turn + 1, score)
        # A sum of weights and scores may end a rounding below the sum of the weights.
        good = score >= self.full_marks or math.isclose(score, self.full_marks, rel_tol=1e-9)
        over = good or math.isnan(score) or after.turn == self.max_turns
        if self.turn_reward == "improvement":
            reward = score - before.score
        else:
            reward = score if over else 0.0
        return reward, None if over else self.message(answer, score), after

    def message(self, answer: str, score: float) -> str:
        """What is said after an answer without full marks."""
        numbers = {"reward": score, "full_marks": self.full_marks}
        room = max(self.max_chars - len(TRY_AGAIN.format(answer="", **numbers)), 0)
        return TRY_AGAIN.format(answer=answer[:room], **numbers)[: self.max_chars]


def _full_marks(given: float | None, reward: CombinedReward) -> float:
    """The most that rewards in [0, 1] add up to, unless another number is given."""
    if given is None and reward.changes:
        raise ConfigError(
            f"the weights of {reward.describe()} change with the update, and full marks with them: "
            "expected constant weights for answers that may be refined, or full_marks."
        )
    if given is None:
        return sum(max(weight, 0.0) for weight in reward.weights.values())
    return given


class RefineEnv(InstructionEnv):
    """An episode is one instruction and up to ``max_turns`` answers to it.

    The first observation is the instruction. An answer with full marks ends the episode; after
    any other the observation is a message with the answer and its reward that asks for another
    try (`TRY_AGAIN`). The turn limit is part of the task, so that an episode always ends
    ``terminated``. ``info`` holds, beside what `InstructionEnv` tells of each answer, ``turn``
    (answers given so far) and ``score`` (the reward of this answer).

    Args:
        task: As for `InstructionEnv`.
        max_turns: Most answers in one episode.
        full_marks: Reward that needs no other try; None is the sum of the positive weights, the
            most that rewards in [0, 1] add up to.
        turn_reward: ``improvement`` (default): an answer earns its reward less that of the answer
            before it. ``last``: only the last answer earns its reward. The return is the reward
            of the last answer in both.
        options: split, reward, task_options, max_chars and render_mode, as for `InstructionEnv`.

    Raises:
        ConfigError: A setting is out of its range, or one that `InstructionEnv` refuses.
        DataError: The task's data cannot be used or lacks a column that a reward needs.
    """

    def __init__(
        self,
        task: TaskLike = "closed_answers",
        *,
        max_turns: int = 3,
        full_marks: float | None = None,
        turn_reward: TurnReward = "improvement",
        **options: Any,
    ) -> None:
        super().__init__(task, **options)
        marks = _full_marks(full_marks, self.reward)
        self.rules = RefineRules(marks, self._max_chars, max_turns, turn_reward)
        self._attempt = Attempt()

    def begin(self) -> None:
        """Forgets the answers of the episode before."""
        self._attempt = Attempt()

    def judge(self, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Decides whether there is another try; see `RefineRules.judge`."""
        reward, message, self._attempt = self.rules.judge(self._attempt, text, total)
        return reward, message, {"turn": self._attempt.turn, "score": total}


class RefineVectorEnv(InstructionVectorEnv):
    """B copies of `RefineEnv` that share the task and score their answers together.

    Copy i behaves as a `RefineEnv` seeded with ``seed + i``; each step scores the answers of all
    copies that are stepped with one call. A failed or missing reward ends the episode with NaN.
    With DISABLED, ``step(..., active=mask)`` steps only the copies whose episodes go on.

    Args:
        num_envs: B, the number of copies.
        task: As for `RefineEnv`; likewise max_turns, full_marks and turn_reward.
        max_turns: See there.
        full_marks: See there.
        turn_reward: See there.
        options: split, reward, task_options, max_chars and autoreset_mode, as for
            `InstructionVectorEnv`.

    Raises:
        ConfigError: A setting is out of its range, or one that `InstructionVectorEnv` refuses.
        DataError: The task's data cannot be used or lacks a column that a reward needs.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: TaskLike = "closed_answers",
        max_turns: int = 3,
        full_marks: float | None = None,
        turn_reward: TurnReward = "improvement",
        **options: Any,
    ) -> None:
        super().__init__(num_envs, task=task, **options)
        marks = _full_marks(full_marks, self.reward)
        self.rules = RefineRules(marks, self._max_chars, max_turns, turn_reward)
        self.max_turns = max_turns
        self._attempts = [Attempt()] * num_envs

    def begin(self, i: int) -> None:
        """Forgets the answers of the episode before."""
        self._attempts[i] = Attempt()

    def judge(self, i: int, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Decides whether there is another try; see `RefineRules.judge`."""
        reward, message, self._attempts[i] = self.rules.judge(self._attempts[i], text, total)
        return reward, message, {"turn": self._attempts[i].turn, "score": total}

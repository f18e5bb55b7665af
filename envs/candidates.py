"""Choose among candidate responses: the environments for agents whose actions are numbers."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Discrete
from gymnasium.vector.utils import batch_space

from instructrec.envs.candidate_source import CandidateSource
from instructrec.envs.episode import TaskLike
from instructrec.envs.instruction import InstructionEnv
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import DataError


class CandidatesEnv(InstructionEnv):
    """An episode is one instruction and the choice of one of K responses to it.

    The observation is the instruction with its numbered candidates, as text; an action is the
    number of one, from 0. The chosen text is rewarded like any response and told in ``info`` as
    ``response``. `EmbeddingObservation` makes numbers of the text.

    Args:
        task: As for `InstructionEnv`.
        num_candidates: K, at least 2.
        candidates: Column with a list of K texts or more, of which the first K count. None draws
            them from the task: the reference, and K - 1 references of other instructions.
        reference: Column with the expected answer, for candidates that are drawn.
        shuffle: Whether the order is drawn, from ``candidate_seed`` and the index of the
            instruction; else that of the column.
        candidate_seed: Decides what is drawn; the same candidates for the same index, always.
        options: split, reward, task_options, max_chars and render_mode, as for `InstructionEnv`.

    Raises:
        ConfigError: K < 2, drawn candidates without shuffling (the reference would always be
            number 0), or a setting that `InstructionEnv` refuses.
        DataError: The task lacks the column, or has too few candidates or different references;
            also by `reset`, where that is so of one instruction.
    """

    def __init__(
        self,
        task: TaskLike = "closed_answers",
        *,
        num_candidates: int = 4,
        candidates: str | None = None,
        reference: str = "reference",
        shuffle: bool = True,
        candidate_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(task, **options)
        self.source = CandidateSource(
            self.task,
            num_candidates,
            column=candidates,
            reference=reference,
            shuffle=shuffle,
            seed=candidate_seed,
        )
        self.action_space = Discrete(num_candidates)  # type: ignore[assignment]
        self._candidates: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The instruction, then its K candidates."""
        return (self.source.prompt(self.instruction, self._max_chars), *self._candidates)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Shows an instruction and its candidates; see `InstructionEnv.reset`."""
        self._candidates = ()
        _, info = super().reset(seed=seed, options=options)
        candidates = self.source(self._index, self.instruction)
        observation = self.source.observe(self.instruction, candidates, self._max_chars)
        self._candidates = candidates
        return observation, info

    def step(self, action: int) -> tuple[str, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        """Rewards the candidate of this number and ends the episode.

        Raises:
            TypeError: The action is no integer.
            DataError: There is no candidate of this number.
            RewardError: A part of the reward failed.
            ResetNeeded: The episode is over, or none has begun.
        """
        number = check_number(action, self.source.num_candidates)
        if not self._candidates:
            raise ResetNeeded("call reset() first: no candidates are shown yet")
        return super().step(self._candidates[number])

    def judge(self, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Tells which text was chosen."""
        return total, None, {"response": text}


class CandidatesVectorEnv(InstructionVectorEnv):
    """B copies of `CandidatesEnv` that share the task and score their choices together.

    Copy i behaves as a `CandidatesEnv` seeded with ``seed + i``. Actions are B numbers.

    Args:
        num_envs: B, the number of copies.
        task: As for `CandidatesEnv`; likewise all that follows.
        num_candidates: See there.
        candidates: See there.
        reference: See there.
        shuffle: See there.
        candidate_seed: See there.
        options: split, reward, task_options, max_chars and autoreset_mode, as for
            `InstructionVectorEnv`.

    Raises:
        ConfigError: As for `CandidatesEnv`.
        DataError: As for `CandidatesEnv`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: TaskLike = "closed_answers",
        num_candidates: int = 4,
        candidates: str | None = None,
        reference: str = "reference",
        shuffle: bool = True,
        candidate_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(num_envs, task=task, **options)
        self.source = CandidateSource(
            self.task,
            num_candidates,
            column=candidates,
            reference=reference,
            shuffle=shuffle,
            seed=candidate_seed,
        )
        self.single_action_space = Discrete(num_candidates)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._candidates: list[tuple[str, ...]] = [()] * num_envs

    def step(  # type: ignore[override]
        self,
        actions: Sequence[int] | np.ndarray,
        extras: Mapping[str, Sequence[Any]] | None = None,
        active: Sequence[bool] | np.ndarray | None = None,
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Rewards the B candidates of these numbers with one call.

        Args:
            actions: B integers; those of copies that are not stepped are not read.
            extras: As for `InstructionVectorEnv.step`.
            active: As for `InstructionVectorEnv.step`.

        Raises:
            TypeError: An action is no integer.
            DataError: There is no candidate of this number, or not B actions.
            ResetNeeded: A copy has no episode to step.
        """
        self._check_lengths(actions, extras or {})  # type: ignore[arg-type]
        texts = [""] * self.num_envs
        for i in self._rows(active):
            texts[i] = self._candidates[i][check_number(actions[i], self.source.num_candidates)]
        return super().step(texts, extras, active)

    def judge(self, i: int, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Tells which text was chosen."""
        return total, None, {"response": text}

    def _show(self, i: int, index: int | None = None) -> dict[str, Any]:
        info = super()._show(i, index)
        instruction = self._instructions[i]
        assert instruction is not None, "it was shown just now"
        self._candidates[i] = self.source(self._indices[i], instruction)
        self._observations[i] = self.source.observe(
            instruction, self._candidates[i], self._max_chars
        )
        return info


def check_number(action: Any, num_candidates: int) -> int:
    """Returns an action as a plain integer.

    Raises:
        TypeError: It is no integer.
        DataError: It is none from 0 to K - 1.
    """
    try:
        number = operator.index(action)
    except TypeError as error:
        raise TypeError(f"an action is the number of a candidate, not {action!r}") from error
    if not 0 <= number < num_candidates:
        raise DataError(
            f"action {number}: expected the number of a candidate, 0 to {num_candidates - 1}"
        )
    return number

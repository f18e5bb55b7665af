"""Where the candidate responses of an instruction come from, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from instructrec.envs import episode
from instructrec.envs.spaces import is_unicode
from instructrec.envs.tasks.base import Instruction, Task
from instructrec.errors import ConfigError, DataError, did_you_mean
from instructrec.rewards.text import normaliser

_POOL = 4096  # instructions whose references are distractors; more are not looked at
_key = normaliser("casefold")  # texts that differ in case alone would be one answer twice


class CandidateSource:
    """Gives the same K candidates for the same instruction, always.

    Args:
        task: The instructions.
        num_candidates: K.
        column: Column with lists of texts; None draws candidates from the references.
        reference: Column of the references; see `CandidatesEnv` for these and what follows.
        shuffle: Whether the order is drawn.
        seed: Decides what is drawn.

    Raises:
        ConfigError: K < 2, or drawn candidates without shuffling.
        DataError: The task lacks the column, or has fewer than K different references.
    """

    def __init__(
        self,
        task: Task,
        num_candidates: int,
        *,
        column: str | None,
        reference: str,
        shuffle: bool,
        seed: int,
    ) -> None:
        for name, value, least in (("num_candidates", num_candidates, 2), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                shown = "candidate_seed" if name == "seed" else name
                raise ConfigError(f"{shown} = {value!r}: expected an integer >= {least}.")
        if column is None and not shuffle:
            raise ConfigError(
                "shuffle = False needs a column of candidates: of those drawn from the task the "
                "reference would always be number 0."
            )
        self.num_candidates = num_candidates
        self._task, self._column, self._reference = task, column, reference
        self._shuffle, self._seed = shuffle, seed
        needed = reference if column is None else column
        if needed not in task.columns:
            raise DataError(
                f"task {task.name!r} has no column {needed!r} for its candidates."
                f"{did_you_mean(needed, task.columns)} Columns: {list(task.columns)}."
            )
        self._pool = () if column is not None else self._distractors()

    def __call__(self, index: int, instruction: Instruction) -> tuple[str, ...]:
        """Returns the K candidates of an instruction, in the order of their numbers.

        Args:
            index: Its index in the task.
            instruction: The instruction.

        Raises:
            DataError: It has too few candidates or no reference, or one is no Unicode text.
        """
        generator = np.random.default_rng([self._seed, index])
        if self._column is None:
            found = self._drawn(instruction, generator)
        else:
            found = self._listed(instruction, self._column)
        for text in found:
            if not is_unicode(text):
                raise DataError(
                    f"a candidate of instruction {instruction.id!r} holds half of a surrogate "
                    "pair: correct the data that it is made from"
                )
        order = generator.permutation(len(found)) if self._shuffle else range(len(found))
        return tuple(found[i] for i in order)

    def prompt(self, instruction: Instruction, max_chars: int) -> str:
        """Returns the text of the instruction alone.

        Raises:
            DataError: It is longer than ``max_chars``.
        """
        return episode.observe(instruction, max_chars)

    def observe(self, instruction: Instruction, candidates: Sequence[str], max_chars: int) -> str:
        """Returns the instruction with its numbered candidates as one text.

        Raises:
            DataError: It is longer than ``max_chars``.
        """
        lines = [f"{number}: {text}" for number, text in enumerate(candidates)]
        text = "\n".join([self.prompt(instruction, max_chars), "", *lines])
        if len(text) > max_chars:
            raise DataError(
                f"instruction {instruction.id!r} with its candidates has {len(text):,} characters; "
                f"the environment allows {max_chars:,}: make it with a larger max_chars"
            )
        return text

    def _listed(self, instruction: Instruction, column: str) -> list[str]:
        texts = _texts(instruction, column)
        if len(texts) < self.num_candidates:
            raise DataError(
                f"instruction {instruction.id!r} has {len(texts)} candidates in column {column!r}; "
                f"expected at least num_candidates = {self.num_candidates}: correct the data, or "
                "make the environment with fewer."
            )
        return texts[: self.num_candidates]

    def _drawn(self, instruction: Instruction, generator: np.random.Generator) -> list[str]:
        """The reference, then others that are none of its references."""
        answers = self._answers(instruction)
        if not answers:
            raise DataError(
                f"instruction {instruction.id!r} has no {self._reference}: candidates are drawn "
                "around it. Name a column of candidates, or leave such rows out."
            )
        own = {_key(answer) for answer in answers}
        # Texts of the pool differ, so that at most len(own) of these are dropped.
        wanted = min(len(self._pool), self.num_candidates - 1 + len(own))
        drawn = generator.choice(len(self._pool), wanted, replace=False)
        others = [self._pool[i] for i in drawn.tolist() if _key(self._pool[i]) not in own]
        if len(others) < self.num_candidates - 1:
            raise self._too_few(len(others) + 1)
        return [answers[0], *others[: self.num_candidates - 1]]

    def _distractors(self) -> tuple[str, ...]:
        """Different references of the task, or of a sample of a large one."""
        size = len(self._task)
        indices: Sequence[int] = range(size)
        if size > _POOL:
            drawn = np.random.default_rng(self._seed).choice(size, _POOL, replace=False)
            indices = sorted(drawn.tolist())
        found: dict[str, str] = {}
        for index in indices:
            for answer in self._answers(self._task[index])[:1]:  # none where there is no answer
                found.setdefault(_key(answer), answer)
        if len(found) < self.num_candidates:
            raise self._too_few(len(found))
        return tuple(found.values())

    def _answers(self, instruction: Instruction) -> list[str]:
        return [text for text in _texts(instruction, self._reference) if text.strip()]

    def _too_few(self, found: int) -> DataError:
        return DataError(
            f"task {self._task.name!r} has {found} different answers in {self._reference!r}; "
            f"expected at least num_candidates = {self.num_candidates}: make the environment with "
            "fewer, or name a column of candidates."
        )


def _texts(instruction: Instruction, column: str) -> list[str]:
    """The texts of a column that holds one, several or none."""
    values: Any = instruction.columns.get(column)
    values = values.tolist() if isinstance(values, np.ndarray) else values
    if values is None or isinstance(values, str):
        return [] if values is None else [values]
    if isinstance(values, Sequence) and all(isinstance(value, str) for value in values):
        return list(values)
    raise DataError(
        f"column {column!r} of instruction {instruction.id!r} is {str(values)[:80]!r}; expected a "
        "text or a list of texts."
    )

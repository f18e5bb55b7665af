"""Policies without a model: the bounds of every comparison. Imports no torch."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec.errors import DataError, PolicyError
from instructrec.policies.base import Prompt, Responses, StopReason
from instructrec.policies.config import Sampling

Columns = Mapping[str, Sequence[Any]] | None
_WORDS = ("yes", "no", "one", "two", "red", "blue", "left", "right")


class ConstantPolicy:
    """Gives the same answer to everything.

    Args:
        text: The answer.
    """

    def __init__(self, text: str = "") -> None:
        self.name = f"constant:{text}" if text else "empty"
        self.text = text

    def respond(
        self, prompts: Sequence[Prompt], columns: Columns = None, sampling: Sampling | None = None
    ) -> Responses:
        """Answers each prompt with the text."""
        return _responses([self.text] * len(prompts))


class EmptyPolicy(ConstantPolicy):
    """Says nothing: what a reward pays for silence."""

    def __init__(self) -> None:
        super().__init__("")


class OraclePolicy:
    """Answers with the reference: the most that a reward pays for a right answer.

    Args:
        column: The gold column; of several references in a row, the first is given.
    """

    name = "oracle"

    def __init__(self, column: str = "reference") -> None:
        self.column = column

    def respond(
        self, prompts: Sequence[Prompt], columns: Columns = None, sampling: Sampling | None = None
    ) -> Responses:
        """Answers each prompt with its first reference.

        Raises:
            PolicyError: The instructions have no such column, or a row of it is empty.
        """
        known = columns or {}
        if self.column not in known:
            raise PolicyError(
                f"the oracle answers from the column {self.column!r}, but these instructions have "
                f"{', '.join(sorted(known)) or 'no columns'}. Name another column or use a task "
                "with references."
            )
        references = [_first(value) for value in known[self.column]]
        empty = [i for i, text in enumerate(references) if text is None]
        if empty:
            raise PolicyError(
                f"the oracle found no text in row {empty[0]} of the column {self.column!r}: "
                "expected a string or a list of strings."
            )
        return _responses([str(text) for text in references])


class RandomPolicy:
    """Answers at random, with one of the references: what guessing is worth.

    What it says follows from the seed, the prompt, and how often it was asked it: the size of the
    batches changes nothing, and no break does. Without references it answers with one word of a
    short list.

    Args:
        seed: Seed of the draws.
        column: The gold column.
        words: Answers to choose from instead of the references.
    """

    name = "random"

    def __init__(
        self, seed: int = 0, column: str = "reference", words: Sequence[str] | None = None
    ) -> None:
        self.column = column
        self.words = list(words) if words else None
        self._seed = seed
        self._references: list[str] = []
        self._asked: Counter[str] = Counter()

    def begin(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Takes the references of all instructions to come; without it, those of each call count.

        Args:
            columns: Columns of all instructions.
        """
        self._references = self._distinct(columns)
        self._asked.clear()

    def skip(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> None:
        """Goes on as if these prompts had been answered."""
        self._asked.update(map(_key, prompts))

    def respond(
        self, prompts: Sequence[Prompt], columns: Columns = None, sampling: Sampling | None = None
    ) -> Responses:
        """Answers each prompt with a draw from the distinct answers, all equally likely."""
        pool = self.words or self._references or self._distinct(columns or {}) or _WORDS
        return _responses([self._draw(_key(prompt), pool) for prompt in prompts])

    def _distinct(self, columns: Mapping[str, Sequence[Any]]) -> list[str]:
        references = [_first(value) for value in columns.get(self.column, ())]
        return sorted({text for text in references if text is not None})

    def _draw(self, key: str, pool: Sequence[str]) -> str:
        number = self._asked[key]
        self._asked[key] += 1
        seed = f"{self._seed} {number} {key}".encode(errors="surrogatepass")
        return random.Random(seed).choice(pool)


class ReplayPolicy:
    """Gives the responses of an evaluation file again, so that other rewards can score them.

    Several samples of one prompt are given in the file's order, then from the start again.

    Args:
        file: JSON lines with ``prompt`` (string or messages) and ``response``.

    Raises:
        DataError: The file is missing, or a line of it is no such row.
    """

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self.name = f"replay:{self.file.name}"
        self._answers: dict[str, list[tuple[str, StopReason]]] = {}
        self._given: Counter[str] = Counter()
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"cannot read the responses in {self.file}: {error}.") from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                key, answer = self._parse(line, number)
                self._answers.setdefault(key, []).append(answer)

    def respond(
        self, prompts: Sequence[Prompt], columns: Columns = None, sampling: Sampling | None = None
    ) -> Responses:
        """Answers each prompt with its next recorded response.

        Raises:
            PolicyError: The file has no response to a prompt.
        """
        answers = [self._next(_key(prompt)) for prompt in prompts]
        responses = _responses([text for text, _ in answers])
        responses.stop_reasons = [reason for _, reason in answers]
        return responses

    def skip(self, prompts: Sequence[Prompt], sampling: Sampling | None = None) -> None:
        """Leaves out the responses to prompts that were answered before."""
        self._given.update(map(_key, prompts))

    def _next(self, key: str) -> tuple[str, StopReason]:
        if key not in self._answers:
            raise PolicyError(
                f"{self.file} holds no response to the prompt {key[:80]!r}. Replay the task and "
                f"split that the file was made with ({len(self._answers)} prompts)."
            )
        place = self._given[key]
        self._given[key] += 1
        return self._answers[key][place % len(self._answers[key])]

    def _parse(self, line: str, number: int) -> tuple[str, tuple[str, StopReason]]:
        where = f"{self.file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}): {line[:80]!r}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("response"), str):
            raise DataError(
                f"{where}: expected an object with 'prompt' and 'response', found {line[:80]!r}."
            )
        try:
            reason = StopReason(row.get("stop_reason", StopReason.EOS))
            return _key(row["prompt"]), (row["response"], reason)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{where}: expected 'prompt' (a string or messages) and a known 'stop_reason' "
                f"({', '.join(StopReason)}), found {line[:80]!r}."
            ) from error


def _key(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return json.dumps([dict(message) for message in prompt], sort_keys=True)


def _first(value: Any) -> str | None:
    """The first reference of a row: the string itself, or the first of several."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and isinstance(value[0], str):
        return value[0]
    return None


def _responses(texts: list[str]) -> Responses:
    return Responses(texts=texts, stop_reasons=[StopReason.EOS] * len(texts))

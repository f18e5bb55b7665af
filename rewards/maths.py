"""Mathematical equality of answers, decided by the math-verify library in a process of its own.

Comparing two expressions can take for ever (``10^{10^{10}}`` is a legal answer), and the library's
own time limit uses ``signal.alarm``, which does not work in threads. So each comparison is a call
of a worker, with a deadline after which its process is killed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from instructrec.errors import ConfigError, RewardError
from instructrec.rewards.base import FailedScore, Status
from instructrec.rewards.isolation import Workers, WorkerSettings
from instructrec.rewards.registry import make_reward
from instructrec.rewards.text import completion_texts, reference_texts

MEMORY_MB = 4096
"""Most address space of the process that compares, where the system can limit it."""

_MARKS = ("$", "\\(", "\\[", "\\boxed")


class MathVerify:
    r"""1.0 where a response's final answer equals an expected one as mathematics, else 0.0.

    ``math_verify.parse`` finds the answer in the response (the last ``\boxed{}``, LaTeX between
    dollar signs, or a number) and ``math_verify.verify`` compares. An expected answer without
    dollar signs or ``\boxed`` is read as LaTeX as a whole: ``1/2``, ``\frac12``, ``{1, 2}``,
    ``[0, 1)``.

    A comparison that takes too long, raises or takes the process with it is a failure, not a 0.

    Args:
        timeout_s: Longest time for one response, in seconds.
        float_rounding: Decimal places to which numbers must agree.

    Raises:
        ConfigError: When math-verify is not installed or a number is not positive.
    """

    __name__ = "math_verify"

    def __init__(self, *, timeout_s: float = 5.0, float_rounding: int = 6) -> None:
        for name, value in (("timeout_s", timeout_s), ("float_rounding", float_rounding)):
            if not value > 0:
                raise ConfigError(f"reward 'math_verify': {name} = {value}: expected more than 0.")
        if find_spec("math_verify") is None:
            raise ConfigError(
                "reward 'math_verify' needs the package math-verify: "
                "pip install 'instructrec[maths]'."
            )
        memory_mb = MEMORY_MB if sys.platform == "linux" else None
        self._workers = Workers(
            make_reward("instructrec.rewards.maths:Comparison", float_rounding=float_rounding),
            WorkerSettings(timeout=timeout_s, memory_mb=memory_mb, chunk=1),
        )

    def __call__(
        self,
        completions: Sequence[Any],
        reference: Sequence[str | Sequence[str] | None],
        **columns: Any,
    ) -> list[float | None]:
        """Scores B responses.

        Args:
            completions: B responses.
            reference: B expected answers, each a string or several acceptable strings.
            **columns: Not read.

        Returns:
            B scores in {0, 1}; None where there is no expected answer; a ``FailedScore``
            where the comparison failed.

        Raises:
            DataError: When a reference is not text.
            ConfigError: When the process that compares cannot be started.
        """
        texts = completion_texts(completions)
        golds = [
            (answers := reference_texts(expected, "math_verify", i)) and [*map(_as_latex, answers)]
            for i, (_, expected) in enumerate(zip(texts, reference, strict=True))
        ]
        try:
            scored = self._workers.score([""] * len(texts), texts, {"reference": golds})
        except RewardError as error:  # no sample is to blame
            raise ConfigError(f"reward 'math_verify': {error}") from error
        outcomes: list[float | None] = scored.scores.tolist()
        for i, status in enumerate(scored.status):
            if status.failed:
                outcomes[i] = FailedScore(status, scored.messages[i])
            elif status is Status.NOT_APPLICABLE:
                outcomes[i] = None
        return outcomes

    def close(self) -> None:
        """Ends the process; the next batch starts another."""
        self._workers.close()


def _as_latex(answer: str) -> str:
    return answer if any(mark in answer for mark in _MARKS) else f"\\boxed{{{answer}}}"


class Comparison:
    """The reward that runs in the process of ``MathVerify``: no deadline, no limit of memory.

    Args:
        float_rounding: Decimal places to which numbers must agree.
    """

    __name__ = "comparison"

    def __init__(self, *, float_rounding: int) -> None:
        self.float_rounding = float_rounding

    def warm_up(self) -> None:
        """Imports and builds what the first comparison needs."""
        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no deadline
        self(["$0.5$"], [["$\\frac{1}{2}$"]])

    def __call__(
        self, completions: Sequence[str], reference: Sequence[list[str] | None], **columns: Any
    ) -> list[float | None]:
        """Scores B responses against expected answers in LaTeX; None where there is none."""
        return [
            None if answers is None else self._score(response, answers)
            for response, answers in zip(completions, reference, strict=True)
        ]

    def _score(self, response: str, answers: list[str]) -> float | None:
        from math_verify import parse

        golds = [gold for answer in answers if (gold := parse(answer, parsing_timeout=None))]
        if not golds:
            return None
        found = parse(response, parsing_timeout=None)
        return float(any(_equal(gold, found, self.float_rounding) for gold in golds))


def _equal(gold: list[Any], found: list[Any], rounding: int) -> bool:
    from math_verify import verify

    settings: dict[str, Any] = {"float_rounding": rounding, "timeout_seconds": None}
    try:
        return bool(verify(gold, found, raise_on_error=True, **settings))
    except Exception:
        # One of the readings of the answer cannot be compared; another one may still be equal.
        if verify(gold, found, **settings):
            return True
        raise

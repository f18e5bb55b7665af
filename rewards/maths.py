"""Mathematical equality of answers, decided by the math-verify library in a process of its own.

Comparing two expressions can take for ever (``10^{10^{10}}`` is a legal answer), and the library's
own time limit uses ``signal.alarm``, which does not work in threads. So each comparison has a
deadline after which its process is killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from instructrec.errors import ConfigError
from instructrec.rewards.base import FailedScore
from instructrec.rewards.helper_process import HelperProcess
from instructrec.rewards.text import completion_text, reference_texts

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
        self.timeout_s = timeout_s
        self.float_rounding = float_rounding
        self._helper = HelperProcess(
            "instructrec.rewards.maths:_compare", warm_up=[["$\\frac{1}{2}$"], "$0.5$", 6]
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
            B scores in {0, 1}; None where no expected answer is mathematics; a ``FailedScore``
            where the comparison failed.

        Raises:
            DataError: When a reference is not text.
            ConfigError: When the process that compares cannot be started.
        """
        return [
            self._score(completion_text(completion), reference_texts(expected, "math_verify", i))
            for i, (completion, expected) in enumerate(zip(completions, reference, strict=True))
        ]

    def _score(self, response: str, answers: list[str] | None) -> float | None:
        if answers is None:
            return None
        question = [[_as_latex(answer) for answer in answers], response, self.float_rounding]
        answer = self._helper.ask(question, self.timeout_s)
        return answer if answer is None or isinstance(answer, FailedScore) else float(answer)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_helper"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _as_latex(answer: str) -> str:
    return answer if any(mark in answer for mark in _MARKS) else f"\\boxed{{{answer}}}"


def _compare(question: list[Any]) -> bool | None:
    """Runs in the helper process: whether a response equals one of the expected answers."""
    from math_verify import parse

    answers, response, rounding = question
    golds = [gold for answer in answers if (gold := parse(answer, parsing_timeout=None))]
    if not golds:
        return None
    found = parse(response, parsing_timeout=None)
    return any(_equal(gold, found, rounding) for gold in golds)


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

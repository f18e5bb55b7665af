"""The larger of two numbers: "Which number is larger, 31 or 57?" -> 57."""

from __future__ import annotations

from collections.abc import Sequence

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.procedural import Problem, ProceduralTask

PHRASINGS = (
    "Which number is larger, {a} or {b}?",
    "Which is larger: {a} or {b}?",
    "Which one is larger: {a} or {b}?",
    "Which number is the larger one: {a} or {b}?",
    "Tell me which is larger: {a} or {b}.",
    "Say which number is larger: {a} or {b}.",
    "Pick the larger number: {a} or {b}.",
    "Write the larger number: {a} or {b}.",
    "Name the larger number: {a} or {b}.",
)


@register_task("compare_numbers")
class CompareNumbers(ProceduralTask):
    """Compares two different two-digit numbers; clustered by the smaller of the two."""

    name = "compare_numbers"

    def keys(self) -> Sequence[int]:
        """Returns the split's two-digit numbers: each is written first in turn."""
        return numbers_of(self.split, 10, 99)

    def num_variants(self, key: int) -> int:
        """Returns phrasings x other numbers."""
        return len(PHRASINGS) * (len(self._keys) - 1)

    def problem(self, key: int, variant: int) -> Problem:
        """Returns a variant: phrasing and the number written second."""
        other, phrasing = divmod(variant, len(PHRASINGS))
        second = [number for number in self._keys if number != key][other]
        prompt = PHRASINGS[phrasing].format(a=key, b=second)
        return Problem(prompt, str(max(key, second)), item=str(min(key, second)))

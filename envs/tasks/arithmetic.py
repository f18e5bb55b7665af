"""Sums and differences of small numbers: "What is 23 + 34?" -> 57."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.procedural import Problem, ProceduralTask

SUM_PHRASINGS = (
    "What is {a} + {b}?",
    "{a} + {b} =",
    "Add {a} and {b}.",
    "Compute {a} + {b}.",
    "How much is {a} plus {b}?",
    "Find the sum of {a} and {b}.",
    "Calculate {a} plus {b}.",
    "What do you get when you add {b} to {a}?",
)
DIFFERENCE_PHRASINGS = (
    "What is {a} - {b}?",
    "{a} - {b} =",
    "Subtract {b} from {a}.",
    "Compute {a} - {b}.",
    "How much is {a} minus {b}?",
    "Find the difference of {a} and {b}.",
    "Calculate {a} minus {b}.",
    "What is left when you take {b} from {a}?",
)
_LARGEST = 99


@register_task("arithmetic")
class Arithmetic(ProceduralTask):
    """Adds or subtracts two numbers.

    A key is a triple ``(a, b, a + b)`` with 2 <= a < b <= 99 whose three numbers all belong to the
    split: so a test item shares neither operand nor answer with any training item.
    """

    name = "arithmetic"

    def keys(self) -> Sequence[tuple[int, int, int]]:
        """Returns the split's triples in increasing order."""
        inside = frozenset(numbers_of(self.split, 2, 2 * _LARGEST))
        pairs = combinations(sorted(number for number in inside if number <= _LARGEST), 2)
        return [(a, b, a + b) for a, b in pairs if a + b in inside]

    def num_variants(self, key: tuple[int, int, int]) -> int:
        """Returns two orders x all phrasings of the sum and of the difference."""
        return 2 * (len(SUM_PHRASINGS) + len(DIFFERENCE_PHRASINGS))

    def problem(self, key: tuple[int, int, int], variant: int) -> Problem:
        """Returns one of ``a + b, b + a, c - a, c - b`` in one of the phrasings."""
        a, b, c = key
        phrasing, order = divmod(variant, 2)
        if order:
            a, b = b, a
        item = "{}+{}={}".format(*key)
        if phrasing < len(SUM_PHRASINGS):
            return Problem(SUM_PHRASINGS[phrasing].format(a=a, b=b), str(c), item)
        text = DIFFERENCE_PHRASINGS[phrasing - len(SUM_PHRASINGS)]
        return Problem(text.format(a=c, b=a), str(b), item)

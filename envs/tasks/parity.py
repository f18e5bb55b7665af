"""Even or odd: "Is 357 even or odd?" -> odd."""

from __future__ import annotations

from collections.abc import Sequence

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.procedural import Problem, ProceduralTask

PHRASINGS = (
    "Is {n} even or odd?",
    "Is {n} odd or even?",
    "Is the number {n} even or odd?",
    "{n}: even or odd?",
    "Even or odd: {n}",
    "Say whether {n} is odd or even.",
    "Tell me if {n} is even or odd.",
    "What is {n}, odd or even?",
    "Decide: is {n} odd or even?",
)


@register_task("parity")
class Parity(ProceduralTask):
    """Tells whether a three-digit number is even or odd."""

    name = "parity"

    def keys(self) -> Sequence[int]:
        """Returns the split's three-digit numbers, half of them even."""
        return numbers_of(self.split, 100, 999)

    def num_variants(self, key: int) -> int:
        """Returns the number of phrasings."""
        return len(PHRASINGS)

    def problem(self, key: int, variant: int) -> Problem:
        """Returns the number in one of the phrasings."""
        answer = "odd" if key % 2 else "even"
        return Problem(PHRASINGS[variant].format(n=key), answer, item=str(key))

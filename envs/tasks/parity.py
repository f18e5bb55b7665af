"""Even or odd: "Is 57 even or odd?" -> odd."""

from __future__ import annotations

from collections.abc import Sequence

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.procedural import Problem, ProceduralTask

PHRASINGS = (
    "Is {n} even or odd?",
    "Is the number {n} even or odd?",
    "Tell me: is {n} even or odd?",
    "Would you call {n} even or odd?",
    "Say if {n} is even or odd.",
    "Decide: is {n} even or odd?",
    "Do you think {n} is even or odd?",
    "Is {n} an even or odd number?",
    "What is {n}: even or odd?",
)


@register_task("parity")
class Parity(ProceduralTask):
    """Tells whether a two-digit number is even or odd."""

    name = "parity"

    def keys(self) -> Sequence[int]:
        """Returns the split's two-digit numbers, half of them even."""
        return numbers_of(self.split, 10, 99)

    def num_variants(self, key: int) -> int:
        """Returns the number of phrasings."""
        return len(PHRASINGS)

    def problem(self, key: int, variant: int) -> Problem:
        """Returns the number in one of the phrasings."""
        answer = "odd" if key % 2 else "even"
        return Problem(PHRASINGS[variant].format(n=key), answer, item=str(key))

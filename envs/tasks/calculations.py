"""Sums and products of numbers with three digits: work for a calculator, not for a small model."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from instructrec.envs.calculator import calculator
from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.procedural import Problem, ProceduralTask

Phrasing = tuple[str, str]
"""What is asked, and the expression that answers it; ``{a} > {b}``, and ``{c}`` in two steps."""

PHRASINGS: dict[str, tuple[Phrasing, ...]] = {
    "sum": (
        ("What is {a} + {b}?", "{a} + {b}"),
        ("Add {b} and {a}.", "{b} + {a}"),
        ("How much is {b} plus {a}?", "{b} + {a}"),
        ("Find the sum of {a} and {b}.", "{a} + {b}"),
        ("There are {b} girls and {a} boys. How many children are there?", "{b} + {a}"),
        ("I had {a} coins and found {b}. How many have I now?", "{a} + {b}"),
        ("A street of {a} homes gets {b} more. How many has it then?", "{a} + {b}"),
        ("After {b} miles I have {a} miles to go. How long is the way?", "{b} + {a}"),
    ),
    "difference": (
        ("What is {a} - {b}?", "{a} - {b}"),
        ("Subtract {b} from {a}.", "{a} - {b}"),
        ("How much is {a} minus {b}?", "{a} - {b}"),
        ("Find the difference of {a} and {b}.", "{a} - {b}"),
        ("Of {a} seats {b} are taken. How many are free?", "{a} - {b}"),
        ("I had {a} coins and spent {b}. How many are left?", "{a} - {b}"),
        ("The way is {a} miles long, and I have done {b}. How many remain?", "{a} - {b}"),
        ("Two towers are {a} and {b} feet high. By how much do they differ?", "{a} - {b}"),
    ),
    "product": (
        ("What is {a} * {b}?", "{a} * {b}"),
        ("Multiply {b} by {a}.", "{b} * {a}"),
        ("How much is {b} times {a}?", "{b} * {a}"),
        ("Find the product of {a} and {b}.", "{a} * {b}"),
        ("There are {b} rows of {a} seats. How many seats are there?", "{b} * {a}"),
        ("One page has {a} words. How many have {b} pages?", "{a} * {b}"),
        ("A ticket costs {b} cents. How many cents do {a} tickets cost?", "{b} * {a}"),
        ("Each of {a} teams has {b} members. How many is that?", "{a} * {b}"),
    ),
    "two_steps": (
        ("What is {a} * {b} + {c}?", "{a} * {b} + {c}"),
        ("Multiply {b} by {a}, then subtract {c}.", "{b} * {a} - {c}"),
        ("Add {b} and {c}, then multiply by {a}.", "({b} + {c}) * {a}"),
        ("Subtract {b} from {a}, then multiply by {c}.", "({a} - {b}) * {c}"),
        ("There are {a} rows of {b} seats, and {c} other seats. How many?", "{a} * {b} + {c}"),
        ("I had {c} coins and found {a}, then {b}. How many have I now?", "{c} + {a} + {b}"),
        ("I had {a} coins, spent {b} and found {c}. How many have I now?", "{a} - {b} + {c}"),
        ("Of {b} packs of {a} pages, {c} pages are used. How many are free?", "{b} * {a} - {c}"),
    ),
}
"""Ways to ask by family: half of them plainly, the others by a story."""

_ALL = tuple((family, *phrasing) for family, of_it in PHRASINGS.items() for phrasing in of_it)


@register_task("calculations")
class Calculations(ProceduralTask):
    """Asks for the value of an expression over numbers of three digits, plainly or by a story.

    The numbers of a split occur in no other one; intervals are clustered by the key, one of them.
    The column ``demonstration`` holds the answers of an episode with the tool ``calculator``: the
    call, and what to say to its result.
    """

    name = "calculations"
    columns = (*ProceduralTask.columns, "demonstration")

    def keys(self) -> Sequence[int]:
        """Returns the split's numbers of three digits: each is one of the operands in turn."""
        return numbers_of(self.split, 100, 999)

    def num_variants(self, key: int) -> int:
        """Returns phrasings x other numbers: half of them, so that each pair belongs to one key."""
        return len(_ALL) * ((len(self._keys) - 1) // 2)

    def problem(self, key: int, variant: int) -> Problem:
        """Returns a variant: phrasing and the other numbers."""
        other, phrasing = divmod(variant, len(_ALL))
        place, size = bisect_left(self._keys, key), len(self._keys)
        second = self._keys[(place + 1 + other) % size]
        third = self._keys[(place - 1 - other) % size]
        numbers = {"a": max(key, second), "b": min(key, second), "c": third}
        family, question, expression = _ALL[phrasing]
        written = expression.format(**numbers)
        value = calculator(written)
        return Problem(
            question.format(**numbers),
            value,
            item=str(key),
            family=family,
            more={"demonstration": [f"<tool>calculator({written})</tool>", value]},
        )

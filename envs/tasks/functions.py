"""One-line Python functions for stated rules: "a function f(n) that returns n plus 17".

The answer is code, and what it does is what counts: the column ``cases`` holds calls and results
for the reward ``code_execution``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.procedural import Problem, ProceduralTask, fingerprint_of
from instructrec.envs.tasks.skills.base import check_level

PHRASINGS = (
    "Write a Python function {name}(n) that returns {what}.",
    "Define a Python function {name}(n) in one line. It returns {what}.",
    "In Python, write {name}(n), which returns {what}.",
    "I need a Python function {name}(n). It should return {what}.",
    "Write one line of Python: a function {name}(n) that gives {what}.",
    "Please define {name}(n) in Python so that it returns {what}.",
    "Code a Python function called {name} with the parameter n that returns {what}.",
    "How do you write a Python function {name}(n) that returns {what}?",
    "Complete the task in Python: {name}(n) returns {what}.",
)
NAMES = ("f", "calc", "rule", "solve")
"""What the function is to be called."""

Rule = tuple[str, str, str, Callable[[Any, int], Any]]
"""Family, what is to be returned (``{k}`` is a number), and what does it: as text, and in fact."""

RULES: dict[int, tuple[Rule, ...]] = {
    1: (
        ("plus", "n plus {k}", "n + {k}", lambda n, k: n + k),
        ("minus", "n minus {k}", "n - {k}", lambda n, k: n - k),
        ("times", "n times {k}", "n * {k}", lambda n, k: n * k),
        ("from", "{k} minus n", "{k} - n", lambda n, k: k - n),
    ),
    2: (
        ("double_plus", "twice n plus {k}", "2 * n + {k}", lambda n, k: 2 * n + k),
        ("square_minus", "the square of n minus {k}", "n * n - {k}", lambda n, k: n * n - k),
        ("rest", "the remainder of n divided by {k}", "n % {k}", lambda n, k: n % k),
        ("distance", "the distance between n and {k}", "abs(n - {k})", lambda n, k: abs(n - k)),
        ("larger", "the larger one of n and {k}", "max(n, {k})", max),
        ("above", "True if n is above {k} and else False", "n > {k}", lambda n, k: n > k),
    ),
    3: (
        (
            "count_above",
            "how many numbers of the list n are above {k}",
            "sum(x > {k} for x in n)",
            lambda n, k: sum(x > k for x in n),
        ),
        (
            "sum_below",
            "the sum of all numbers below {k} in the list n",
            "sum(x for x in n if x < {k})",
            lambda n, k: sum(x for x in n if x < k),
        ),
        (
            "without",
            "the list n without the number {k}",
            "[x for x in n if x != {k}]",
            lambda n, k: [x for x in n if x != k],
        ),
        (
            "all_plus",
            "the list n with {k} added to each number",
            "[x + {k} for x in n]",
            lambda n, k: [x + k for x in n],
        ),
    ),
}
"""Level -> its rules: a number and one step, a number and two steps, a list."""


@register_task("one_line_functions")
class OneLineFunctions(ProceduralTask):
    """Writes a Python function of one line.

    A key is the number in the rule, from 2 to 99, so no test item shares its number with a training
    item. ``reference`` is a function that is right, and not the only one; ``cases`` (JSON) are
    calls and results, ``function`` is its name, and ``family`` names the rule.

    Args:
        split: ``train``, ``validation`` or ``test``.
        seed: Chooses the order of items and variants.
        size: Number of items, as for `ProceduralTask`.
        level: 1 (one step), 2 (two steps) or 3 (a list).
    """

    columns: tuple[str, ...] = ("reference", "family", "item", "level", "function", "cases")

    def __init__(
        self, *, split: str = "train", seed: int = 0, size: int | None = None, level: int = 1
    ) -> None:
        self.level = check_level(level)
        self.name = f"one_line_functions_{level}"
        super().__init__(split=split, seed=seed, size=size)

    def keys(self) -> Sequence[int]:
        """Returns the split's numbers."""
        return numbers_of(self.split, 2, 99)

    def num_variants(self, key: int) -> int:
        """Returns rules x phrasings x names."""
        return len(RULES[self.level]) * len(PHRASINGS) * len(NAMES)

    def problem(self, key: int, variant: int) -> Problem:
        """Returns a rule with the number, in one of the phrasings and under one of the names."""
        variant, rule = divmod(variant, len(RULES[self.level]))
        phrasing, name = divmod(variant, len(NAMES))
        family, what, expression, compute = RULES[self.level][rule]
        called = NAMES[name]
        return Problem(
            PHRASINGS[phrasing].format(name=called, what=what.format(k=key)),
            f"def {called}(n): return {expression.format(k=key)}",
            item=str(key),
            family=family,
            more={
                "level": self.level,
                "function": called,
                "cases": json.dumps(_cases(compute, key, self.level)),
            },
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the items."""
        return fingerprint_of(
            base=super().fingerprint, rules=[rule[:3] for rule in RULES[self.level]]
        )


def _cases(compute: Callable[[Any, int], Any], key: int, level: int) -> list[dict[str, Any]]:
    """Calls and results that tell the rules of a level apart."""
    numbers = [0, 1, key - 1, key, key + 1, 3 * key + 2, -7]
    given: list[Any] = numbers if level < 3 else [numbers, [], [key, key, 5], [200, -key, 40]]
    return [{"args": [n], "expected": compute(n, key)} for n in given]

"""Several families side by side, in equal shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from instructrec.envs.tasks.base import (
    Instruction,
    check_index,
    check_split,
    make_task,
    register_task,
)
from instructrec.envs.tasks.partition import SPLITS
from instructrec.envs.tasks.procedural import DEFAULT_SIZES, VERSION, check_size, fingerprint_of
from instructrec.errors import ConfigError, unknown_name

CLOSED_FAMILIES = ("category", "odd_one_out", "swap_words", "compare_numbers", "parity")
"""Families whose answer is one of a few that the prompt shows."""
FAMILIES = (*CLOSED_FAMILIES, "arithmetic")
"""Families that a mixture can hold."""


@register_task("closed_answers")
class ClosedAnswers:
    """A balanced mixture: item i belongs to family ``i mod k``, so that any prefix is balanced.

    Args:
        split: ``train``, ``validation`` or ``test``.
        seed: Chooses the order of items within each family.
        size: Number of items over all families; 4096 for train, else 512, when None.
        families: Names of the families mixed; the five closed ones by default.
    """

    columns: tuple[str, ...] = ("reference", "family", "item")

    def __init__(
        self,
        *,
        split: str = "train",
        seed: int = 0,
        size: int | None = None,
        families: Sequence[str] = CLOSED_FAMILIES,
    ) -> None:
        self.name = "closed_answers"
        self.split = check_split(split, SPLITS)
        self.seed = seed
        self.size = check_size(size, default=DEFAULT_SIZES[self.split])
        self.families = _check_families(families)
        each = -(-self.size // len(self.families))
        self._tasks = [
            make_task(family, split=split, seed=seed, size=each) for family in self.families
        ]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Instruction:
        index = check_index(index, self.size, self.name)
        within, family = divmod(index, len(self._tasks))
        return self._tasks[family][within]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the families, their version, split, seed and size."""
        return fingerprint_of(
            name=self.name,
            version=VERSION,
            families=self.families,
            split=self.split,
            seed=self.seed,
            size=self.size,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable


def _check_families(families: Sequence[str]) -> tuple[str, ...]:
    if isinstance(families, str) or not families:
        raise ConfigError(f"families is a list of one or more of {FAMILIES}, not {families!r}")
    for family in families:
        if family not in FAMILIES:
            raise ConfigError(unknown_name("family", str(family), FAMILIES))
    if len(set(families)) < len(families):
        raise ConfigError(f"each family may be named once, not {list(families)}")
    return tuple(families)

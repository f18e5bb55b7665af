"""All skills side by side: families, levels and languages in equal shares."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from instructrec.envs.tasks.base import (
    Instruction,
    check_index,
    check_split,
    make_task,
    register_task,
)
from instructrec.envs.tasks.partition import SPLITS
from instructrec.envs.tasks.procedural import DEFAULT_SIZES, check_size, fingerprint_of
from instructrec.envs.tasks.skills.base import COLUMNS, REWARDS, check_level
from instructrec.errors import ConfigError, unknown_name

SKILLS: dict[str, tuple[str, ...]] = {
    "string_operations": ("en",),
    "ordering": ("en",),
    "counting": ("en",),
    "format_following": ("en",),
    "date_reasoning": ("en", "zh"),
    "unit_conversion": ("en", "zh"),
    "passage_lookup": ("en",),
    "entity_extraction": ("en",),
    "relation_extraction": ("en",),
    "rule_classification": ("en",),
}
"""Family -> languages that it is written in."""


@register_task("skills")
class Skills:
    """A balanced mixture: item i belongs to cell ``i mod k`` of the families, levels, languages.

    Args:
        split: ``train``, ``validation`` or ``test``.
        seed: Chooses the order of items within each cell.
        size: Number of items over all cells; 4096 for train, else 512, when None.
        families: Families that are mixed; None takes all.
        levels: Their levels, of 1, 2 and 3.
        languages: ``en``, ``zh`` or both; a family gives those that it is written in.

    Raises:
        ConfigError: A family, level or language is unknown or comes twice, or a family is in none
            of the languages.
    """

    name: str = "skills"
    columns: tuple[str, ...] = COLUMNS
    rewards: ClassVar[dict[str, Any]] = REWARDS

    def __init__(
        self,
        *,
        split: str = "train",
        seed: int = 0,
        size: int | None = None,
        families: Sequence[str] | None = None,
        levels: Sequence[int] = (1,),
        languages: Sequence[str] = ("en",),
    ) -> None:
        self.split = check_split(split, SPLITS)
        self.seed = seed
        self.size = check_size(size, default=DEFAULT_SIZES[self.split])
        self.cells = _cells(families, levels, languages)
        each = -(-self.size // len(self.cells))
        self._tasks = [
            make_task(family, split=split, seed=seed, size=each, level=level, language=language)
            for level, language, family in self.cells
        ]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Instruction:
        index = check_index(index, self.size, self.name)
        within, cell = divmod(index, len(self._tasks))
        return self._tasks[cell][within]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the cells, the split, the seed and the size."""
        parts = [task.fingerprint for task in self._tasks]
        return fingerprint_of(name=self.name, parts=parts, size=self.size)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable


def _cells(
    families: Sequence[str] | None, levels: Sequence[int], languages: Sequence[str]
) -> list[tuple[int, str, str]]:
    """The level, language and family of each cell."""
    families = _distinct("families", tuple(SKILLS) if families is None else families)
    for family in families:
        if family not in SKILLS:
            raise ConfigError(unknown_name("family", str(family), SKILLS))
    levels = [check_level(level) for level in _distinct("levels", levels)]
    known = sorted({language for written in SKILLS.values() for language in written})
    for language in _distinct("languages", languages):
        if language not in known:
            raise ConfigError(unknown_name("language", str(language), known))
    for family in families:
        if not set(languages) & set(SKILLS[family]):
            raise ConfigError(
                f"family {family!r} is written in {', '.join(SKILLS[family])}, not in "
                f"{', '.join(languages)}: leave it out of families, or add a language"
            )
    every = itertools.product(levels, languages, families)
    return [cell for cell in every if cell[1] in SKILLS[cell[2]]]


def _distinct(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if isinstance(values, str) or not values or len(set(values)) < len(values):
        raise ConfigError(f"{name} is {values!r}; expected a list of one or more, each once")
    return values

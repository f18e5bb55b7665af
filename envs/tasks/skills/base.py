"""The base of the skills: procedural families with levels, languages and rewards of their own."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

from instructrec.envs.tasks.procedural import Problem, ProceduralTask, fingerprint_of
from instructrec.errors import ConfigError, unknown_name

LEVELS = (1, 2, 3)
"""Levels of difficulty; 1 is the easiest."""

_PARTS: dict[str, Any] = {
    "exact_match": {"options": {"reference_column": "exact", "normalise": "numeric"}},
    "f1": {"options": {"reference_column": "overlap"}},
    "json_schema": {},
}
REWARDS: dict[str, Any] = {"skill": {"use": "weighted", "options": {"parts": _PARTS}}}
"""The reward of the skills: of its three parts exactly one applies to each instruction."""

COLUMNS = (
    *("reference", "family", "item", "level", "language"),
    *("exact", "overlap", "schema", "keep"),
)
"""Columns of every skill; of ``exact``, ``overlap`` and ``schema`` exactly one is not None."""

FRAMES = (
    "{Task}.",
    "Please {task}.",
    "Can you {task}?",
    "I want you to {task}.",
    "Your task is to {task}.",
    "Here is something to do: {task}.",
    "Write nothing but the result: {task}.",
    "Without any explanation, {task}.",
    "Do this for me: {task}.",
)
"""Ways to ask for what a verb phrase such as ``reverse the word cat`` says."""

_VERSION = 1
"""Part of every skill's fingerprint: raised when words, phrasings or the order of items change."""
_T = TypeVar("_T")


class Choices:
    """Reads the number of a variant as one choice after another.

    Two numbers below `ways` differ in at least one choice. How many options a choice has must not
    depend on the choices before it, nor on the key.
    """

    def __init__(self, number: int) -> None:
        self._rest = number
        self.ways = 1
        """How many different numbers the choices so far can tell apart."""

    def index(self, count: int) -> int:
        """Chooses one of ``range(count)``."""
        self._rest, chosen = divmod(self._rest, count)
        self.ways *= count
        return chosen

    def one(self, options: Sequence[_T]) -> _T:
        """Chooses one of the options."""
        return options[self.index(len(options))]

    def several(self, options: Sequence[_T], count: int) -> list[_T]:
        """Chooses ``count`` different options, in an order that is chosen too."""
        left = list(options)
        return [left.pop(self.index(len(left))) for _ in range(count)]

    def framed(self, task: str) -> str:
        """Asks for what a verb phrase says in one of the `FRAMES`."""
        return self.one(FRAMES).format(task=task, Task=task[0].upper() + task[1:])


@dataclass(frozen=True)
class Made:
    """An instruction with its answer, and how answers are judged."""

    prompt: str
    answer: str
    judged: Literal["exact", "overlap", "json"] = "exact"
    """By equality, by the F1 of tokens, or as JSON that says the same."""
    keep: tuple[str, ...] = ()
    """Words that the answer depends on: changes of the wording leave them alone."""
    schema: dict[str, Any] | None = None
    """JSON Schema of right answers; None: the answer's own value, and no other."""

    @property
    def columns(self) -> dict[str, Any]:
        """The answer in the column of its reward, None in the others."""
        columns: dict[str, Any] = {"exact": None, "overlap": None, "schema": None}
        if self.judged == "json":
            # As text: data files would add the keys of one schema to all others.
            columns["schema"] = json.dumps(self.schema or {"const": json.loads(self.answer)})
        else:
            columns[self.judged] = self.answer
        return columns


class Skill(ProceduralTask):
    """One family in one level and language.

    Args:
        split: ``train``, ``validation`` or ``test``.
        seed: Chooses the order of items and variants.
        size: Number of items, as for `ProceduralTask`.
        level: 1, 2 or 3; what they mean is said by each family.
        language: ``en``, or another one of the family's `languages`.

    Raises:
        ConfigError: An unknown split, level or language, or an impossible size.
    """

    family: ClassVar[str]
    """Name of the family, under which it is registered."""
    languages: ClassVar[tuple[str, ...]] = ("en",)
    """Languages that it is written in."""
    rewards: ClassVar[dict[str, Any]] = REWARDS
    """How answers are judged where nothing else is asked for."""
    columns: tuple[str, ...] = COLUMNS

    def __init__(
        self,
        *,
        split: str = "train",
        seed: int = 0,
        size: int | None = None,
        level: int = 1,
        language: str = "en",
    ) -> None:
        self.level, self.language = check_level(level), check_language(language, self.languages)
        self.name = f"{self.family}_{language}{level}"
        super().__init__(split=split, seed=seed, size=size)

    @abstractmethod
    def make(self, key: Any, choices: Choices) -> Made:
        """Makes the instruction about a key that the choices name."""

    def num_variants(self, key: Any) -> int:
        """Returns how many variants every key has."""
        return self._num_variants

    @cached_property
    def _num_variants(self) -> int:
        choices = Choices(0)
        self.make(self._keys[0], choices)
        return choices.ways

    def problem(self, key: Any, variant: int) -> Problem:
        """Returns a variant of a key."""
        made = self.make(key, Choices(variant))
        more = {"level": self.level, "language": self.language, "keep": list(made.keep)}
        return Problem(
            made.prompt, made.answer, str(key), self.family, more={**more, **made.columns}
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the items."""
        return fingerprint_of(base=super().fingerprint, skills=_VERSION)


def check_level(level: int) -> int:
    """Returns a level that is known; raises ConfigError for others."""
    if type(level) is not int or level not in LEVELS:
        raise ConfigError(f"level is {level!r}; expected one of {', '.join(map(str, LEVELS))}")
    return level


def check_language(language: str, known: Sequence[str]) -> str:
    """Returns a language that is known; raises ConfigError for others."""
    if language not in known:
        raise ConfigError(unknown_name("language", str(language), known))
    return language


def listed(words: Sequence[str]) -> str:
    """Returns ``"a, b and c"``."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]

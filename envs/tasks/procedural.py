"""The base of the built-in tasks: endless-looking but finite, indexable and seeded."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

from instructrec.envs.tasks.base import Instruction, check_index, check_split
from instructrec.envs.tasks.partition import SPLITS, permute
from instructrec.errors import ConfigError

DEFAULT_SIZES = {"train": 4096, "validation": 512, "test": 512}
"""Items per split when ``size`` is not given."""

VERSION = 4
"""Part of every fingerprint: raised when words, phrasings or the order of items change."""

_MOST_KEPT = 2**14  # problems, a few hundred bytes each


@dataclass(frozen=True)
class Problem:
    """A prompt with its one right answer."""

    prompt: str
    reference: str
    """The bare word or number, e.g. ``"animal"``."""
    item: str
    """The word or number that the problem is about: intervals are clustered by it."""
    family: str | None = None
    """What kind of problem it is; None is the task's name."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further columns, which the task lists in its ``columns``."""


class ProceduralTask(ABC):
    """A family of problems over keys (words or numbers), each in several variants.

    Item i is a pure function of (family, split, seed, i), found without making the items before
    it. Every round uses each key once, in a new order, with a variant that the key had not before:
    items cover the keys evenly, and no prompt comes twice within the first `num_unique` items.

    Args:
        split: ``train``, ``validation`` or ``test``. Which words and numbers belong to a split is
            fixed; the seed has no say in it.
        seed: Chooses the order of items and variants.
        size: Number of items. None takes `DEFAULT_SIZES`, or all prompts that differ where a family
            has fewer. A longer task starts with the same items.
    """

    name: str
    columns: tuple[str, ...] = ("reference", "family", "item")

    def __init__(self, *, split: str = "train", seed: int = 0, size: int | None = None) -> None:
        self.split = check_split(split, SPLITS)
        self.seed = seed
        self._keys = self.keys()
        self._found: dict[int, Problem] = {}  # finding one takes far longer than a step
        self.size = check_size(size, default=min(DEFAULT_SIZES[split], self.num_unique))

    @abstractmethod
    def keys(self) -> Sequence[Any]:
        """Returns the split's keys in a fixed order."""

    @abstractmethod
    def num_variants(self, key: Any) -> int:
        """Returns how many different prompts a key allows, at least 1."""

    @abstractmethod
    def problem(self, key: Any, variant: int) -> Problem:
        """Returns a key's variant; different variants have different prompts."""

    @cached_property
    def num_unique(self) -> int:
        """How many items from the first one on have prompts that all differ."""
        return len(self._keys) * min(self.num_variants(key) for key in self._keys)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Instruction:
        index = check_index(index, self.size, self.name)
        problem = self._found.get(index)
        if problem is None:
            problem = self._find(index)
            if len(self._found) < _MOST_KEPT and not problem.more:  # only what nobody can change
                self._found[index] = problem
        return Instruction(
            id=f"{self.name}-{self.split}-{self.seed}-{index}",
            prompt=problem.prompt,
            columns={
                "reference": problem.reference,
                "family": problem.family or self.name,
                "item": problem.item,
                **problem.more,
            },
        )

    def _find(self, index: int) -> Problem:
        round_, position = divmod(index, len(self._keys))
        stream = (self.name, self.split, self.seed)
        key = self._keys[permute(position, len(self._keys), *stream, "round", round_)]
        variants = self.num_variants(key)
        variant = permute(round_ % variants, variants, *stream, "key", key)
        return self.problem(key, variant)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the family, its version, split, seed and size."""
        return fingerprint_of(
            name=self.name, version=VERSION, split=self.split, seed=self.seed, size=self.size
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable: specs and spaces that hold it need no copy


def check_size(size: int | None, *, default: int) -> int:
    """Returns the number of items of a split, the default when None is given.

    Raises:
        ConfigError: The size is not a positive integer.
    """
    if size is None:
        return default
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"size is the number of items, an integer >= 1, not {size!r}")
    return size


def fingerprint_of(**facts: Any) -> str:
    """Returns the SHA-256 (hex) of plain values under names."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def choose_pair(index: int, words: Sequence[str]) -> tuple[str, str]:
    """Returns the index-th of the ``n (n - 1)`` ordered pairs of different words."""
    first, second = divmod(index, len(words) - 1)
    return words[first], words[second + (second >= first)]

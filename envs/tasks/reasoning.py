"""Problems of the reasoning-gym library: a hundred generators, each by its name."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, ClassVar, Self

import numpy as np

from instructrec.envs.tasks.base import Instruction, check_index, check_split, register_task
from instructrec.envs.tasks.partition import SPLITS, stable_hash
from instructrec.envs.tasks.procedural import DEFAULT_SIZES, check_size, fingerprint_of
from instructrec.errors import ConfigError, DataError
from instructrec.rewards.reasoning import (
    check_options,
    level_options,
    make_generator,
    pack,
    reseeded,
)

MADE_AT_ONCE = frozenset({"acre", "composite", "gsm_symbolic", "list_functions", "survo"})
"""Generators that draw from their seed when they are made, so that each item needs its own."""
HASH_DEPENDENT = frozenset(
    {
        *("composite", "isomorphic_strings", "knight_swap", "polynomial_multiplication"),
        *("ransom_note", "word_ladder"),
    }
)
"""Generators that walk through sets of strings: their items depend on Python's hash seed."""
ATTEMPTS = 200
"""Problems that are generated until one belongs to the split."""
VERSION = 1
"""Part of the fingerprint: raised when the choice of items changes."""

_SHARES = ("test", "validation", "train", "train", "train")
_MOST_KEPT = 4096  # problems, some of many kilobytes


@register_task("reasoning_gym")
class ReasoningGymTask:
    """Problems of one generator of reasoning-gym.

    Needs ``pip install 'instructrec[reasoning-gym]'``. Item i is a function of (generator, options,
    levels, seed, split, i): problems are generated until one belongs to the split, which the hash
    of its text decides (three fifths train, a fifth each validation and test), so that no prompt is
    in two splits, whatever the seeds. Generators with few different problems repeat them.

    Args:
        split: ``train``, ``validation`` or ``test``.
        generator: Its name in the library.
        seed: Chooses the items.
        size: Number of items; 4096 for train, else 512, when None. A longer task starts with the
            same items.
        levels: Levels of the library's own curriculum, counted from 0; item i has the level
            ``levels[i % len(levels)]``. None takes the options as they are.
        options: Options of the generator, which those of a level may not repeat.

    Raises:
        ConfigError: The library is not installed, an unknown generator, option or level, a value
            that the library refuses, or a generator whose items depend on Python's hash seed while
            that is not fixed.
    """

    name: str = "reasoning_gym"
    columns: tuple[str, ...] = ("reference", "family", "level", "entry")
    rewards: ClassVar[dict[str, Any]] = {"reasoning_gym": 1.0}

    def __init__(
        self,
        *,
        split: str = "train",
        generator: str = "chain_sum",
        seed: int = 0,
        size: int | None = None,
        levels: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        self.split = check_split(split, SPLITS)
        self.generator, self.seed = generator, seed
        self.size = check_size(size, default=DEFAULT_SIZES[self.split])
        check_options(generator, options)
        if generator in HASH_DEPENDENT and os.environ.get("PYTHONHASHSEED") != "0":
            raise ConfigError(
                f"generator {generator!r} walks through sets, so its items are others in every "
                "process: set PYTHONHASHSEED=0 in the environment before Python starts"
            )
        self._options = _per_level(generator, levels, options)
        self.levels = tuple(self._options)
        """Level of each item in turn; None where the options say it all."""
        self._found: dict[int, dict[str, Any]] = {}
        for values in self._options.values():
            make_generator(generator, values)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Instruction:
        index = check_index(index, self.size, self.name)
        labels = self.labels(index)
        entry = self._found.get(index)
        if entry is None:
            entry = self._find(index, labels["level"])
            if len(self._found) < _MOST_KEPT:
                self._found[index] = entry
        return Instruction(
            id=f"{self.generator}-{self.split}-{self.seed}-{index}",
            prompt=entry["prompt"],
            columns={"reference": entry["reference"], **labels, "entry": entry["entry"]},
        )

    def labels(self, index: int) -> dict[str, Any]:
        """Returns the columns of an item that are known before it is generated."""
        return {"family": self.generator, "level": self.levels[index % len(self.levels)]}

    def _find(self, index: int, level: int | None) -> dict[str, Any]:
        """Generates the item's problem."""
        options = self._options[level]
        fault: Exception | None = None
        for attempt in range(ATTEMPTS):
            place = (self.generator, self.split, self.seed, level, index, attempt)
            seed = stable_hash("reasoning_gym", *place) % 2**31
            try:
                entry = _generate(self.generator, options, seed)
            except Exception as error:  # some seeds are too much for some generators
                fault = error
                continue
            if _SHARES[stable_hash(entry["question"]) % len(_SHARES)] == self.split:
                reference = entry["answer"]
                return {
                    "prompt": entry["question"],
                    "reference": None if reference is None else str(reference),
                    "entry": pack(self.generator, options, entry),
                }
        raise DataError(
            f"generator {self.generator!r} with {options} gave no problem for the split "
            f"{self.split!r} in {ATTEMPTS} attempts: it "
            + (f"raised {fault!r}" if fault else "has too few different ones")
        ) from fault

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the library's release, the options, the split, the seed and the size."""
        from importlib.metadata import version

        return fingerprint_of(
            name=self.name,
            version=VERSION,
            library=version("reasoning-gym"),
            generator=self.generator,
            options=[[level, values] for level, values in self._options.items()],
            split=self.split,
            seed=self.seed,
            size=self.size,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable


def _per_level(
    generator: str, levels: Sequence[int] | None, options: Mapping[str, Any]
) -> dict[int | None, dict[str, Any]]:
    """Level -> options."""
    if levels is None:
        return {None: dict(options)}
    if isinstance(levels, str) or not levels or len(set(levels)) < len(levels):
        raise ConfigError(f"levels is {levels!r}; expected a list of one or more, each once")
    return {level: level_options(generator, level, options) for level in levels}


def _generate(generator: str, options: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Returns the library's first item of a seed."""
    with _own_generators(seed):
        if generator in MADE_AT_ONCE:
            return make_generator(generator, options, seed)[0]
        return reseeded(make_generator(generator, options), seed)[0]


@contextmanager
def _own_generators(seed: int) -> Iterator[None]:
    """Seeds the global generators and puts them back: a few problems draw from them.

    What a problem's code prints is dropped: it would stand in the output of a command.
    """
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])

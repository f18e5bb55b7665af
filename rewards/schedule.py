"""Weights that change while a run goes on: straight lines between points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructrec.errors import ConfigError


@dataclass(frozen=True)
class WeightSchedule:
    """A weight as a function of the update: linear between points, constant outside them."""

    points: tuple[tuple[int, float], ...]
    """(update, weight), updates ascending; the first update of a run is 1."""

    def at(self, update: float) -> float:
        """Returns the weight in an update."""
        updates, weights = zip(*self.points, strict=True)
        return float(np.interp(update, updates, weights))

    @property
    def changes(self) -> bool:
        """Whether it depends on the update."""
        return len(self.points) > 1

    @property
    def last(self) -> float:
        """The weight that it ends with, by which evaluations are weighed."""
        return self.points[-1][1]

    def value(self) -> float | dict[int, float]:
        """What ``parse_weight`` reads: a number where nothing changes, else a mapping."""
        return dict(self.points) if self.changes else self.last

    def __str__(self) -> str:
        if not self.changes:
            return f"{self.last:g}"
        return f"({', '.join(f'{weight:g} at {update}' for update, weight in self.points)})"


def parse_weight(name: str, weight: Any) -> WeightSchedule:
    """Reads the weight of a reward: a number, or a mapping from updates to numbers.

    Args:
        name: The reward's name, for the error.
        weight: For instance ``0.5``, or ``{1: 0.0, 20: 1.0}`` (keys may be strings of digits).

    Raises:
        ConfigError: It is neither, or a number is not finite.
    """
    points = weight if isinstance(weight, Mapping) else {1: weight}
    read = {_update(key): value for key, value in points.items()}
    usable = len(read) == len(points) and all(
        update is not None and _is_number(value) for update, value in read.items()
    )
    if not read or not usable:
        raise ConfigError(
            f"rewards.{name}.weight = {weight!r}: expected a finite number, or a mapping from "
            "updates to such numbers, e.g. {1: 0.0, 20: 1.0}."
        )
    known = {update: float(value) for update, value in read.items() if update is not None}
    return WeightSchedule(tuple(sorted(known.items())))


def _update(key: Any) -> int | None:
    """The update that a key names: a whole number, as text too; None when it names none."""
    if isinstance(key, str) and key.isdecimal():
        return int(key)
    return key if isinstance(key, int) and not isinstance(key, bool) and key >= 0 else None


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)

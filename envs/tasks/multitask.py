"""Several tasks at once, by weight, with some held out for zero-shot evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from instructrec.envs.tasks.base import (
    Instruction,
    Task,
    check_index,
    check_split,
    default_rewards,
    labels_of,
    make_task,
    register_task,
)
from instructrec.envs.tasks.partition import SPLITS
from instructrec.envs.tasks.procedural import check_size, fingerprint_of
from instructrec.errors import ConfigError, did_you_mean

_KEYS = ("use", "options", "weight")
_DEFAULT = ("category", "arithmetic")


@register_task("mixture")
class Mixture:
    """A mixture of tasks; ``columns["task"]`` names the one that an item belongs to.

    Training takes items of task k in the share ``w_k^(1/T) / Σ_j w_j^(1/T)``, evenly spread, so
    that every stretch of the mixture has these shares. A task with fewer items than its share comes
    again from its first item. The other splits hold every item of every task once.

    Temperature as in Raffel et al. 2020, section 3.5.2 (https://arxiv.org/abs/1910.10683).

    Args:
        split: ``train``, ``validation`` or ``test``.
        tasks: Name -> weight of the task of that name, or a mapping with ``use`` (as for
            `make_task`; the name itself by default), ``options`` and ``weight``; or just names. A
            task without a weight has as its weight the number of its items.
        temperature: T above 0. 1 takes the weights as they are; the higher it is, the more equal
            are the shares.
        size: Items of the training split; None takes as many as the tasks have together.
        held_out: Names of tasks that training and validation do not hold: what the test split says
            of them is zero-shot.

    Raises:
        ConfigError: A task, key, weight or option is wrong, or nothing is left to train on.
        DataError: Data of a task cannot be used.
    """

    def __init__(
        self,
        *,
        split: str = "train",
        tasks: Mapping[str, Any] | Sequence[str] = _DEFAULT,
        temperature: float = 1.0,
        size: int | None = None,
        held_out: Sequence[str] = (),
    ) -> None:
        self.name = "mixture"
        self.split = check_split(split, SPLITS)
        self.held_out = tuple(held_out)
        parts = _read_parts(tasks)
        self.names = _seen(list(parts), self.held_out, split)
        self._tasks = [_make(name, parts[name], split) for name in self.names]
        sizes = np.array([len(task) for task in self._tasks])
        if split == "train":
            given = [parts[name]["weight"] for name in self.names]
            weights = [n if w is None else w for n, w in zip(sizes, given, strict=True)]
            shares = _shares(weights, temperature)
            counts = _counts(shares, check_size(size, default=int(sizes.sum())))
        else:
            counts = sizes
        self._parts, self._within = _spread(counts)
        self.columns = _columns(self._tasks)
        self.rewards = default_rewards(self._tasks[0])
        if any(default_rewards(task) != self.rewards for task in self._tasks):
            self.rewards = {"exact_match": 1.0}  # every reward must apply to every task

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Instruction:
        index = check_index(index, len(self), self.name)
        part = int(self._parts[index])
        task, name = self._tasks[part], self.names[part]
        again, place = divmod(int(self._within[index]), len(task))
        item = task[place]
        columns = {column: item.columns.get(column) for column in self.columns}
        columns |= {"task": name, "family": item.columns.get("family") or name}
        return replace(
            item, id=f"{name}:{item.id}" + (f"@{again}" if again else ""), columns=columns
        )

    def labels(self, index: int) -> Mapping[str, Any]:
        """Columns of an item as far as its task knows them without making it."""
        part = int(self._parts[index])
        task, name = self._tasks[part], self.names[part]
        known = labels_of(task, int(self._within[index]) % len(task))
        return {**known, "task": name, "family": known.get("family") or name}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the tasks, their shares and their order."""
        return fingerprint_of(
            names=self.names,
            tasks=[task.fingerprint for task in self._tasks],
            counts=np.bincount(self._parts, minlength=len(self._tasks)).tolist(),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable


def _read_parts(tasks: Mapping[str, Any] | Sequence[str]) -> dict[str, dict[str, Any]]:
    """Name -> use, options and weight."""
    named = isinstance(tasks, Mapping)
    if isinstance(tasks, str) or not tasks or (not named and len(set(tasks)) < len(tasks)):
        raise ConfigError(
            f"tasks is {tasks!r}; expected names with weights, e.g. {{'category': 2.0}}, or a list "
            "of names, each once"
        )
    given: dict[str, Any] = dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(tasks)
    return {name: _read_part(name, value) for name, value in given.items()}


def _read_part(name: str, value: Any) -> dict[str, Any]:
    settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
    for key in settings:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise ConfigError(f"tasks.{name} has no key {key!r}.{hint} Keys: {', '.join(_KEYS)}")
    weight = settings.get("weight")
    if weight is not None and (
        not isinstance(weight, int | float) or isinstance(weight, bool) or not weight > 0
    ):
        raise ConfigError(f"tasks.{name}: the weight is {weight!r}; expected a number above 0")
    return {"use": name, "options": {}, "weight": None} | settings


def _seen(names: list[str], held_out: tuple[str, ...], split: str) -> list[str]:
    """Names of the tasks that the split holds."""
    for name in held_out:
        if name not in names:
            hint = did_you_mean(name, names)
            raise ConfigError(f"held_out names {name!r}, which is not among the tasks.{hint}")
    left = [name for name in names if split == "test" or name not in held_out]
    if not left:
        raise ConfigError("every task is held out: expected one or more to train on")
    return left


def _make(name: str, part: Mapping[str, Any], split: str) -> Task:
    try:
        return make_task(part["use"], split=split, **part["options"])
    except ConfigError as error:
        raise ConfigError(f"tasks.{name}: {error}") from error


def _shares(weights: Sequence[float], temperature: float) -> np.ndarray:
    """(K,) shares ``w^(1/T)`` over their sum, computed from logarithms so that none overflows."""
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise ConfigError(f"temperature is {temperature!r}; expected a number above 0")
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature!r}; expected a number above 0")
    scaled = np.log(np.asarray(weights, dtype=np.float64)) / temperature
    powers = np.exp(scaled - scaled.max())
    return powers / powers.sum()


def _counts(shares: np.ndarray, size: int) -> np.ndarray:
    """(K,) whole numbers nearest to the shares of ``size`` that add up to it."""
    exact = shares * size
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")  # the largest remainders first
    counts[order[: size - counts.sum()]] += 1
    return counts


def _spread(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Task and position within it of each item, the tasks evenly spread over the whole."""
    parts = np.repeat(np.arange(len(counts)), counts)
    within = np.concatenate([np.arange(count) for count in counts])
    places = (within + 0.5) / counts[parts]
    order = np.argsort(places, kind="stable")
    return parts[order].astype(np.int32), within[order].astype(np.int64)


def _columns(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Columns of any of the tasks, then ``task`` and ``family``; None where a task has none."""
    names = dict.fromkeys(name for task in tasks for name in task.columns)
    return tuple(dict.fromkeys((*names, "family", "task")))

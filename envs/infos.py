"""The infos of B copies as one: an array for each entry, and a mask of the copies that have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_PLAIN_NUMBERS = (bool, int, float)


def add_info(batched: dict[str, Any], told: Mapping[str, Any], i: int, size: int) -> dict[str, Any]:
    """Adds what one copy tells, with the outcome of Gymnasium's ``VectorEnv._add_info``.

    Gymnasium makes a new array of B for every entry of every copy, which is B² work in a step.

    Args:
        batched: What the copies before it told; it is changed.
        told: Name -> value. Numbers go into an array of their type (that of the first copy that
            tells one), mappings into a batched info of their own, all else into an object array.
        i: The copy.
        size: B.

    Returns:
        ``batched``, with ``name`` and its mask ``_name`` for every entry.
    """
    for name, value in told.items():
        if name not in batched:
            nested = isinstance(value, dict) and name != "final_obs"
            batched[name] = {} if nested else _empty(name, value, size)
            batched["_" + name] = np.zeros(size, dtype=np.bool_)
        known = batched[name]
        if isinstance(known, dict):
            add_info(known, value, i, size)
        else:
            known[i] = value
        batched["_" + name][i] = True
    return batched


def _empty(name: str, value: Any, size: int) -> np.ndarray:
    """The array for values like this one."""
    if name != "final_obs":
        if type(value) in _PLAIN_NUMBERS or isinstance(value, np.number):
            return np.zeros(size, dtype=type(value))
        if isinstance(value, np.ndarray):
            return np.zeros((size, *value.shape), dtype=value.dtype)
    return np.full(size, None, dtype=object)

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
        known = batched.get(name)
        if isinstance(value, dict) and name != "final_obs":
            batched[name] = add_info({} if known is None else known, value, i, size)
        else:
            if known is None:
                known = batched[name] = _empty(name, value, size)
            known[i] = value
        mask = batched.get("_" + name)
        if mask is None:
            mask = batched["_" + name] = np.zeros(size, dtype=np.bool_)
        mask[i] = True
    return batched


def _empty(name: str, value: Any, size: int) -> np.ndarray:
    """The array for values like this one."""
    if name != "final_obs":
        if type(value) in _PLAIN_NUMBERS or isinstance(value, np.number):
            return np.zeros(size, dtype=type(value))
        if isinstance(value, np.ndarray):
            return np.zeros((size, *value.shape), dtype=value.dtype)
    return np.full(size, None, dtype=object)

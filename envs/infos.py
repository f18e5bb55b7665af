"""The infos of B copies as one: an array for each entry, and a mask of the copies that have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

_PLAIN_NUMBERS = (bool, int, float)


class InfoBatch:
    """Collects what copies tell; the outcome is that of Gymnasium's ``VectorEnv._add_info``.

    Gymnasium makes a new array of B for every entry of every copy, which is B² work in a step. Here
    values are kept in lists, and each array is made once, of all of them.

    Args:
        size: B.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._columns: dict[str, _Column] = {}

    def add(self, i: int, told: Mapping[str, Any]) -> None:
        """Adds what one copy tells.

        Args:
            i: The copy; it tells every entry once.
            told: Name -> value.
        """
        for name, value in told.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = _Column(name, value, self._size)
            column.copies.append(i)
            if column.nested is None:
                column.values.append(value)
            else:
                column.nested.add(i, value)

    def batched(self) -> dict[str, Any]:
        """Returns ``name`` and its mask ``_name`` for every entry, in the order first told.

        Numbers are in an array of their type (that of the first copy that told one), mappings in a
        batched info of their own, all else is in an object array.
        """
        info: dict[str, Any] = {}
        for name, column in self._columns.items():
            copies = np.array(column.copies, dtype=np.intp)
            info[name] = column.array(copies, self._size)
            info["_" + name] = np.zeros(self._size, dtype=np.bool_)
            info["_" + name][copies] = True
        return info


class _Column:
    """The values of one entry, and the copies that told them; those of mappings are nested."""

    __slots__ = ("copies", "name", "nested", "values")

    def __init__(self, name: str, first: Any, size: int) -> None:
        self.name, self.copies, self.values = name, list[int](), list[Any]()
        nests = isinstance(first, dict) and name != "final_obs"
        self.nested = InfoBatch(size) if nests else None

    def array(self, copies: np.ndarray, size: int) -> Any:
        """The array of B, or the batched info, of the values of these copies."""
        if self.nested is not None:
            return self.nested.batched()
        array, values = self._empty(self.values[0], size), self.values
        # Among objects a tuple is one object, not a row of them.
        objects = array.dtype == object
        array[copies] = np.fromiter(values, object, len(values)) if objects else values
        return array

    def _empty(self, value: Any, size: int) -> np.ndarray:
        """The array for values like this one."""
        if self.name != "final_obs":
            if type(value) in _PLAIN_NUMBERS or isinstance(value, np.number):
                return np.zeros(size, dtype=type(value))
            if isinstance(value, np.ndarray):
                return np.zeros((size, *value.shape), dtype=value.dtype)
        return np.full(size, None, dtype=object)

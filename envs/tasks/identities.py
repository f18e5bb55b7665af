"""Ids and copies among millions of rows, found by sorting hashes: 8 bytes a row, no table of texts.

Two different texts share a hash of 64 bits in a million rows with a probability of 3e-8.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from instructrec.envs.tasks.partition import stable_hash

_MADE_ID = re.compile(r"([0-9a-f]{16})(-\d+)?")


def id_hash(given: str | None, made: int) -> int:
    """Returns 64 bits that two rows with the same id share.

    Args:
        given: The row's own id. One that looks as if it had been made shares the bits of the rows
            whose id is made that way.
        made: What the row's id is made of when it has none.
    """
    if given is None:
        return made
    alike = _MADE_ID.fullmatch(given)
    return int(alike[1], 16) if alike else stable_hash("id", given)


def first_of_each(hashes: Any) -> Any:
    """Returns (N,) booleans: True where a hash is the first of its value."""
    first = np.ones(len(hashes), dtype=bool)
    order, begins = _sharing(hashes)
    first[order[~begins]] = False
    return first


def is_among(hashes: Any, others: Any) -> Any:
    """Returns (N,) booleans: True where a hash is one of the others."""
    others = np.sort(others)
    if not len(others):
        return np.zeros(len(hashes), dtype=bool)
    places = np.searchsorted(others, hashes)
    return others[np.minimum(places, len(others) - 1)] == hashes


def count_copies(hashes: Any, given: Any) -> tuple[Any, Any]:
    """Numbers the rows that share a hash.

    Args:
        hashes: (N,) hashes of ids.
        given: (N,) True where a row brought its id along.

    Returns:
        (N,) uint32: 1 for the first row with a hash, 2 for the next..., or None where all differ;
        and the indices, increasing, of rows whose hash is shared with a row that brought its id.
    """
    order, begins = _sharing(hashes)
    if not len(order):
        return None, order
    starts, group = np.flatnonzero(begins), np.cumsum(begins) - 1
    numbers = np.ones(len(hashes), dtype=np.uint32)
    numbers[order] = np.arange(len(order)) - starts[group] + 1
    suspect = np.logical_or.reduceat(given[order], starts)
    return numbers, np.sort(order[suspect[group]])


def _sharing(hashes: Any) -> tuple[Any, Any]:
    """Returns the rows that share their hash, group by group, and True where a group begins."""
    ordered = np.sort(hashes)
    again = ordered[1:] == ordered[:-1]
    del ordered  # before the next array of this size
    if not again.any():
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=bool)
    repeats = np.concatenate([[False], again])
    shared = repeats | np.concatenate([again, [False]])
    return np.argsort(hashes, kind="stable")[shared], ~repeats[shared]

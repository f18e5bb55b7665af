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
    order, again = _sorted_copies(hashes)
    if order is not None:
        first[order[1:][again]] = False
    return first


def count_copies(hashes: Any, given: Any) -> tuple[Any, Any]:
    """Numbers the rows that share a hash.

    Args:
        hashes: (N,) hashes of ids.
        given: (N,) True where a row brought its id along.

    Returns:
        (N,) uint32: 1 for the first row with a hash, 2 for the next..., or None where all differ;
        and the indices, increasing, of rows whose hash is shared with a row that brought its id.
    """
    order, again = _sorted_copies(hashes)
    if order is None:
        return None, np.empty(0, dtype=np.int64)
    starts = np.flatnonzero(np.concatenate([[True], ~again]))
    group = np.cumsum(np.concatenate([[True], ~again])) - 1
    numbers = np.empty(len(hashes), dtype=np.uint32)
    numbers[order] = np.arange(len(hashes)) - starts[group] + 1
    sizes = np.diff(np.append(starts, len(hashes)))
    suspect = (sizes > 1) & np.logical_or.reduceat(given[order], starts)
    return numbers, np.sort(order[suspect[group]])


def _sorted_copies(hashes: Any) -> tuple[Any, Any]:
    """Returns the stable order of the hashes and, from the second on, which equal the one before.

    The order is None where all hashes differ, which a sort in place tells with half the memory.
    """
    ordered = np.sort(hashes)
    again = ordered[1:] == ordered[:-1]
    if not again.any():
        return None, again
    return np.argsort(hashes, kind="stable"), again

"""Fixed partitions and permutations made from hashes, so that they never depend on a run.

Words and numbers are dealt out to the splits once and for all: what a test item is about occurs in
no training item, whatever the family, the seed or the position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

SPLITS = ("train", "validation", "test")
"""The names of the splits of a task."""

_BLOCK = 100  # integers are dealt out per block of a hundred, evens and odds apart


def stable_hash(*parts: object) -> int:
    """Hashes strings and integers to 64 bits; equal on every machine and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def split_words(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Deals the words of a category out: about 70 % train, 10 % validation, 20 % test.

    Args:
        words: At least 40 different words; their order does not matter.

    Returns:
        Split -> words, alphabetically; the splits are disjoint and together hold every word.
    """
    ranked = sorted(words, key=lambda word: stable_hash("word", word))
    num_test, num_validation = round(0.21 * len(words)), round(0.11 * len(words))
    return {
        "test": tuple(sorted(ranked[:num_test])),
        "validation": tuple(sorted(ranked[num_test : num_test + num_validation])),
        "train": tuple(sorted(ranked[num_test + num_validation :])),
    }


@lru_cache(maxsize=256)
def numbers_of(split: str, low: int, high: int) -> tuple[int, ...]:
    """Returns the integers of ``[low, high]`` that belong to a split, in increasing order.

    In every block of a hundred integers (0-99, 100-199, …) the split is 60 train, 16 validation
    and 24 test, half of them even. Whether a number belongs to a split depends on nothing else.

    Args:
        split: One of `SPLITS`.
        low: Smallest integer, >= 0.
        high: Largest integer.
    """
    found: list[int] = []
    for block in range(low // _BLOCK, high // _BLOCK + 1):
        for parity in (0, 1):
            members = range(block * _BLOCK + parity, (block + 1) * _BLOCK, 2)
            ranked = sorted(members, key=lambda number: stable_hash("number", number))
            parts = {"test": ranked[:12], "validation": ranked[12:20], "train": ranked[20:]}
            found += [number for number in parts[split] if low <= number <= high]
    return tuple(sorted(found))


def permute(index: int, size: int, *key: object) -> int:
    """Maps an index through a pseudo-random bijection of ``range(size)``.

    A six-round Feistel network over the next even number of bits, walked until it falls inside
    the range (at most four steps on average): no table, so any item of a long sequence without
    repetition is found by itself.

    Args:
        index: In ``range(size)``.
        size: At least 1.
        key: Strings and integers that choose the bijection.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    salt = stable_hash("permute", *key)
    value = index
    while True:
        left, right = value >> half, value & mask
        for round_ in range(6):
            left, right = right, left ^ (stable_hash(salt, round_, right) & mask)
        value = left << half | right
        if value < size:
            return value

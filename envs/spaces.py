"""A text space for language models: every Unicode string up to a length.

Gymnasium's own ``Text`` checks strings against a set of characters. With all of Unicode in that
set the space takes seconds to build and megabytes to pickle, and it still accepts text that cannot
be encoded. Here the characters are an arithmetic range instead of a set.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any, SupportsIndex, cast

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import batch_differing_spaces, read_from_shared_memory

NUM_CODE_POINTS = 0x110000
"""How many code points Unicode has; a character's index in a flattened text is its code point."""

DEFAULT_MAX_LENGTH = 2**16
"""Default bound on the number of characters: a safety net, not a token budget."""

_SAMPLED_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n\té中😀"
_SAMPLED_LENGTH = 32  # sample() draws short strings: 65,536 random characters help no test


def is_unicode(text: str) -> bool:
    """Tells whether a string can be encoded as UTF-8: whether it has no lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class UnicodeText(spaces.Text):
    """Strings of ``min_length`` to ``max_length`` characters that can be encoded as UTF-8.

    Lone surrogates are no members, because no tokenizer, file or tracker can take them.
    ``isinstance(space, gymnasium.spaces.Text)`` holds, so flattening and batching work as usual.

    Args:
        max_length: Largest number of characters (code points).
        min_length: Smallest number of characters.
        seed: Seed of `sample`.
    """

    def __init__(
        self,
        max_length: int = DEFAULT_MAX_LENGTH,
        *,
        min_length: int = 0,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(max_length, min_length=min_length, charset=_SAMPLED_CHARACTERS, seed=seed)

    def contains(self, x: Any) -> bool:
        """Tells whether x is a string of an allowed length without lone surrogates."""
        if not isinstance(x, str) or not self.min_length <= len(x) <= self.max_length:
            return False
        return is_unicode(x)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draws a short string of letters, digits, punctuation, white space and a few others.

        Args:
            mask: None, or ``(length, None)`` to fix the length.
            probability: As mask.

        Raises:
            ValueError: Both are given, or one that restricts single characters.
        """
        if mask is not None and probability is not None:
            raise ValueError(f"give mask or probability, not both: {mask=}, {probability=}")
        length, characters = mask or probability or (None, None)
        if characters is not None:
            raise ValueError(
                "UnicodeText samples no character masks (one would have "
                f"{NUM_CODE_POINTS:,} entries); give (length, None), not {(length, characters)!r}"
            )
        if length is None:
            longest = min(self.max_length, self.min_length + _SAMPLED_LENGTH)
            length = int(self.np_random.integers(self.min_length, longest + 1))
        if not self.min_length <= length <= self.max_length:
            raise ValueError(f"length {length} is outside {self.min_length}..{self.max_length}")
        chosen = self.np_random.integers(len(_SAMPLED_CHARACTERS), size=length)
        return "".join(_SAMPLED_CHARACTERS[i] for i in chosen)

    @property
    def character_set(self) -> frozenset[str]:
        """All code points: has a length and membership, cannot be listed."""
        return cast("frozenset[str]", _CodePoints())

    @property
    def character_list(self) -> tuple[str, ...]:
        """All code points: indexable by code point."""
        return cast("tuple[str, ...]", _CodePoints())

    def character_index(self, char: str) -> np.int32:
        """Returns the code point of a character."""
        return np.int32(ord(char))

    @property
    def characters(self) -> str:
        """The characters that `sample` draws from."""
        return _SAMPLED_CHARACTERS

    def __repr__(self) -> str:
        return f"UnicodeText({self.min_length}, {self.max_length})"

    def __eq__(self, other: object, /) -> bool:
        return isinstance(other, UnicodeText) and (self.min_length, self.max_length) == (
            other.min_length,
            other.max_length,
        )

    __hash__ = None  # type: ignore[assignment]


class _CodePoints:
    """Every Unicode code point, as much of a set and of a list as Gymnasium needs."""

    def __len__(self) -> int:
        return NUM_CODE_POINTS

    def __contains__(self, character: object) -> bool:
        return isinstance(character, str) and len(character) == 1

    def __getitem__(self, code_point: int) -> str:
        if not 0 <= code_point < NUM_CODE_POINTS:
            raise IndexError(f"{code_point} is no Unicode code point")
        return chr(int(code_point))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CodePoints)

    __hash__ = None  # type: ignore[assignment]


def _batch_differing(text_spaces: Sequence[Space]) -> spaces.Tuple:
    """Batches spaces of different lengths."""
    seed = deepcopy(text_spaces[0].np_random)
    return spaces.Tuple([deepcopy(space) for space in text_spaces], seed=seed)


class _SharedTexts(tuple[str, ...]):
    """The texts that worker processes wrote last: reads the shared memory whenever it is used.

    Gymnasium's `AsyncVectorEnv` reads the memory once, when it is made, and hands out copies of
    what it got. An array shows what is in the memory now; a tuple of strings would stay as it was.
    A copy of this is a plain tuple, of the texts as they are then.
    """

    _codes: np.ndarray

    def __new__(cls, codes: np.ndarray) -> _SharedTexts:
        """Makes one over (n, max_length) code points, padded with `NUM_CODE_POINTS`."""
        texts = super().__new__(cls)
        texts._codes = codes
        return texts

    def __len__(self) -> int:
        return len(self._codes)

    def __iter__(self) -> Iterator[str]:
        return map(_decoded, self._codes)

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        return tuple(self)[index]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, (list(self),)


def _decoded(codes: np.ndarray) -> str:
    """The text of (max_length,) code points without their padding."""
    return codes[codes < NUM_CODE_POINTS].astype("<u4").tobytes().decode("utf-32-le")


def _read_shared(space: UnicodeText, memory: Any, n: int = 1) -> tuple[str, ...]:
    """Reads the texts that n workers wrote."""
    codes = np.frombuffer(memory.get_obj(), dtype=np.int32)
    return _SharedTexts(codes.reshape(n, space.max_length))


# Gymnasium looks the first one up by the exact type, the second by the closest.
batch_differing_spaces.register(cast("Any", UnicodeText))(_batch_differing)
read_from_shared_memory.register(UnicodeText)(_read_shared)

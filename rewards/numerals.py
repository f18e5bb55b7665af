"""Reading numbers out of text, exactly: as fractions, with the unit that follows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

DecimalMark = Literal[".", ","]
"""What stands before the decimals; the other one groups thousands."""

MAX_LENGTH = 300
"""Longest numeral that is read, in characters; beyond it arithmetic becomes an attack."""

_GROUPING = "'\u2019\u00a0\u2009\u202f"  # apostrophes and the spaces that typesetters put there


@dataclass(frozen=True)
class Number:
    """A number as it stands in a text."""

    value: Fraction
    """Its exact value; a percent sign does not change it."""
    unit: str
    """The word or percent sign right behind it in lower case, empty where there is none."""

    def __str__(self) -> str:
        return f"{self.value} {self.unit}".rstrip()


def last_number(text: str, decimal: DecimalMark = ".") -> Number | None:
    """Returns the last number of a text, None when there is none that can be read."""
    last = None
    for match in _matches(text, decimal):
        last = match
    return None if last is None else _number(last, decimal)


def first_number(text: str, decimal: DecimalMark = ".") -> Number | None:
    """Returns the first number of a text, None when there is none that can be read."""
    match = next(_matches(text, decimal), None)
    return None if match is None else _number(match, decimal)


def whole_number(text: str, decimal: DecimalMark = ".") -> Number | None:
    """Returns the number that a text consists of, None when there is anything beside it.

    White space around it and a full stop behind it do not count.
    """
    text = text.strip().removesuffix(".")
    if len(text) > 2 * MAX_LENGTH:
        return None
    match = _pattern(decimal).fullmatch(text)
    return None if match is None else _number(match, decimal)


def _matches(text: str, decimal: DecimalMark) -> Iterator[re.Match[str]]:
    return _pattern(decimal).finditer(text)


@lru_cache
def _pattern(decimal: DecimalMark) -> re.Pattern[str]:
    mark = re.escape(decimal)
    group = f"[{',' if decimal == '.' else '.'}{_GROUPING}]"
    integer = rf"(?:\d{{1,3}}(?:{group}\d{{3}})+(?!\d)|\d+)"
    number = rf"(?:{integer}(?:{mark}\d+)?|{mark}\d+)(?:[eE][+-]?\d{{1,3}}(?!\w))?"
    return re.compile(
        rf"""
        (?<![\w/])                     # neither inside a word nor a part of a date
        (?P<sign>[-+\u2212])? (?:[$€£¥]\s?)?
        (?: \\[dt]?frac\{{\s*(?P<tex_top>\d+)\s*\}}\{{\s*(?P<tex_bottom>\d+)\s*\}}
          | (?P<whole>\d+)\s(?P<part_top>\d+)/(?P<part_bottom>\d+)(?![\d/])
          | (?P<top>{number}) (?:\s?/\s?(?P<bottom>{number})(?!\d|\s?/))?
        )
        (?P<unit>\s?(?:\\?%|°?[^\W\d_]+(?:/[^\W\d_]+)?))?
        """,
        re.VERBOSE,
    )


def _number(match: re.Match[str], decimal: DecimalMark) -> Number | None:
    found = match.groupdict()
    parts = [found[name] for name in ("tex_top", "part_top", "top")]
    top = _value(next(part for part in parts if part is not None), decimal)
    bottom = _value(found["tex_bottom"] or found["part_bottom"] or found["bottom"] or "1", decimal)
    whole = _value(found["whole"] or "0", decimal)
    if top is None or not bottom or whole is None:
        return None
    value = whole + top / bottom
    unit = (found["unit"] or "").strip().lstrip("\\").casefold()
    return Number(-value if found["sign"] in ("-", "\u2212") else value, unit)


def _value(numeral: str, decimal: DecimalMark) -> Fraction | None:
    if len(numeral) > MAX_LENGTH:
        return None
    separators = (",." if decimal == "." else ".,") + _GROUPING
    plain = numeral.translate({ord(c): None for c in separators if c != decimal})
    return Fraction(plain.replace(decimal, "."))

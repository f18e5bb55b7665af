"""One row of a data file: how strictly it is read, and how it is quoted in messages."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from instructrec.errors import DataError

MAX_ROW_BYTES = 4 * 2**20
"""Longest row of a text file; a longer one is an error that is found without reading it whole."""


@dataclass(frozen=True)
class Row:
    """One row of a data file."""

    fields: dict[str, Any]
    """Column name -> value; None where the row has no value."""
    where: str
    """For error messages, e.g. ``"data.jsonl line 3"``."""


def excerpt(text: str, limit: int = 80) -> str:
    """Returns a text for a message: short, on one line, with invisible characters written out."""
    text = text.strip()
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return visible(text)


def visible(text: str) -> str:
    """Writes out what cannot be seen: controls, text direction, zero width, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def parse_json(text: str) -> Any:
    """Parses JSON; stricter than the standard library.

    Raises:
        DataError: Not valid JSON, a number that is not finite, a key that comes twice, or half of
            a surrogate pair. The message does not say where the text came from.
    """
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        place = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"not valid JSON: {reason}{place}; found {excerpt(text)}") from error
    if "\\ud" in text or "\\uD" in text:  # the only way to such a character in a UTF-8 file
        _refuse_lone_surrogates(value)
    return value


def parse_object(text: str) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        DataError: As for `parse_json`, or another kind of value.
    """
    return check_object(parse_json(text))


def check_object(value: Any) -> dict[str, Any]:
    """Returns the value if it is an object.

    Raises:
        DataError: It is something else.
    """
    if not isinstance(value, dict):
        raise DataError(
            f"found {kind_of(value)} {excerpt(json.dumps(value))}; expected an object such as "
            '{"prompt": "...", "reference": "..."}'
        )
    return value


def kind_of(value: Any) -> str:
    """Names the JSON type of a value, with its article."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")


def decode_utf8(content: bytes, start: int = 0) -> str:
    """Decodes the bytes of a file.

    Args:
        content: The bytes.
        start: Their offset in the file.

    Raises:
        DataError: They are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig" if start == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the byte {content[error.start : error.start + 1]!r} at offset "
            f"{start + error.start} is not UTF-8; save the file as UTF-8"
        ) from error


def texts_in(value: Any) -> Iterator[str]:
    """Yields every string of a JSON value, keys included."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            waiting += item


def _refuse_lone_surrogates(value: Any) -> None:
    for text in texts_in(value):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{excerpt(text)} holds half of a surrogate pair at character {error.start}, "
                "which cannot be encoded as UTF-8; remove or repair it"
            ) from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _without_copies(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} comes twice in one object")
    return fields


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_copies, parse_float=_finite, parse_constant=_refuse_constant
)

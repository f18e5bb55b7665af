"""Data that comes out of a sandbox: read strictly, rebuilt with exact types, and compared.

The text is written by a process that runs hostile code. So nothing in it is executed, its nesting
is limited, and what comes out is plain data of exactly Python's own types, whose ``==`` is theirs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

MOST_NESTED = 80
"""Most brackets inside one another in an answer."""
_PLAIN: dict[str, Callable[[list[Any]], Any]] = {
    "l": list,
    "t": tuple,
    "s": set,
    "z": frozenset,
}


class Malformed(ValueError):
    """The text is not what a sandbox writes."""


def read_answer(line: bytes) -> tuple[str, str, Any]:
    """Reads one line of a sandbox.

    Args:
        line: A JSON list of nonce, kind and value.

    Returns:
        Nonce, kind and the value, rebuilt.

    Raises:
        Malformed: It is anything else.
    """
    try:
        parsed = json.loads(line.decode("ascii"), parse_constant=_refuse, parse_float=_refuse)
        nonce, kind, value = parsed
        if type(parsed) is not list or type(nonce) is not str or type(kind) is not str:
            raise Malformed("an answer is a list of nonce, kind and value")
        return nonce, kind, _rebuilt(value, 0)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError) as error:
        raise Malformed(f"not an answer of a sandbox ({type(error).__name__})") from error


def same(value: Any, expected: Any, tolerance: float) -> bool:
    """Whether a value is the expected one: of the same types, and equal.

    Args:
        value: Plain data.
        expected: Plain data.
        tolerance: Largest difference of two floats, absolute or as a share of the larger one.
    """
    if type(value) is not type(expected):
        return False
    if type(value) is float:
        if math.isnan(expected):
            return math.isnan(value)
        return math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance)
    if type(value) in (list, tuple):
        return len(value) == len(expected) and all(
            same(v, e, tolerance) for v, e in zip(value, expected, strict=True)
        )
    if type(value) is dict:
        return _typed_keys(value) == _typed_keys(expected) and all(
            same(value[key], expected[key], tolerance) for key in expected
        )
    if type(value) in (set, frozenset):
        return _typed_keys(value) == _typed_keys(expected)
    return bool(value == expected)


def _typed_keys(keys: Any) -> set[tuple[str, Any]]:
    """Keys with their types: 1, 1.0 and True are equal to Python."""
    return {(repr(_types(key)), key) for key in keys}


def _types(value: Any) -> Any:
    return [type(value), *map(_types, value)] if type(value) is tuple else type(value)


def _refuse(text: str) -> Any:
    raise Malformed(f"{text[:20]!r} stands where no such number may be")


def _rebuilt(value: Any, depth: int) -> Any:
    if depth > MOST_NESTED:
        raise Malformed("nested too deeply")
    if type(value) is not list:
        if isinstance(value, dict):
            raise Malformed("an object")
        return value
    tag, *items = value
    if tag == "i":
        (digits,) = items
        return int(digits, 16)
    if tag == "f":
        (digits,) = items
        return float.fromhex(digits)
    if tag == "c":
        real, imaginary = items
        return complex(float.fromhex(real), float.fromhex(imaginary))
    if tag == "b":
        (digits,) = items
        return bytes.fromhex(digits)
    inner = [_rebuilt(item, depth + 1) for item in items]
    if tag == "d":
        return dict(zip(inner[::2], inner[1::2], strict=True))
    return _PLAIN[tag](inner)

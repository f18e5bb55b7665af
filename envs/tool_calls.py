"""Calls of tools in a text: how they are written, and reading them without ever raising.

Two ways are read, wherever they stand in an answer and as often as they do:

* ``<tool>name(arguments)</tool>``: short, for small models. Arguments are Python literals, by
  position or by name; what is no literal is taken as text, so that quotes may be left out.
* ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``: what the chat templates of many
  models have them write. ``parameters`` stands for ``arguments`` too, and a list for several calls.

The closing tag may be missing at the end of the answer, where a stop string has cut it off.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAX_CALL_CHARS = 2000
"""Longest text of one call."""

MAX_DEPTH = 32
"""Most levels of lists and objects in the arguments of a call."""

_SOURCE = "<call of a tool>"
# What a policy writes may make Python warn, e.g. of "\\d". Calls are read in threads too, where
# `warnings.catch_warnings` would disturb the filters of other threads.
warnings.filterwarnings("ignore", module=_SOURCE)

_TOO_DEEP = f"the call is nested too deeply, at most {MAX_DEPTH} levels are read"
_NEWLINES = re.compile(rb"\r\n|\r|\n")
_TAGS = re.compile(r"<(tool|tool_call)>(.*?)(?:</\1>|\Z)", re.DOTALL)
_NAMED = re.compile(r"\s*([A-Za-z_]\w*)\s*\((.*)\)\s*", re.DOTALL)
_ASSIGNED = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One call as it was written."""

    tool: str
    """Name of the tool; empty where none can be read."""
    arguments: str | Mapping[str, Any] = ""
    """What stands between the parentheses, or the JSON object."""
    error: str = ""
    """Why it cannot be read; empty where it can."""


@dataclass(frozen=True)
class Written:
    """An argument: its source, and its value where that is a literal."""

    source: str
    """As it was written."""
    value: Any
    """The literal; the source itself where it is none."""


def parse_calls(text: str) -> list[Call]:
    """Returns the calls in an answer, in order; none for an answer without a tag."""
    calls: list[Call] = []
    for match in _TAGS.finditer(text):
        tag, written = match.groups()
        if len(written) > MAX_CALL_CHARS:
            calls.append(Call("", error=f"the call is longer than {MAX_CALL_CHARS} characters"))
        elif tag == "tool":
            calls.append(_parse_named(written))
        else:
            calls += _parse_json(written)
    return calls


def read_arguments(text: str) -> tuple[list[Written], dict[str, Written]]:
    """Reads what stands between the parentheses of a call.

    Returns:
        The arguments by position and those by name.

    Raises:
        ValueError: A name is given twice, or ``*`` is used.
    """
    source = f"f({text})"
    node = parse_expression(source)
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return _split(text)
    if any(isinstance(a, ast.Starred) for a in node.args) or any(
        k.arg is None for k in node.keywords
    ):
        raise ValueError("* is not allowed among the arguments")
    encoded = source.encode()  # the offsets of a syntax tree count bytes
    lines = [0, *(match.end() for match in _NEWLINES.finditer(encoded))]

    def written(node: ast.expr) -> Written:
        begin, end = lines[node.lineno - 1], lines[(node.end_lineno or node.lineno) - 1]
        text = encoded[begin + node.col_offset : end + (node.end_col_offset or 0)].decode()
        return Written(text, _value(node, text))

    named: dict[str, Written] = {}
    for keyword in node.keywords:
        _add(named, str(keyword.arg), written(keyword.value))
    return [written(arg) for arg in node.args], named


def literal(text: str) -> Any:
    """Returns the value of a Python literal, or the text itself where it is none."""
    node = parse_expression(text.strip())
    return text if node is None else _value(node, text)


def _value(node: ast.expr, text: str) -> Any:
    try:
        return clean(ast.literal_eval(node))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text


def parse_expression(source: str) -> ast.expr | None:
    """Returns the syntax tree of a Python expression; None where the source is none."""
    try:
        return ast.parse(source, filename=_SOURCE, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parse_named(written: str) -> Call:
    if written.lstrip().startswith(("{", "[")):
        calls = _parse_json(written)
        return calls[0] if len(calls) == 1 else Call("", error="expected one call in this tag")
    match = _NAMED.fullmatch(written)
    if match is None:
        return Call("", error="expected <tool>name(arguments)</tool>")
    return Call(match[1], match[2])


def _parse_json(written: str) -> list[Call]:
    try:
        value = _load_json(written)
    except json.JSONDecodeError as error:
        return [Call("", error=f"the call is not JSON ({error.msg})")]
    except ValueError as error:
        return [Call("", error=str(error))]
    values = value if isinstance(value, list) else [value]
    return [_from_json(v) for v in values] or [Call("", error="there is no call in this tag")]


def _load_json(text: str) -> Any:
    try:
        return clean(json.loads(text))
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


def _from_json(value: Any) -> Call:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return Call("", error='expected {"name": ..., "arguments": {...}}')
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models write the arguments as a string that holds JSON
        try:
            arguments = _load_json(arguments)
        except json.JSONDecodeError:
            return Call(name, error="the arguments are not JSON")
        except ValueError as error:
            return Call(name, error=str(error))
    if not isinstance(arguments, dict):
        return Call(name, error="expected the arguments as a JSON object")
    return Call(name, arguments)


def clean(value: Any, depth: int = 0) -> Any:
    r"""The same value; escapes such as ``\ud800`` may have put lone surrogates into its texts.

    Raises:
        ValueError: It has more than `MAX_DEPTH` levels, which copying it would not survive.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth == MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
    if isinstance(value, Mapping):
        return {clean(key, depth + 1): clean(item, depth + 1) for key, item in value.items()}
    items = [clean(item, depth + 1) for item in value]
    return tuple(items) if isinstance(value, tuple) else items


def _split(text: str) -> tuple[list[Written], dict[str, Written]]:
    """Arguments that are no Python: text between commas, with or without a name."""
    placed: list[Written] = []
    named: dict[str, Written] = {}
    for piece in text.split(",") if text.strip() else []:
        if match := _ASSIGNED.fullmatch(piece):
            _add(named, match[1], Written(match[2].strip(), literal(match[2].strip())))
        else:
            placed.append(Written(piece.strip(), literal(piece.strip())))
    return placed, named


def _add(named: dict[str, Written], name: str, written: Written) -> None:
    if name in named:
        raise ValueError(f"the argument {name!r} is given twice")
    named[name] = written

"""Tools that come with the package, and finding tools by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from instructrec.envs.calculator import calculator
from instructrec.envs.episode import release
from instructrec.envs.tools import Tool
from instructrec.errors import ConfigError, DataError, did_you_mean, unknown_name
from instructrec.rewards.loading import load_object

ToolLike = str | Mapping[str, Any] | Callable[..., Any]
"""A tool, or what `make_tools` makes some from."""

_SUGGESTED = 1000  # entries among which a close one is looked for


def weekday(day: str) -> str:
    """Names the day of the week of a date.

    Args:
        day: A date such as 2024-02-29.
    """
    return _date(day).strftime("%A")


def days_between(start: str, end: str) -> int:
    """Counts the days from one date to another.

    Args:
        start: A date such as 2024-02-29.
        end: The other date.
    """
    return (_date(end) - _date(start)).days


def add_days(day: str, days: int) -> str:
    """Finds the date that is so many days after a date.

    Args:
        day: A date such as 2024-02-29.
        days: How many days; negative for earlier dates.
    """
    try:
        return (_date(day) + timedelta(days=days)).isoformat()
    except OverflowError:
        raise ValueError("that date is out of range") from None


def lookup(
    entries: Mapping[str, str] | None = None, file: str | None = None, name: str = "lookup"
) -> Callable[[str], str]:
    """Makes a tool that looks a term up in a dictionary or knowledge base.

    Args:
        entries: Term -> what is known of it.
        file: JSON file with such an object, instead of entries.
        name: What the tool is called.

    Raises:
        ConfigError: Neither is given, or both, or the name is none.
        DataError: The file cannot be read, or holds something else.
    """
    if (entries is None) == (file is None) or not name.isidentifier():
        raise ConfigError(
            f"tool lookup: entries {'missing' if entries is None else 'given'}, file = {file!r}, "
            f"name = {name!r}; expected one of entries and file, and a name like 'lookup'."
        )
    known = _read_entries(file) if file is not None else entries
    folded = {_fold(term): str(text) for term, text in (known or {}).items()}

    def look_up(term: str) -> str:
        """Looks a term up.

        Args:
            term: What to look up.
        """
        if _fold(term) not in folded:
            near = did_you_mean(_fold(term), list(folded)[:_SUGGESTED])
            raise ValueError(f"there is no entry {term[:80]!r}.{near}")
        return folded[_fold(term)]

    look_up.__name__ = look_up.__qualname__ = name
    return look_up


_TOOLS: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "calculator": (calculator,),
    "calendar": (weekday, days_between, add_days),
    "weekday": (weekday,),
    "days_between": (days_between,),
    "add_days": (add_days,),
}
_FACTORIES: Mapping[str, Callable[..., Any]] = {"lookup": lookup}


def make_tools(tools: str | Sequence[ToolLike]) -> dict[str, Tool]:
    """Makes tools.

    Args:
        tools: Each a name (``calculator``, ``calendar``, which is three tools, or one of these),
            a function, ``module:function``, ``file.py:function``, or ``{"use": ..., "options":
            {...}}`` with a function that is called with the options and returns the tool
            (``lookup`` is one).

    Returns:
        Name -> tool.

    Raises:
        ConfigError: A tool is unknown, cannot be used, or has the name of another.
        DataError: The data of a tool cannot be used.
    """
    tools = release(tools)
    given = [tools] if isinstance(tools, str | Mapping) or callable(tools) else list(tools)
    made: dict[str, Tool] = {}
    for spec in given:
        for function in _functions(spec):
            tool = function if isinstance(function, Tool) else Tool(function)
            if tool.name in made:
                raise ConfigError(f"tools: two are called {tool.name!r}; rename one of them.")
            made[tool.name] = tool
    if not made:
        raise ConfigError("tools is empty: expected at least one, e.g. 'calculator'.")
    return made


def _functions(spec: ToolLike | Tool) -> Sequence[Callable[..., Any] | Tool]:
    if isinstance(spec, Mapping):
        unknown = sorted(set(spec) - {"use", "options"})
        if unknown or "use" not in spec:
            raise ConfigError(f"tool {dict(spec)!r}: expected the keys 'use' and 'options'.")
        return [_built(spec["use"], dict(spec.get("options") or {}))]
    if isinstance(spec, str):
        if ":" in spec:
            return [load_object(spec)]
        if spec in _FACTORIES:
            return [_built(spec, {})]
        if spec not in _TOOLS:
            raise ConfigError(
                unknown_name("tool", spec, [*_TOOLS, *_FACTORIES])
                + " Your own is given as 'module:function' or 'file.py:function'."
            )
        return _TOOLS[spec]
    return [spec]


def _built(use: Any, options: dict[str, Any]) -> Callable[..., Any]:
    """The tool that a factory makes with its options."""
    if not (isinstance(use, str) or callable(use)):
        raise ConfigError(
            f"tool use: {use!r} is neither a name nor a function: expected a function that makes a "
            f"tool, or one of {', '.join(_FACTORIES)}."
        )
    factory: Any = _FACTORIES.get(use) if isinstance(use, str) else use
    if factory is None and ":" not in use:
        raise ConfigError(unknown_name("tool with options", use, _FACTORIES))
    factory = factory or load_object(use)
    try:
        made: Callable[..., Any] = factory(**options)
    except TypeError as error:
        raise ConfigError(f"tool {use!r} with the options {options}: {error}.") from error
    return made


def _read_entries(file: str) -> Mapping[str, str]:
    try:
        known = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"tool lookup cannot read {file}: {error}.") from error
    if not isinstance(known, dict):
        raise DataError(f"{file} holds a {type(known).__name__}; expected a JSON object.")
    return known


def _fold(term: str) -> str:
    return " ".join(term.casefold().split())


def _date(text: str) -> date:
    try:
        return date.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no date; write it like 2024-02-29") from None

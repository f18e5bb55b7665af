"""What each registered reward is, from its signature: ``rewards show`` and the reference page.

``python -m instructrec.rewards.reference`` prints ``docs/rewards_reference.md``.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from instructrec.rewards.loading import load_object
from instructrec.rewards.options import EXTRAS, read_hints, read_parameters
from instructrec.rewards.registry import builtin_rewards, find_reward, spec_text

_SPECIAL = ("prompts", "completions", *EXTRAS)


@dataclass(frozen=True)
class Option:
    """One option of a reward."""

    name: str
    """Its name under ``options``."""
    kind: str
    """Its annotation, empty without one."""
    default: str
    """Its default as Python writes it; empty when it must be set."""

    def __str__(self) -> str:
        kind = f": {self.kind}" if self.kind else ""
        return f"{self.name}{kind}" + (f" = {self.default}" if self.default else " (required)")


@dataclass(frozen=True)
class Entry:
    """What a user of a reward wants to know."""

    name: str
    """What a configuration calls it."""
    summary: str
    """First line of its docstring."""
    text: str
    """The whole docstring."""
    range: str
    """Lowest and highest score, e.g. ``[0, 1]``; empty where none is declared."""
    columns: tuple[str, ...]
    """Columns that it needs."""
    options: tuple[Option, ...]
    """Its options."""
    format: str
    """``text`` or ``chat``: how it sees responses."""
    place: str
    """Where it is defined."""


def describe_reward(spec: str) -> Entry:
    """Reads what is known about a reward; it is imported, but not made.

    Args:
        spec: A registered name, ``module:attr`` or ``file.py:attr``.

    Raises:
        ConfigError: There is no such reward, or it does not import.
    """
    info = find_reward(spec)
    target: Any = load_object(info.target) if isinstance(info.target, str) else info.target
    made = inspect.isclass(target) or read_parameters(target, info.name).makes_reward
    text = inspect.getdoc(target) or ""
    limits = "" if info.range is None else f"[{info.range[0]:g}, {info.range[1]:g}]"
    place = info.target if isinstance(info.target, str) else spec_text(info.target)
    return Entry(
        name=info.name,
        summary=text.partition("\n")[0],
        text=text,
        range=limits,
        columns=(*_columns(target, info.name), *info.requires),
        options=tuple(_options(target, made)),
        format=info.format,
        place=place,
    )


def _columns(target: Any, name: str) -> tuple[str, ...]:
    if inspect.isclass(target):
        target = functools.partial(target.__call__, None)  # without self
    elif read_parameters(target, name).makes_reward:
        return ()  # known when the factory has made it
    return read_parameters(target, name).columns


def _options(target: Any, made: bool) -> list[Option]:
    found = []
    hints = read_hints(target)
    for parameter in inspect.signature(target).parameters.values():
        named = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        required = parameter.default is parameter.empty
        is_option = made or not required or parameter.kind is parameter.KEYWORD_ONLY
        if named and is_option and parameter.name not in _SPECIAL:
            kind = _kind(hints.get(parameter.name))
            default = "" if required else repr(parameter.default)
            found.append(Option(parameter.name, kind, default))
    return found


def _kind(hint: Any) -> str:
    """An annotation for people: the choices of a Literal, else the type."""
    if hint is None:
        return ""
    if hint is NoneType:
        return "None"
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " | ".join(_kind(choice) for choice in get_args(hint))
    return inspect.formatannotation(hint).replace("collections.abc.", "")


def markdown_page() -> str:
    """Returns the text of ``docs/rewards_reference.md``: the rewards that come with the package."""
    lines = [
        "# Reference of the built-in rewards",
        "",
        "`instructrec rewards show NAME` prints what stands here, and more. Scores lie in the",
        "range given; without one they have no fixed bounds. Columns are those of the data; the",
        "option `<column>_column` reads another one in its place. This page is generated:",
        "`python -m instructrec.rewards.reference > docs/rewards_reference.md`.",
        "",
        "| name | score | range | columns | options |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in builtin_rewards():
        entry = describe_reward(name)
        cells = [
            f"`{name}`",
            entry.summary,
            entry.range,
            ", ".join(f"`{column}`" for column in entry.columns),
            "<br>".join(f"`{option}`" for option in entry.options),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown_page(), end="")

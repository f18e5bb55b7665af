"""Settings with a few possible values: a field of the type ``Literal`` holds one of them.

The command line refuses anything else by itself. From Python nothing would, and the code that asks
for one value after another would silently take the last.
"""

from __future__ import annotations

import types
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from instructrec.errors import ConfigError, unknown_name


def check_choices(settings: Any, section: str = "") -> None:
    """Refuses a value that is not among those of its field.

    Looks at fields of the types ``Literal``, ``Literal | None`` and ``tuple[Literal, ...]``.

    Args:
        settings: A dataclass.
        section: What it is called in a recipe, e.g. ``"ppo"``; empty at the top.

    Raises:
        ConfigError: Names the field, the value and those that there are.
    """
    kind: Any = type(settings)
    for name, (known, is_tuple) in _choices(kind).items():
        given = getattr(settings, name)
        field = f"{section}.{name}" if section else name
        if is_tuple and not isinstance(given, list | tuple):
            raise ConfigError(f"{field} = {given!r}: expected a list of {', '.join(known)}.")
        for value in given if is_tuple else (given,):
            if value not in known:
                raise ConfigError(unknown_name(field, str(value), map(str, known)))


@cache
def _choices(kind: type) -> dict[str, tuple[tuple[Any, ...], bool]]:
    """Field -> its values, and whether it holds several of them."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        elements = get_args(hint)
        is_tuple = get_origin(hint) is tuple and elements[1:] == (...,)
        known = _values(elements[0] if is_tuple else hint)
        if known:
            found[name] = (known, is_tuple)
    return found


def _values(hint: Any) -> tuple[Any, ...]:
    """The values of ``Literal`` or ``Literal | None``; none for other types."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) not in (Union, types.UnionType):
        return ()
    parts = [(None,) if part is type(None) else _values(part) for part in get_args(hint)]
    return tuple(value for part in parts for value in part) if all(parts) else ()

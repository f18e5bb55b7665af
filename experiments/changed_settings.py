"""In which settings a run that goes on differs from how it was started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys: ``{"ppo": {"lam": 1}}`` -> ``{"ppo.lam": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def is_among(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted key is one of the names, or in a group, whose name ends in a dot."""
    return any(key.startswith(name) if name.endswith(".") else key == name for name in names)


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], may_change: Callable[[str], bool]
) -> list[str]:
    """Says what differs and must not: ``key: before -> now``, sorted.

    Args:
        before: Settings by dotted key.
        now: The same.
        may_change: Whether a key may differ.
    """
    return [
        f"{key}: {before.get(key)!r} -> {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not may_change(key)
    ]

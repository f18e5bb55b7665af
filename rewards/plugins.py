"""Rewards that installed packages bring along, by the entry-point group ``instructrec.rewards``.

A package names them in its ``pyproject.toml``::

    [project.entry-points."instructrec.rewards"]
    politeness = "their_package.rewards:politeness"

Nothing of the package is imported before one of its rewards is asked for by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata

from instructrec.errors import ConfigError

GROUP = "instructrec.rewards"
"""The entry-point group."""


@dataclass(frozen=True)
class Plugin:
    """One reward of an installed package."""

    name: str
    """What it is called."""
    target: str
    """Where it is, ``module:attr``."""
    package: str
    """The distribution that brings it."""


def list_plugins() -> list[str]:
    """Returns the names of all rewards of installed packages."""
    return list(_found())


def find_plugin(name: str) -> Plugin | None:
    """Returns the reward of an installed package that has this name, or None.

    Raises:
        ConfigError: Two packages bring different rewards of this name.
    """
    plugins = _found().get(name, ())
    if len({plugin.target for plugin in plugins}) > 1:
        places = " and ".join(f"{p.target} (package {p.package})" for p in plugins)
        raise ConfigError(
            f"two packages bring a reward named {name!r}: {places}. Name the one you mean by its "
            "place, module:attr, or uninstall the other package."
        )
    return plugins[0] if plugins else None


@cache
def _found() -> dict[str, tuple[Plugin, ...]]:
    found: dict[str, tuple[Plugin, ...]] = {}
    for entry in metadata.entry_points(group=GROUP):
        package = entry.dist.name if entry.dist is not None else "unknown"
        plugin = Plugin(entry.name, entry.value.replace(" ", ""), package)
        found[entry.name] = (*found.get(entry.name, ()), plugin)
    return found

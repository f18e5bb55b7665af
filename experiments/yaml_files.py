"""YAML that cannot do harm: values only, of a limited size, however it is abbreviated.

Tags that make objects are refused by the loaders themselves. What is left is size: aliases let 300
bytes stand for millions of values, so everything is counted as it would be written out in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from instructrec.errors import CheckpointError

MAX_BYTES = 2**20
"""Longest file or text of settings."""
MAX_NODES = 100_000
"""Most values of one text, aliases written out."""
MAX_DEPTH = 100
"""Deepest nesting; the loaders would use up the stack, and the C one would crash."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class TooMuchYaml(yaml.YAMLError):
    """A text of YAML stands for more than settings need."""


class NoSuchValue(yaml.YAMLError):
    """A text of YAML holds a value that there is not, such as the 99th of a month."""


def read_yaml(path: Path) -> Any:
    """Reads a file of settings.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is no UTF-8.
        yaml.YAMLError: It is no YAML, asks for objects, or is larger than settings are.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    _check_length(len(content))
    return parse_yaml(content.decode("utf-8"))


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the ``config.yaml`` of a run folder as plain values.

    Raises:
        CheckpointError: It is missing, or not what a run wrote.
    """
    file = folder / "config.yaml"
    try:
        values = read_yaml(file)
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}, no settings")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({' '.join(str(error).split())}): expected the settings that "
            "the run in this folder wrote at its start. Put the file back, or start under another "
            "name."
        ) from error
    return values


def parse_yaml(text: str) -> Any:
    """Parses settings.

    Raises:
        yaml.YAMLError: As for `read_yaml`.
    """
    check_size(text)
    with _values_that_exist():
        return yaml.safe_load(text)


def check_size(text: str) -> None:
    """Refuses a text that would cost more time or memory than settings need.

    Raises:
        TooMuchYaml: It is too long, stands for too many values, or contains itself.
        yaml.YAMLError: It is no YAML.
    """
    _check_length(len(text))
    sizes: dict[str | None, int | None] = {}  # of anchors; None while their value is still open
    open_values: list[list[Any]] = [[None, 0]]  # name and size, from the outermost
    for event in yaml.parse(text, Loader=_LOADER):  # no recursion: nesting costs no stack here
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 1)
            if size is None:
                raise TooMuchYaml("a value contains itself")
            open_values[-1][1] += size
        elif isinstance(event, yaml.ScalarEvent):
            open_values[-1][1] += 1
            sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes[event.anchor] = None
            open_values.append([event.anchor, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            name, size = open_values.pop()
            sizes[name] = size
            open_values[-1][1] += size
        if len(open_values) > MAX_DEPTH:
            raise TooMuchYaml(f"it is nested more than {MAX_DEPTH} deep")
        if open_values[-1][1] > MAX_NODES:
            raise TooMuchYaml(
                f"with its aliases written out it has more than {MAX_NODES} values, which no "
                "settings have"
            )


def limit_parser() -> None:
    """Makes the parser of the command line hold the same limits wherever it reads YAML."""
    inner = get_loader("yaml")

    def limited(text: str) -> Any:
        check_size(text)
        with _values_that_exist():
            return inner(text)

    set_loader("yaml", limited, exceptions=(yaml.YAMLError,))


@contextmanager
def _values_that_exist() -> Iterator[None]:
    """The loaders raise what Python raises for such values: errors of any kind, but not theirs."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise NoSuchValue(f"it holds a value that there is not: {error}") from error


def _check_length(length: int) -> None:
    if length > MAX_BYTES:
        raise TooMuchYaml(f"it is longer than {MAX_BYTES} characters, which no settings are")

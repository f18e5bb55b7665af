"""Kinds of rewording of one's own: functions from an instruction's text to other words for it."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.errors import ConfigError, DataError
from instructrec.rewards.loading import load_object, portable, split_spec

Transform = Callable[[str, np.random.Generator], str]
"""From a text and a generator of its own to another wording; the answer must stay right."""
_NAME = re.compile(r"[a-z0-9_]+")  # it becomes a part of file names and of names of metrics


class OwnWording:
    """A kind of rewording that is a function of one's own, called by the function's name.

    Args:
        given: The function, or ``module:attr`` or ``file.py:attr`` for it. The same text and
            generator must give the same wording, so that runs repeat.

    Raises:
        ConfigError: It does not exist, has no fit name, or does not take a text and a generator.
    """

    def __init__(self, given: str | Transform) -> None:
        self.given = given
        self.function: Transform = load_object(given) if isinstance(given, str) else given
        # The attribute's name and not the function's: what a factory made is called otherwise.
        called = split_spec(given)[1] if isinstance(given, str) else _name_of(given)
        self.name = called.rpartition(".")[2]
        self._check()
        self.identity = self._identity()

    def reword(self, text: str, generator: np.random.Generator, id: str) -> str:
        """Returns the text in other words.

        Args:
            text: The instruction.
            generator: Of this instruction alone.
            id: The instruction's id, for errors.

        Raises:
            DataError: The function raised, or returned no text.
        """
        try:
            found: Any = self.function(text, generator)
        except Exception as error:
            raise DataError(
                f"the augmentation {self._shown()} failed on instruction {id!r}: "
                f"{type(error).__name__}: {error}. Mend it, or have it return such a text as it is."
            ) from error
        if isinstance(found, str) and found.strip():
            return str(found)  # numpy has texts of its own
        raise DataError(
            f"the augmentation {self._shown()} made {str(found)[:80]!r} "
            f"({type(found).__name__}) of instruction {id!r}; expected a text that is not empty, "
            "the same one where there is nothing to change."
        )

    def _check(self) -> None:
        function: Any = self.function
        if not callable(function) or isinstance(function, type) or not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"augmentation {self.given!r}: expected a function with a name of lower-case "
                "letters, digits and underscores, which is the label of what it changes: "
                "def my_kind(text, rng) that returns a text."
            )
        try:
            inspect.signature(function).bind("", None)
            fits = not inspect.iscoroutinefunction(function)
        except TypeError:
            fits = False
        except ValueError:  # functions in C may have no signature
            fits = True
        if not fits:
            raise ConfigError(
                f"augmentation {self._shown()}: expected an ordinary function that is called with "
                "a text and a numpy.random.Generator: def my_kind(text, rng) that returns a text."
            )

    def _identity(self) -> list[str]:
        """What its wordings depend on: its name in its file, and what stands in that file.

        Not where the file lies: a run may be continued in another folder.
        """
        code: Any = self.function if inspect.isroutine(self.function) else type(self.function)
        files = [_source_file(code)]
        if isinstance(self.given, str) and (place := split_spec(self.given)[0]).endswith(".py"):
            files.append(Path(place).expanduser())  # it may only pass the function on
        sources = {hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f is not None}
        return [code.__qualname__, *(sorted(sources) or [_source_text(code)])]

    def _shown(self) -> str:
        place = f" ({self.given})" if isinstance(self.given, str) else ""
        return f"{self.name!r}{place}"

    def __reduce__(self) -> Any:
        """Only a file's path means anything in another process, not the module made of it."""
        return type(self), (self.given if isinstance(self.given, str) else portable(self.given),)


def _name_of(given: Any) -> str:
    name = getattr(given, "__name__", "")
    return name if isinstance(name, str) else ""


def _source_file(code: Any) -> Path | None:
    try:
        file = inspect.getsourcefile(code)
    except TypeError:  # written in C
        return None
    return Path(file) if file is not None and Path(file).is_file() else None


def _source_text(code: Any) -> str:
    """The text of a function without a file, such as one of a notebook; else where it is found."""
    try:
        return hashlib.sha256(inspect.getsource(code).encode()).hexdigest()
    except (OSError, TypeError):
        return f"{code.__module__}"

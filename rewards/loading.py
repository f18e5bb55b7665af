"""Getting an object out of ``module:attr`` or ``file.py:attr``.

A file is executed once per version of it: asking again gives the same objects, and a changed file
is loaded anew. Its module lives in ``sys.modules`` under a private name, because dataclasses and
pickle look there.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from instructrec.errors import ConfigError, did_you_mean

PRIVATE_PREFIX = "_instructrec_file_"
"""Modules loaded from a file by its path are called this and a hash of the path."""

_versions: dict[str, tuple[int, int]] = {}


def split_spec(spec: str) -> tuple[str, str]:
    """Splits ``place:attr`` at the last colon; raises ConfigError when there is none."""
    place, colon, attr = spec.rpartition(":")
    if colon and place and attr.replace(".", "").isidentifier():
        return place, attr
    raise ConfigError(
        f"{spec!r} does not say which object to take; expected 'module:attr' or 'file.py:attr', "
        f"e.g. {spec.rstrip(':') + ':my_reward'!r}."
    )


def load_object(spec: str) -> Any:
    """Imports ``module:attr`` or ``file.py:attr``.

    Raises:
        ConfigError: When the file or module does not exist, does not import, or has no such
            attribute; the message names what it does have.
    """
    place, attr = split_spec(spec)
    module = load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    value: Any = module
    for step in attr.split("."):
        if not hasattr(value, step):
            found = _public_callables(module)
            raise ConfigError(
                f"{place} has no {attr!r}.{did_you_mean(attr, found)} "
                f"It defines: {', '.join(found) or 'no functions or classes'}."
            )
        value = getattr(value, step)
    return value


def load_file(path: Path) -> ModuleType:
    """Executes a Python file as a module, or returns the module when this version is loaded.

    Its folder is importable while it runs, after everything that is installed.

    Raises:
        ConfigError: When there is no such file or running it raises.
    """
    full = path.expanduser().resolve()
    if not full.is_file():
        beside = sorted(p.name for p in full.parent.glob("*.py")) if full.parent.is_dir() else []
        raise ConfigError(
            f"no file {str(path)!r} (looked at {full}).{did_you_mean(full.name, beside)}"
            + (f" That folder holds: {', '.join(beside)}." if beside else "")
        )
    name = PRIVATE_PREFIX + hashlib.sha256(str(full).encode()).hexdigest()[:12]
    stat = full.stat()
    version = (stat.st_mtime_ns, stat.st_size)
    if name in sys.modules and _versions.get(name) == version:
        return sys.modules[name]
    known = _versions.get(name)
    _versions[name] = version  # set first: a file that asks for itself must not run for ever
    try:
        return _execute(name, full, shown=str(path))
    except ConfigError:
        if known is None:
            del _versions[name]
        else:
            _versions[name] = known
        raise


def portable(target: Any) -> Any:
    """Returns ``file.py:attr`` for an object that a file loaded by its path defines.

    Only that string means anything in another process; every other object is returned as it is.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "<")
    if isinstance(module, str) and module.startswith(PRIVATE_PREFIX) and "<" not in name:
        return f"{sys.modules[module].__file__}:{name}" if module in sys.modules else target
    return target


def _execute(name: str, full: Path, shown: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None and spec.loader is not None  # any .py file has a loader
    module = importlib.util.module_from_spec(spec)
    previous = sys.modules.get(name)
    folder = str(full.parent)
    sys.modules[name] = module
    sys.path.append(folder)
    try:
        # Compiled here and not by the loader: its byte-code cache knows whole seconds only and
        # would serve the old code to whoever edits a file twice in one second.
        exec(compile(full.read_bytes(), str(full), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        if previous is None:
            del sys.modules[name]
        else:
            sys.modules[name] = previous
        line = _line_in(error, str(full))
        raise ConfigError(
            f"{shown} does not import{f' (line {line})' if line else ''}: "
            f"{_cause(error)} Run `python {shown}` to see the whole trace."
        ) from error
    finally:
        sys.path.remove(folder)
    return module


def _load_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            guess = name.replace(".", "/") + ".py"
            hint = f" It is not installed; give a file by its path, e.g. {guess + ':my_reward'!r}."
        raise ConfigError(f"the module {name!r} does not import: {_cause(error)}{hint}") from error


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".") + "."


def _line_in(error: BaseException, filename: str) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == filename:
        return error.lineno
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == filename]
    return lines[-1] if lines else None


def _public_callables(module: ModuleType) -> list[str]:
    """Names of the functions and classes that a module defines (not what it imported)."""
    own = sorted(
        name
        for name, value in vars(module).items()
        if callable(value)
        and not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
    )
    # A package that only passes names on defines none itself.
    return own or sorted(name for name in dir(module) if not name.startswith("_"))

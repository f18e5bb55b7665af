"""Tools: typed Python functions that a policy may call, and what becomes of a call."""

from __future__ import annotations

import inspect
import json
import math
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from instructrec.envs.tool_calls import Written, literal, read_arguments
from instructrec.errors import ConfigError, unknown_name

_MAX_HUNG = 4  # calls of a tool that may hang at a time before it is asked no more
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Tool:
    """A function that a policy may call.

    Args:
        function: Has a docstring, and an annotation for each of its parameters. What it raises is
            told to the policy. It must not change anything: episodes share it.

    Raises:
        ConfigError: It is no such function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = str(getattr(function, "__name__", ""))
        self.parameters = _parameters(function, self.name)
        self.description = (inspect.getdoc(function) or "").partition("\n")[0].strip()
        if not self.name.isidentifier() or not self.description:
            raise ConfigError(
                f"tool {function!r}: expected a function with a name and a docstring, whose first "
                "line tells the policy what it does."
            )
        self._hung: list[threading.Thread] = []

    @property
    def signature(self) -> str:
        """Name and parameters, e.g. ``add_days(date: str, days: int)``."""
        shown = ", ".join(
            f"{p.name}: {_shown(p.annotation)}"
            + ("" if p.default is p.empty else f" = {p.default!r}")
            for p in self.parameters.values()
        )
        return f"{self.name}({shown})"

    @property
    def schema(self) -> dict[str, Any]:
        """Its JSON schema as chat templates take it, made by transformers from the docstring.

        Raises:
            ConfigError: The docstring does not describe every parameter under ``Args:``.
        """
        from transformers.utils import get_json_schema

        try:
            return dict(get_json_schema(self.function))
        except Exception as error:
            raise ConfigError(
                f"tool {self.name!r} has no JSON schema: {error}. Describe every parameter under "
                "'Args:' in its docstring, or let the policy see signatures."
            ) from error

    def bind(self, arguments: str | Mapping[str, Any]) -> dict[str, Any]:
        """Returns the keyword arguments of a call, each of its parameter's type.

        Args:
            arguments: What stands between the parentheses, or a JSON object.

        Raises:
            ValueError: They do not fit; the message is for the policy.
        """
        named: dict[str, Any] = {}
        if isinstance(arguments, str):
            placed, named = self._read(arguments)
            if len(placed) > len(self.parameters):
                raise ValueError(f"too many arguments, expected {self.signature}")
            for name, value in zip(self.parameters, placed, strict=False):
                if name in named:
                    raise ValueError(f"the argument {name!r} is given twice")
                named[name] = value
        else:
            named = dict(arguments)
        for name in named:
            if name not in self.parameters:
                raise ValueError(unknown_name("argument", str(name), self.parameters))
        missing = [n for n, p in self.parameters.items() if p.default is p.empty and n not in named]
        if missing:
            raise ValueError(f"{missing[0]!r} is missing, expected {self.signature}")
        return {n: _typed(n, v, self.parameters[n].annotation) for n, v in named.items()}

    def call(self, arguments: Mapping[str, Any], deadline_s: float, max_chars: int) -> str:
        """Returns what the function gives back, as text.

        Args:
            arguments: By name, see `bind`.
            deadline_s: Longest time, in seconds. A call that takes longer is given up; its thread
                stays behind until it returns.
            max_chars: Longest result; the rest is cut off.

        Raises:
            ValueError: The function raised, or took too long; the message is for the policy.
        """
        self._hung = [thread for thread in self._hung if thread.is_alive()]
        if len(self._hung) >= _MAX_HUNG:
            raise ValueError(f"{self.name} does not answer any more")
        outcome: list[tuple[bool, str]] = []

        def work() -> None:
            try:
                outcome.append((True, _cut(_text(self.function(**arguments)), max_chars)))
            except BaseException as error:  # also SystemExit: the policy is told of everything
                outcome.append((False, _cut(_told(error), max_chars)))

        thread = threading.Thread(target=work, name=f"tool-{self.name}", daemon=True)
        thread.start()
        thread.join(deadline_s)
        if not outcome:
            self._hung.append(thread)
            raise ValueError(f"{self.name} took longer than {deadline_s:g} seconds")
        good, text = outcome[0]
        if not good:
            raise ValueError(text)
        return text

    def _read(self, text: str) -> tuple[list[Any], dict[str, Any]]:
        """Arguments by position and by name; a single text may be written without quotes."""
        (first, *others) = self.parameters.values() or (None,)
        if first is not None and not others and first.annotation is str and text.strip():
            value = literal(text)
            if isinstance(value, str) and value != text:
                return [value], {}
            placed, named = read_arguments(text)
            return ([], named) if not placed and first.name in named else ([text.strip()], {})
        return read_arguments(text)

    def __repr__(self) -> str:
        return f"<tool {self.signature}>"


def _parameters(function: Callable[..., Any], name: str) -> dict[str, inspect.Parameter]:
    """Parameters by name, with their annotations resolved."""
    try:
        signature, hints = inspect.signature(function), get_type_hints(function)
    except (TypeError, ValueError, NameError) as error:
        raise ConfigError(
            f"tool {function!r} is no function with readable annotations ({error})."
        ) from error
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"tool {name!r} is async: expected an ordinary function.")
    for parameter in signature.parameters.values():
        known = parameter.name in hints and _is_known(hints[parameter.name])
        if parameter.kind not in _KINDS or not known:
            raise ConfigError(
                f"tool {name!r}, parameter {str(parameter)!r}: expected a named parameter of a "
                "type that a call can hold: str, int, float, bool, list, dict, Literal, None, Any, "
                "several of them, or lists and dicts of them."
            )
    return {n: p.replace(annotation=hints[n]) for n, p in signature.parameters.items()}


def _shown(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type)
        else str(annotation).replace("typing.", "")
    )


def _is_known(annotation: Any) -> bool:
    """Whether `_typed` can tell values of this type."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType, list, dict):
        return all(_is_known(option) for option in get_args(annotation))
    return origin is Literal or annotation in _TYPES


def _typed(name: str, given: Any, annotation: Any) -> Any:
    """A value of the annotated type; raises ValueError where it is none."""
    value = given.value if isinstance(given, Written) else given
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        # First what it is already: None is no text where there may be none, and 3 is no "3".
        for option in sorted(get_args(annotation), key=lambda kind: type(value) is not kind):
            try:
                return _typed(name, given, option)
            except ValueError:
                continue
    elif origin is Literal:
        for option in get_args(annotation):
            if option == value or str(option) == str(value):
                return option
    elif annotation is str:
        if isinstance(value, str):
            return value
        if isinstance(given, Written):
            return given.source  # a number that was meant as text, as it was written
        if isinstance(value, int | float):
            return str(value)
    elif annotation in _SCALARS:
        found = _SCALARS[annotation](value)
        if found is not None:
            return found
    elif annotation is Any:
        return value
    elif isinstance(value, origin or annotation):
        return _elements(name, value, get_args(annotation))
    shown = given.source if isinstance(given, Written) else str(given)
    raise ValueError(f"{name} = {shown[:80]}: expected {_shown(annotation)}")


def _elements(name: str, value: Any, types_: tuple[Any, ...]) -> Any:
    """A list or dict with elements of the annotated types, where there are any; all else as is."""
    if types_ and isinstance(value, list):
        return [_typed(f"{name}[{k}]", item, types_[0]) for k, item in enumerate(value)]
    if types_ and isinstance(value, dict):
        return {
            _typed(f"a key of {name}", key, types_[0]): _typed(f"{name}[{key!r}]", item, types_[1])
            for key, item in value.items()
        }
    return value


def _int(value: Any) -> int | None:
    number = _float(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return None
    return int(value) if number is not None and number == int(number) else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _bool(value: Any) -> bool | None:
    return {"true": True, "false": False}.get(str(value).lower())


_SCALARS: dict[Any, Callable[[Any], Any]] = {int: _int, float: _float, bool: _bool}
_TYPES = (str, *_SCALARS, list, dict, type(None), Any)


def _text(result: Any) -> str:
    if isinstance(result, dict | list | tuple):
        return json.dumps(result, ensure_ascii=False, default=str)
    return str(result)


def _told(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return text if text and isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _cut(text: str, max_chars: int) -> str:
    text = text[: max_chars + 1].encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= max_chars else text[:max_chars] + " [cut]"

"""Reading a function's signature: its columns, its options, and whether given options fit.

The rules: a parameter without default is a column of the data. A parameter with a default is an
option; a column of that name fills it too, unless it is keyword-only or its option is set. So an
option that must never be confused with a column stands after ``*``.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

from instructrec.errors import ConfigError, did_you_mean

_BATCH = ("prompts", "completions")
EXTRAS = {
    "completion_ids": "only a policy that produces token ids has it",
    "trainer_state": "only TRL's own trainers have it",
    "log_extra": "only TRL's own trainers have it",
    "log_metric": "only TRL's own trainers have it",
    "environments": "only TRL's own trainers have it",
}
"""Arguments that are neither options nor columns of the data -> who has them."""


@dataclass(frozen=True)
class Parameters:
    """What one callable takes."""

    names: tuple[str, ...]
    """Every parameter, ``**columns`` apart."""
    columns: tuple[str, ...]
    """Parameters without default that the data must fill."""
    optional: tuple[str, ...]
    """Parameters with a default that a column of the same name fills when there is one."""
    extras: tuple[str, ...]
    """Parameters without default that the policy or trainer must fill (``completion_ids``)."""
    takes_any: bool
    """Whether it has ``**columns``."""
    makes_reward: bool
    """Whether it sees no responses at all, so that calling it can only make the reward."""

    def wants(self, name: str) -> bool:
        """Whether a value of this name is passed on."""
        taken = name in self.columns or name in self.optional or name in _known(self.names)
        return taken or (self.takes_any and name not in self.names)


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name in (*_BATCH, *EXTRAS))


def read_parameters(function: Callable[..., Any], reward: str) -> Parameters:
    """Reads the signature of a callable (of its constructor, when it is a class).

    Raises:
        ConfigError: When it has positional-only parameters, which cannot be given by name.
    """
    try:
        everything = inspect.signature(function).parameters.values()
    except ValueError:  # some functions written in C tell nothing
        return Parameters((), (), (), (), takes_any=True, makes_reward=False)
    kinds = inspect.Parameter
    named = _named_parameters(function)
    fixed = [p.name for p in named if p.kind is kinds.POSITIONAL_ONLY]
    if fixed:
        raise ConfigError(
            f"reward {reward!r} has positional-only parameters ({', '.join(fixed)}); rewards are "
            "called by name, so take the '/' out of its signature."
        )
    special = (*_BATCH, *EXTRAS)
    names = tuple(p.name for p in named)
    takes_any = any(p.kind is kinds.VAR_KEYWORD for p in everything)
    return Parameters(
        names=names,
        columns=tuple(p.name for p in named if p.default is p.empty and p.name not in special),
        optional=tuple(
            p.name
            for p in named
            if p.default is not p.empty
            and p.kind is not kinds.KEYWORD_ONLY
            and p.name not in special
        ),
        extras=tuple(p.name for p in named if p.default is p.empty and p.name in EXTRAS),
        takes_any=takes_any,
        makes_reward=not takes_any and not {*_BATCH, "completion_ids"} & {*names},
    )


def bind(
    reward: str, function: Callable[..., Any], options: Mapping[str, Any], *, constructs: bool
) -> dict[str, Any]:
    """Checks options against a signature and returns them.

    Args:
        reward: Name of the reward, for the errors.
        function: The reward function, or the class or factory that makes it.
        options: Name -> value.
        constructs: Whether every parameter is an option (a class or factory).

    Raises:
        ConfigError: When an option does not exist, is missing, or has the wrong type.
    """
    named = {p.name: p for p in _named_parameters(function)}
    if constructs:
        known = named
    else:
        special = (*_BATCH, *EXTRAS)
        known = {
            k: p
            for k, p in named.items()
            if k not in special and (p.default is not p.empty or p.kind is p.KEYWORD_ONLY)
        }
    for name in options:
        if name not in known:
            raise ConfigError(
                f"reward {reward!r} has no option {name!r}.{did_you_mean(name, known)} "
                f"Options: {', '.join(known) or 'none'}."
            )
    missing = [
        k for k, p in known.items() if constructs and p.default is p.empty and k not in options
    ]
    if missing:
        raise ConfigError(_missing(reward, function, missing))
    hints = read_hints(function)
    for name, value in options.items():
        check_option(reward, name, value, hints.get(name, Any))
    return dict(options)


def _named_parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Every parameter but ``*args`` and ``**kwargs``; none when the function tells nothing."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return []
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _missing(reward: str, function: Callable[..., Any], missing: list[str]) -> str:
    needed = ", ".join(repr(name) for name in missing)
    if inspect.isclass(function):
        return f"reward {reward!r} needs the option {needed}; set it under options."
    return (
        f"reward {reward!r} reads no completions: its parameters without default are {needed}. A "
        "reward function looks like f(completions, reference, **columns) -> list of scores. If it "
        f"is a factory that makes the reward, set {needed} under options."
    )


def read_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a callable (of its constructor, when it is a class), by parameter."""
    target = function.__init__ if inspect.isclass(function) else function
    try:
        return typing.get_type_hints(target)
    except Exception:  # annotations that only a type checker can resolve: nothing to check against
        return {}


def check_option(
    reward: str, option: str, value: Any, hint: Any, *, at_least: float | None = None
) -> None:
    """Checks the value of an option.

    Args:
        reward: Name of the reward, for the error.
        option: Name of the option, for the error.
        value: What it was set to.
        hint: Its annotation, such as ``Literal["a", "b"]`` or ``int | None``.
        at_least: Lowest number that is allowed; None is not a number.

    Raises:
        ConfigError: When the value does not fit.
    """
    problem = _mismatch(value, hint)
    if problem:
        raise ConfigError(
            f"reward {reward!r}: option {option} = {value!r} ({type(value).__name__}); {problem}"
        )
    if at_least is not None and value is not None and not value >= at_least:
        raise ConfigError(
            f"reward {reward!r}: option {option} = {value!r}; expected at least {at_least:g}."
        )


def _mismatch(value: Any, hint: Any) -> str:
    """Says what was expected when a value does not fit a simple annotation, else an empty string.

    Only literals, str, bool, int, float and unions of these are judged.
    """
    origin = typing.get_origin(hint)
    if origin is Literal:
        choices = typing.get_args(hint)
        if value in choices:
            return ""
        near = did_you_mean(str(value), [str(c) for c in choices])
        return f"expected one of {', '.join(map(str, choices))}.{near}"
    if origin in (Union, types.UnionType):
        problems = [_mismatch(value, choice) for choice in typing.get_args(hint)]
        return "" if "" in problems else problems[0]
    if hint is type(None):
        return "" if value is None else "expected null."
    if hint in (str, bool, int, float):
        accepted = (int, float) if hint is float else (hint,)
        # bool is an int to Python, but `batch_size: true` is a mistake.
        if isinstance(value, accepted) and (hint is bool or not isinstance(value, bool)):
            return ""
        return f"expected {hint.__name__}."
    return ""

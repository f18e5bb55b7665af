"""Calling one reward function: which arguments it takes, its options, and what it may return.

``BoundReward`` puts one face on plain functions, async functions, classes and factories: it checks
options against the signature, hands over the columns that the function names, converts the
completions to the form that it wants, and refuses a result that is not one number per response.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.asynchronous import run_coroutine
from instructrec.errors import ConfigError, DataError, RewardError, did_you_mean
from instructrec.rewards.base import FailedScore, RewardInfo
from instructrec.rewards.loading import load_object, portable
from instructrec.rewards.options import EXTRAS, Parameters, bind, read_parameters
from instructrec.rewards.text import (
    completion_messages,
    completion_texts,
    prompt_messages,
    prompt_text,
)

_PLAIN = {float, type(None)}
COLUMN_SUFFIX = "_column"
"""``reference_column: answer`` feeds the column ``answer`` to the parameter ``reference``."""


class BoundReward:
    """A reward function with its options set, ready to be called by us or by TRL.

    Args:
        info: What is known about the function, class or factory, and where it is.
        options: Values of its options. ``<parameter>_column`` names the column that feeds a
            parameter, for data sets whose columns are called something else.

    Raises:
        ConfigError: When an option is unknown, missing, or not of the declared type.
    """

    def __init__(self, info: RewardInfo, options: Mapping[str, Any]) -> None:
        target = load_object(info.target) if isinstance(info.target, str) else info.target
        self.info = info
        self.options = dict(options)
        self.__name__ = info.name
        self.__doc__ = inspect.getdoc(target) or f"The reward {info.name}."
        self.function, self.parameters, self._bound, self._renames = _prepare(
            info, target, self.options
        )
        wanted = [n for n in (*self.parameters.columns, *info.requires) if n not in self._bound]
        # An optional parameter counts once somebody says which column feeds it.
        self._feeds = {name: name for name in wanted} | self._renames

    @property
    def required_columns(self) -> tuple[str, ...]:
        """Columns of the data that must be there, under the names that the data uses."""
        inner = getattr(self.function, "required_columns", ())
        return tuple(dict.fromkeys([*self._feeds.values(), *sorted(inner)]))

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Scores a batch; see ``RewardFunction``.

        Raises:
            DataError: When a column that the reward needs is missing.
            RewardError: When the result is not one number or None per response.
        """
        return check_scores(
            self.__name__, self.raw(prompts, completions, columns), len(completions)
        )

    def raw(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> Any:
        """Calls the function and returns whatever it returns; async results are waited for."""
        self.check_columns(columns)
        self.check_extras(columns)
        result = self.function(**self._arguments(prompts, completions, columns))
        return run_coroutine(result) if inspect.isawaitable(result) else result

    def used_columns(self, available: Mapping[str, Any]) -> list[str]:
        """Names of those of the given columns that the function is handed."""
        fed = set(self._renames.values())
        return [name for name in available if name in fed or self.parameters.wants(name)]

    def check_columns(self, available: Mapping[str, Any] | Sequence[str]) -> None:
        """Raises DataError when a column that the reward needs is not among ``available``."""
        for parameter, column in self._feeds.items():
            if column not in available:
                names = sorted(set(available) - set(EXTRAS))
                raise DataError(
                    f"reward {self.__name__!r} needs the column {column!r}, which the data lacks."
                    f"{did_you_mean(column, names)} Columns: {', '.join(names) or 'none'}. To read "
                    f"another one, set the reward's option {parameter}{COLUMN_SUFFIX}."
                )
        inner = getattr(self.function, "check_columns", None)
        if inner is not None:  # it knows them by the names of its own parameters
            inner([*available, *(p for p, column in self._renames.items() if column in available)])

    def check_extras(self, available: Mapping[str, Any]) -> None:
        """Raises DataError when it needs token ids or a trainer's objects that are not there."""
        for name in self.parameters.extras:
            if name not in available:
                raise DataError(
                    f"reward {self.__name__!r} needs {name!r}, which was not handed over: "
                    f"{EXTRAS[name]}."
                )
        inner = getattr(self.function, "check_extras", None)
        if inner is not None:
            inner(available)

    def last_truncated(self, size: int) -> list[bool] | None:
        """Which of ``size`` responses its model read only in part, in the call before.

        None for a function without the attribute ``last_truncated``, a list of one bool for each.
        """
        flags = getattr(self.function, "last_truncated", None)
        if flags is None:
            return None
        if len(flags) != size:  # it had nothing to read
            return [False] * size
        return [bool(flag) for flag in flags]

    def state_dict(self) -> dict[str, Any]:
        """State of a reward that keeps some (has ``state_dict`` itself); empty otherwise."""
        state = getattr(self.function, "state_dict", None)
        return dict(state()) if callable(state) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        if state:
            stateful: Any = self.function
            stateful.load_state_dict(state)

    def plain_options(self) -> dict[str, Any]:
        """The options as a configuration writes them.

        Raises:
            ConfigError: When one of them is a function that no other process can import.
        """
        plain = getattr(self.function, "plain_options", None)
        return {**self.options, **(plain() if plain is not None else {})}

    def identity(self) -> str:
        """What its scores depend on, the single response apart: hashes of code and options.

        That is the function or class, the version that it declares, the file that defines it, the
        options, and names, sizes and times of the files in the folder that its attribute
        ``identity_path`` names, where it has one (a model may be trained again in place). Scores
        that were kept under another identity are out of date.
        """
        code = self.function if inspect.isroutine(self.function) else type(self.function)
        try:
            file = inspect.getsourcefile(code)
            source = Path(file).read_bytes() if file else b""
        except (TypeError, OSError):
            source = b""
        facts: list[Any] = [
            f"{getattr(code, '__module__', '')}:{getattr(code, '__qualname__', '')}",
            self.info.version,
            self.info.format,
            json.dumps(self.options, sort_keys=True, default=repr),
            hashlib.sha256(source).hexdigest(),
        ]
        if (path := getattr(self.function, "identity_path", None)) is not None:
            facts.append(_files(Path(path)))
        if hasattr(self.function, "score_parts"):  # made of other rewards
            made: Any = self.function
            facts.append(made.identity())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def describe(self) -> str:
        """Returns the name and the options that were set, e.g. ``bleu(tokenize='char')``."""
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.__name__}({options})" if options else self.__name__

    def _arguments(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        chat = self.info.format == "chat"
        offered = dict(columns)
        offered |= {parameter: columns[column] for parameter, column in self._renames.items()}
        if self.parameters.wants("prompts"):
            offered["prompts"] = [(prompt_messages if chat else prompt_text)(p) for p in prompts]
        if self.parameters.wants("completions"):
            offered["completions"] = (
                [completion_messages(c) for c in completions]
                if chat
                else completion_texts(completions)
            )
        arguments = {key: value for key, value in offered.items() if self.parameters.wants(key)}
        return {**arguments, **self._bound}

    def __reduce__(self) -> tuple[Any, ...]:
        # Loaded objects stay behind: the receiver imports the function again by where it is from.
        info = replace(self.info, target=portable(self.info.target))
        return BoundReward, (info, self.options), self.state_dict() or None

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.load_state_dict(state)

    def __repr__(self) -> str:
        return f"<reward {self.describe()}>"


def _files(place: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of a file, or of each file of a folder; empty for neither."""
    found = sorted(place.iterdir()) if place.is_dir() else [place]
    stats = [(file.name, file.stat()) for file in found if file.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def check_scores(name: str, result: Any, expected: int) -> list[float | None]:
    """Checks the result of a reward function.

    Args:
        name: Of the reward, for the error.
        result: What it returned.
        expected: Number of responses it was given.

    Returns:
        One float (possibly NaN or infinite) or None per response.

    Raises:
        RewardError: When the result is not a list, tuple or 1-d array of that length, or an element
            is neither a number nor None.
    """
    values = result.tolist() if getattr(result, "ndim", 0) >= 1 else result
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"reward {name!r} returned {str(result)[:60]!r} ({type(result).__name__}); expected a "
            f"list of {expected} numbers or None, one per completion."
        )
    if len(values) != expected:
        raise RewardError(
            f"reward {name!r} returned {len(values)} scores for {expected} completions; expected "
            "exactly one per completion (None where the reward does not apply)."
        )
    if {*map(type, values)} <= _PLAIN:  # the usual case, and batches are large
        return list(values)
    return [_as_score(name, i, value) for i, value in enumerate(values)]


def _as_score(name: str, index: int, value: Any) -> float | None:
    if value is None or isinstance(value, FailedScore):
        return value
    is_text = isinstance(value, str)  # NumPy's texts can be asked for a number
    if hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0 and not is_text:
        try:
            return float(value)
        except OverflowError:  # an integer beyond the largest float
            return float(np.copysign(np.inf, 1 if value > 0 else -1))
        except (TypeError, ValueError):  # an array that holds a text, or a NaN that refuses
            pass
    raise RewardError(
        f"reward {name!r} returned {str(value)[:60]!r} ({type(value).__name__}) for completion "
        f"{index}; expected a number or None."
    )


def _prepare(
    info: RewardInfo, target: Callable[..., Any], options: Mapping[str, Any]
) -> tuple[Callable[..., Any], Parameters, dict[str, Any], dict[str, str]]:
    """Makes the callable reward: (function, its parameters, bound arguments, column renames)."""
    parameters = read_parameters(target, info.name)
    if inspect.isclass(target) or parameters.makes_reward:
        settings, columns = _split(options, parameters.names)
        arguments = bind(info.name, target, settings, constructs=True)
        try:
            function = target(**arguments)
        except SystemExit as error:
            raise ConfigError(
                f"reward {info.name!r}: making it called sys.exit({error}); expected a constructor "
                "that raises an error which says what is wrong."
            ) from error
        if not callable(function):
            raise ConfigError(
                f"reward {info.name!r}: calling {getattr(target, '__name__', target)} gave "
                f"{type(function).__name__}, which cannot be called; expected a reward function "
                "such as f(completions, **columns) -> list of scores."
            )
        parameters = read_parameters(function, info.name)
        bound: dict[str, Any] = {}
    else:
        function = target
        settings, columns = _split(options, parameters.names)
        bound = bind(info.name, target, settings, constructs=False)
        if (check := getattr(target, "check_options", None)) is not None:
            check(bound)  # a class does that in its constructor
    feeds = (*parameters.columns, *parameters.optional, *info.requires)
    for parameter, column in columns.items():
        if parameter not in feeds:
            raise ConfigError(
                f"reward {info.name!r} has no option {parameter + COLUMN_SUFFIX!r}: no parameter "
                f"{parameter!r} reads a column."
                f"{did_you_mean(parameter, feeds)} Columns it reads: {', '.join(feeds) or 'none'}."
            )
        if not isinstance(column, str):
            raise ConfigError(
                f"reward {info.name!r}: {parameter}{COLUMN_SUFFIX} = {column!r}; "
                "expected the name of a column."
            )
    return function, parameters, bound, columns


def _split(
    options: Mapping[str, Any], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Separates the options of the function from the ``<parameter>_column`` options."""
    columns = {k for k in options if k.endswith(COLUMN_SUFFIX) and k not in names}
    settings = {key: value for key, value in options.items() if key not in columns}
    return settings, {key.removesuffix(COLUMN_SUFFIX): options[key] for key in columns}

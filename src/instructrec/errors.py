"""The errors that a user meets.

One base class; each error also refines the standard-library error that it stands for, so that
``except ValueError`` keeps working. Each message says what was given, what was expected and what
to do. ``exit_code`` is what the command line returns for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InstructRecError(Exception):
    """Base class of every error that instructrec raises on purpose."""

    exit_code = 1


class ConfigError(InstructRecError, ValueError):
    """A setting, name or command-line argument is wrong."""

    exit_code = 2


class DataError(InstructRecError, ValueError):
    """A task, a data file or a row of it cannot be used."""

    exit_code = 3


class EmptySplitError(DataError):
    """A split of data has no rows."""


class PolicyError(InstructRecError, RuntimeError):
    """A model, tokenizer or adapter cannot be loaded or used."""

    exit_code = 4


class RewardError(InstructRecError, RuntimeError):
    """A reward function failed or broke its contract."""

    exit_code = 5


class SandboxError(InstructRecError, RuntimeError):
    """Isolated execution could not be set up."""

    exit_code = 6


class NumericsError(InstructRecError, ArithmeticError):
    """A loss, gradient or weight stopped being a finite number."""

    exit_code = 7


class NonFiniteLogitsError(NumericsError):
    """A policy gave a token a probability that is no number.

    Args:
        message: What happened.
        row: Place of the prompt among those that were to be answered, where it is known.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class CheckpointError(InstructRecError, RuntimeError):
    """A checkpoint or run folder cannot be read, written or continued."""

    exit_code = 8


class TrackingError(InstructRecError, RuntimeError):
    """Something that was asked of a tracking service could not be done; a run never meets it."""

    exit_code = 9


class HangError(InstructRecError, TimeoutError):
    """A run stood still for too long and was ended by its watch, which shows where it stood."""

    exit_code = 10


class ProcessError(InstructRecError, RuntimeError):
    """Another process of the run failed, so that this one cannot go on."""


class RunInterrupted(InstructRecError, RuntimeError):
    """The run was stopped from outside after its state had been saved; resume continues it."""

    exit_code = 75


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for a name that no registry holds.

    Args:
        kind: What the name should have named, e.g. ``"reward"``.
        name: What was given.
        known: The names that exist.
    """
    names = sorted(known)
    return f"unknown {kind} {name!r}.{did_you_mean(name, names)} Known: {', '.join(names)}."

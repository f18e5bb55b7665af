"""What went wrong without ending the run, told to whoever keeps the record.

A layer that meets a fault and goes on says so with ``note``; it does not know who listens. A run
writes what it hears to ``faults.jsonl``. Where nobody listens, a fault is a Python warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from instructrec.redaction import redacted

Boundary = Literal["reward", "numerics", "memory", "run"]
"""Where a fault arose; ``run`` is what ended a run."""

LONGEST = 200
"""Characters of a message that are kept: it may quote text of a model or of a server."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault at one place in one update."""

    boundary: Boundary
    """Where it arose."""
    kind: str
    """What it is, e.g. ``timeout`` or ``out_of_memory``."""
    name: str
    """What it happened to: the name of a reward, of a weight or of a part of the work."""
    message: str
    """A sentence; of several faults the first one's."""
    count: int = 1
    """How often it happened."""
    samples: tuple[str, ...] = ()
    """The first of the instructions that it concerns, by id."""

    def __post_init__(self) -> None:
        message = redacted(self.message)  # whole: half a key would not be known
        if len(message) > LONGEST:
            message = message[: LONGEST - 1] + "…"
        object.__setattr__(self, "message", message)


Listener = Callable[[Fault], None]
"""Receives every fault."""

_listeners: list[Listener] = []


def note(fault: Fault) -> None:
    """Tells everybody who listens of a fault; a warning where nobody does."""
    for listener in tuple(_listeners):
        listener(fault)
    if not _listeners:
        warnings.warn(fault.message, RuntimeWarning, stacklevel=2)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Tells the listener of every fault while the block lasts; blocks may be nested."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)

"""Named phases of the work, for whoever wants to know where the time goes.

Code says what it is doing with ``with phase("decode"):``. That costs next to nothing until a
benchmark listens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Listener = Callable[[str], AbstractContextManager[Any]]
"""Gets the name of a phase; the context that it returns is open while the phase lasts."""

_listener: Listener | None = None


def phase(name: str) -> AbstractContextManager[Any]:
    """Returns the context of a phase: that of the listener, or one that does nothing."""
    return nullcontext() if _listener is None else _listener(name)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tells the listener of every phase while the block lasts; blocks may be nested."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before

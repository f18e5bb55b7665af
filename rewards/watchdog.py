"""What is done about calls that hang: saying so, giving up waiting, and ending them where one can.

A thread cannot be ended from outside.
"""

from __future__ import annotations

import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_TICK = 0.2  # seconds between two looks
_lock = threading.Lock()
_awake = threading.Event()
_calls: dict[object, tuple[float, float, str]] = {}
_thread: threading.Thread | None = None


@contextmanager
def watching(what: str, seconds: float) -> Iterator[None]:
    """Reports on standard error, once, when the block takes longer than it should.

    Args:
        what: What is going on, e.g. ``"reward 'judge' on 64 responses"``.
        seconds: How long it may take.
    """
    token, now = object(), time.monotonic()
    with _lock:
        _calls[token] = (now + seconds, now, what)
        _start()
    _awake.set()
    try:
        yield
    finally:
        with _lock:
            _calls.pop(token, None)


class DeadlineError(BaseException):
    """A block did not end in time; no Exception, so that no reward takes it for one of its own."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Ends the block by an exception when it takes too long, where that is possible.

    It is in the main thread of a process, on systems with ``setitimer``, and as long as the block
    uses no alarm of its own; elsewhere the block runs for as long as it likes. An alarm that was
    set before, for instance by a test, is set again afterwards.

    Args:
        seconds: How long it may take.

    Raises:
        DeadlineError: It did not end.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise DeadlineError

    before, began = signal.signal(signal.SIGALRM, ring), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if left:
            left = max(left - (time.monotonic() - began), 0.001)
            signal.setitimer(signal.ITIMER_REAL, left, interval)


def within(seconds: float, work: Callable[[], T]) -> T:
    """Waits for work in a thread of its own, and no longer than it may take.

    Args:
        seconds: How long it may take.
        work: What is done. Where it takes longer its thread is left alone, and ends with the
            process at the latest.

    Returns:
        What it returned; what it raised is raised here.

    Raises:
        TimeoutError: It had not ended by then.
    """
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:  # of sys.exit, too: whoever waits is told of everything
            outcome.put((None, error))

    threading.Thread(target=run, name="deadline", daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"it took longer than {seconds:g} s") from None
    if error is not None:
        raise error
    done: T = result
    return done


def _start() -> None:
    """Starts the thread that looks; a forked child has the object, not the thread."""
    global _thread
    if _thread is None or not _thread.is_alive():
        _thread = threading.Thread(target=_look, name="reward-watchdog", daemon=True)
        _thread.start()


def _look() -> None:
    while True:
        _awake.wait()
        time.sleep(_TICK)
        now = time.monotonic()
        with _lock:
            late = [(token, *call[1:]) for token, call in _calls.items() if call[0] <= now]
            for token, _, _ in late:
                del _calls[token]
            if not _calls:
                _awake.clear()
        for _, began, what in late:
            print(
                f"instructrec: warning: {what}: no answer after {now - began:.0f} s. It cannot be "
                "ended in this process; with isolation: worker it would be.",
                file=sys.stderr,
                flush=True,
            )

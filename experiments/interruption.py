"""Stopping on request: the first signal asks, the second one insists."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Turns SIGINT and SIGTERM into a polite request, as long as somebody attends to it.

    Use it as a context manager. Outside ``attended`` the first signal raises KeyboardInterrupt
    at once; inside, it only makes ``requested`` true, and a second one raises.
    """

    def __init__(self) -> None:
        self.requested = False
        self._attended = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        # Handlers belong to the main thread; elsewhere the program around us decides.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    @contextmanager
    def attended(self) -> Iterator[None]:
        """While inside, somebody asks ``requested`` again and again and stops when it is true."""
        self._attended = True
        try:
            yield
        finally:
            self._attended = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested or not self._attended:
            self.requested = True
            raise KeyboardInterrupt(signal.Signals(number).name)
        self.requested = True
        print(
            "\nstopping after this update, with a checkpoint (once more: stop at once)",
            file=sys.stderr,
            flush=True,
        )

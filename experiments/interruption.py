"""Stopping on request: the first signal asks, the second one insists."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
_ASK_ALONE = ("SIGHUP", "SIGUSR1")
"""Those that never insist and may be ignored: of a terminal that closes, which says it twice, and
of a scheduler that announces the end (SLURM's ``--signal=USR1@120``)."""


class StopRequest:
    """Turns SIGINT, SIGTERM, SIGHUP and SIGUSR1 into a request while somebody attends to it.

    Use it as a context manager. Outside ``attended`` the first signal raises KeyboardInterrupt
    at once; inside, it only makes ``requested`` true, and a second one raises, but for SIGHUP and
    SIGUSR1. One of these that the program was told to ignore (``nohup``) stays ignored.
    """

    def __init__(self) -> None:
        self.requested = False
        self._attended = False
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        # Handlers belong to the main thread; elsewhere the program around us decides.
        if threading.current_thread() is threading.main_thread():
            for name in (name for name in _SIGNALS if hasattr(signal, name)):
                number = signal.Signals[name]
                if name not in _ASK_ALONE or signal.getsignal(number) != signal.SIG_IGN:
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
        name = signal.Signals(number).name
        if name == "SIGHUP":
            _leave_terminal()
        if name in _ASK_ALONE and self.requested:
            return
        if self.requested or not self._attended:
            self.requested = True
            raise KeyboardInterrupt(name)
        self.requested = True
        print(
            "\nstopping after this update, with a checkpoint (once more: stop at once)",
            file=sys.stderr,
            flush=True,
        )


def _leave_terminal() -> None:
    """Sends output that went to a terminal nowhere: it has gone, and writing to it would fail."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # the program may have been started without it
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

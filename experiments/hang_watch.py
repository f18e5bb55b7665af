"""Ends a run that stands still: first the stacks of all threads are written down, then it leaves.

A run shows that it is alive with every phase of its work. After ``seconds`` without one, what every
thread does is written to ``hang.txt`` in the run folder; after as long again the process ends with
the exit code of ``HangError``, its newest checkpoint untouched.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType

from instructrec.errors import HangError
from instructrec.phases import listening

_TICKS = 20
"""Looks of the watch in the time after which it speaks."""
_STDERR = 2
_PATIENCE = 5.0
"""Seconds for the record of the end: the disk may be what hangs."""


class HangWatch:
    """Watches a run; use it as a context manager.

    Time in which the whole process was stopped (Ctrl-Z, a laptop that slept) does not count. A
    thread inside of foreign code that never lets Python run keeps the watch from ending the
    process; the stacks are written all the same.

    Args:
        seconds: How long nothing may happen; 0 watches nothing.
        file: Where the stacks go.
        on_end: Called with a sentence before the process ends.
        leave: Ends the process.
    """

    def __init__(
        self,
        seconds: float,
        file: Path,
        on_end: Callable[[HangError], None],
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self.seconds, self.file = seconds, file
        self._on_end, self._leave = on_end, leave
        self._still, self._over = 0.0, threading.Event()
        self._doing = "nothing yet"
        self._open = ExitStack()

    def beat(self, doing: str) -> None:
        """Says that the run is alive, and what it begins to do."""
        self._still, self._doing = 0.0, doing

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.beat(name)
        yield
        self.beat(f"what follows {name}")

    def __enter__(self) -> HangWatch:
        if self.seconds:
            self._open.enter_context(listening(self._phase))
            threading.Thread(target=self._look, name="hang-watch", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._open.close()

    def _look(self) -> None:
        tick, shown, last = self.seconds / _TICKS, False, time.monotonic()
        while not self._over.wait(tick):
            # For a thread that keeps the interpreter: a timer in C, pushed back at every look.
            faulthandler.dump_traceback_later(2 * self.seconds, file=_STDERR)
            now = time.monotonic()
            self._still += min(now - last, 2 * tick)
            last = now
            if self._still < self.seconds:
                shown = False
            elif not shown:
                shown = True
                self._show()
            elif self._still >= 2 * self.seconds:
                self._end()
                break
        faulthandler.cancel_dump_traceback_later()

    def _show(self) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(f"{datetime.now():%F %T}  {self._sentence()}\n")
            file.flush()
            faulthandler.dump_traceback(file)
        print(f"instructrec: warning: {self._sentence()}", file=sys.stderr, flush=True)

    def _sentence(self) -> str:
        return (
            f"nothing has happened for {self._still:.0f} s (output.hang_s = {self.seconds:g}), the "
            f"last sign was {self._doing!r}. What every thread does stands in {self.file}"
        )

    def _end(self) -> None:
        error = HangError(f"{self._sentence()}. The newest checkpoint is whole: --resume goes on.")
        record = threading.Thread(target=self._on_end, args=(error,), daemon=True)
        record.start()
        record.join(_PATIENCE)
        print(f"instructrec: error: {error}", file=sys.stderr, flush=True)
        self._leave(error.exit_code)

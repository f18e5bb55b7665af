"""How the processes of a group end together when one of them fails.

The one that fails says so in the group's store, then closes its connections. The others notice at
the next thing that they do together, look up who went and why, and end with that. One voice tells
the story: the main process, and beside it whoever has a traceback to show.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from instructrec.errors import InstructRecError, ProcessError

TELLING = 600.0
"""Seconds that the main process gets to tell of an error before another one tells of its own."""
ALIKE = 1.0
"""Seconds that a process that failed gives the main one to fail alike, before it leaves it."""
HEARING = 5.0
"""Seconds that the main process gives the others to hear it, where the store goes with it."""
_NETWORK = ("gloo/transport", "nccl", "connect", "socket", "timed out", "timeout")
_FAILED, _TOLD, _HEARD = "instructrec/failed", "instructrec/told", "instructrec/heard/"


def portable(error: BaseException) -> tuple[type[BaseException], str]:
    """Class and message of an error, as another process can raise it; see ``relayed``."""
    if isinstance(error, InstructRecError | KeyboardInterrupt):
        return type(error), str(error)
    return ProcessError, f"{type(error).__name__}: {error}"


def relayed(kind: type[BaseException], message: str, number: int, count: int) -> BaseException:
    """The error of another process, as this one raises it.

    Args:
        kind: Its class as ``portable`` gives it.
        message: Its message.
        number: The process that it happened to.
        count: Number of processes.
    """
    where = f"{message} (process {number} of {count})"
    return kind(f"{where}; its traceback stands above." if kind is ProcessError else where)


class Ending:
    """What one process of a group tells the others of its end, and hears of theirs.

    Args:
        store: The group's key-value store.
        number: Number of this process.
        count: Number of processes.
    """

    def __init__(self, store: Any, number: int, count: int) -> None:
        self.store, self.number, self.count = store, number, count

    def cause(self, error: BaseException) -> BaseException:
        """Why something that the processes do together broke off: another one's failure.

        Args:
            error: What broke off raised here.

        Returns:
            The error of the process that failed first, to be raised here as well; a
            ``ProcessError`` where one has gone without a word; ``error`` where that is no reason.
        """
        if words := self._heard(_FAILED, ALIKE):
            number, kind, message = pickle.loads(words)
            return error if number == self.number else relayed(kind, message, number, self.count)
        if not any(word in str(error).lower() for word in _NETWORK):
            return error
        return ProcessError(
            f"another one of {self.count} processes has gone without a word ({_short(error)}): it "
            "was killed or has crashed. What the launcher says of it is the reason; signal 9 means "
            "most often that the machine was out of memory."
        )

    def of_main(self, error: BaseException, leave: Callable[[], None]) -> NoReturn:
        """Ends the main process with an error: tells it, and that it did.

        Args:
            error: Why it ends.
            leave: Closes the connections to the others.
        """
        if isinstance(error, ProcessError):
            self._heard(_FAILED, ALIKE)  # its traceback comes first
        else:
            self._announce(error)
        self._say(_TOLD, b"failed")
        leave()
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            end = time.monotonic() + HEARING
            for number in range(1, self.count):  # some of them may be busy, or gone
                self._heard(f"{_HEARD}{number}", end - time.monotonic())
        raise error

    def of_other(self, error: BaseException, leave: Callable[[], None]) -> NoReturn:
        """Ends another process with an error, in silence where the main one tells of it.

        Args:
            error: Why it ends.
            leave: Closes the connections to the others.
        """
        foreign = not isinstance(error, InstructRecError | KeyboardInterrupt)
        if foreign:
            sys.excepthook(type(error), error, error.__traceback__)
        self._announce(error)
        told = self._heard(_TOLD, ALIKE)
        leave()
        if not isinstance(error, KeyboardInterrupt):
            told = told or self._heard(_TOLD, TELLING)
        self._say(f"{_HEARD}{self.number}", b"yes")
        if foreign or (isinstance(error, InstructRecError) and told == b"failed"):
            raise SystemExit(getattr(error, "exit_code", 1)) from error
        raise error

    def well(self) -> None:
        """Says that the main process has ended, and that there is nothing to tell."""
        if self.number == 0:
            self._say(_TOLD, b"finished")

    def _announce(self, error: BaseException) -> None:
        """Takes down what happened here, unless somebody failed before."""
        if not self._heard(_FAILED, 0):
            self._say(_FAILED, pickle.dumps((self.number, *portable(error))))

    def _say(self, key: str, words: bytes) -> None:
        self._ask(lambda store: store.set(key, words))

    def _heard(self, key: str, patience: float) -> bytes:
        """What a process said under a key; empty when there is nothing for so many seconds."""
        end = time.monotonic() + patience
        # The store's own wait() prints a warning when nothing comes.
        while not self._ask(lambda store: store.check([key])):
            if self.store is None or time.monotonic() > end:
                return b""
            time.sleep(0.02)
        return bytes(self._ask(lambda store: store.get(key)) or b"")

    def _ask(self, question: Callable[[Any], Any]) -> Any:
        """What the store says; None from one that has gone, which is then left alone."""
        try:
            return None if self.store is None else question(self.store)
        except RuntimeError:
            self.store = None  # each further call would print a page
            return None


def _short(error: BaseException) -> str:
    """The first sentence of an error of the network, without the place in foreign sources."""
    text = str(error)
    text = text.partition("] ")[2] if text.startswith("[") else text
    return text.partition(". ")[0] or type(error).__name__

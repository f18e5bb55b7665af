"""A helper process that computes one answer at a time and is killed when it takes too long.

For work that cannot be interrupted from inside: a thread cannot be killed, and ``signal.alarm``
works in the main thread alone. The helper is a fresh interpreter, not a fork, so it holds nothing
of a model or of a GPU. It is started when it is first needed, and again after it was killed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import IO, Any

from instructrec.errors import ConfigError
from instructrec.rewards.base import FailedScore, Status

START_SECONDS = 120.0
"""Longest wait for a new process to be ready."""
MEMORY_BYTES = 4 * 2**30
"""Most address space of the process, where the system can limit it."""

_READY = "ready"
# What an interpreter needs to start; keys and tokens of the caller stay behind.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP")


class HelperProcess:
    """Asks a function in another process, with a deadline for each question.

    Args:
        target: ``module:function`` of a function from a JSON value to a JSON value.
        warm_up: A question that a new process answers to itself first, so that what it imports
            and builds once does not count against a deadline; None for no such question.
    """

    def __init__(self, target: str, warm_up: Any = None) -> None:
        self._target = target
        self._warm_up = warm_up
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._end: Callable[[], Any] = lambda: None
        self._owner = 0  # process that started it: a fork inherits the pipes, but may not use them

    def ask(self, question: Any, timeout_s: float) -> Any:
        """Returns the answer, or a ``FailedScore`` when there is none.

        Args:
            question: JSON value.
            timeout_s: How long the answer may take, in seconds.

        Raises:
            ConfigError: When the process does not start.
        """
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps([question, timeout_s]) + "\n")
                process.stdin.flush()
                line = self._lines.get(timeout=timeout_s)
            except queue.Empty:
                self._stop()
                return FailedScore(Status.TIMEOUT, f"no answer within {timeout_s:g} s")
            except OSError:  # it died between two questions
                line = ""
            except BaseException:  # Ctrl-C: its late answer must not become that of the next one
                self._stop()
                raise
            if not line.endswith("\n"):
                self._stop()
                return FailedScore(Status.WORKER_DIED, "the process that computes it died")
        answer = json.loads(line)
        if "error" in answer:
            return FailedScore(Status.RAISED, answer["error"])
        return answer["value"]

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        with self._lock:
            self._stop()

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._owner == os.getpid():
            if self._process.poll() is None:
                return self._process
            self._stop()
        paths = os.pathsep.join(path for path in sys.path if path)
        kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        arguments = [self._target, json.dumps(self._warm_up)]
        process = subprocess.Popen(
            [sys.executable, "-m", "instructrec.rewards.helper_process", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={**kept, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        self._process, self._lines, self._owner = process, queue.Queue(), os.getpid()
        self._end = weakref.finalize(self, _kill, process)
        reader = threading.Thread(target=_read, args=(process.stdout, self._lines), daemon=True)
        reader.start()
        try:
            first = self._lines.get(timeout=START_SECONDS)
        except queue.Empty:
            first = f"it said nothing for {START_SECONDS:g} s"
        if first.strip() != _READY:
            self._stop()
            raise ConfigError(
                f"the helper process for {self._target} did not start: "
                f"{first.strip() or 'it ended at once'}."
            )
        return process

    def _stop(self) -> None:
        if self._owner == os.getpid():
            self._end()
        self._process = None


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):  # what was still to be written has nowhere to go
        assert process.stdin is not None
        process.stdin.close()


def _read(stream: IO[str], lines: queue.Queue[str]) -> None:
    with stream, contextlib.suppress(ValueError, OSError):  # half a line of a killed process
        for line in stream:
            lines.put(line)
    lines.put("")


def serve(function: Callable[[Any], Any], questions: IO[str], answers: IO[str]) -> None:
    """Answers questions until there are no more (the asking process is gone)."""
    print(_READY, file=answers, flush=True)
    for line in questions:
        question, timeout_s = json.loads(line)
        # Should the asking process be gone, nobody else ends a computation that never ends.
        faulthandler.dump_traceback_later(2 * timeout_s + 5, exit=True, file=2)
        try:
            answer: dict[str, Any] = {"value": function(question)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(answer), file=answers, flush=True)


def _main(target: str, warm_up: str) -> None:
    from instructrec.rewards.loading import load_object

    # Answers have a channel of their own: whatever else the process prints is no answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        function = load_object(target)
        if (question := json.loads(warm_up)) is not None:
            function(question)
    except Exception as error:
        print(" ".join(str(error).split()), file=answers, flush=True)
        return
    serve(function, sys.stdin, answers)


if __name__ == "__main__":
    _main(*sys.argv[1:])

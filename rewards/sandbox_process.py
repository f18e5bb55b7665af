"""One sandboxed process, seen from outside: what goes in, what comes out, and how it ends.

Everything that it sends is counted and read with a limit, and it is killed at the limit. Time that
it spent waiting for a processor is not held against it, so that a busy machine fails nobody.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructrec.rewards.base import Status
from instructrec.rewards.sandbox_values import Malformed, read_answer

START_SECONDS = 60.0
"""How long a process may take until it is confined; this is never the code's fault."""
PATIENCE = 10.0
"""How many times its time limit a process may live on a machine that is too busy to run it."""
FOLDER = "{folder}"
"""Stands for the temporary folder in a command."""
_PREFIX = "instructrec-code-"
_KEPT_OUTPUT = 500  # of what it prints, for messages
_TICK = 0.25  # seconds between two looks at the clocks
_FOLDER_TICK = 0.02  # and at a folder that may be written to

BOOTSTRAP = """
import marshal, posix, sys
descriptor, content = int(sys.argv[1]), b""
size = int.from_bytes(posix.read(descriptor, 4), "big")
while len(content) < size:
    piece = posix.read(descriptor, size - len(content))
    if not piece:
        posix._exit(1)
    content += piece
code, settings = marshal.loads(content)
space = {"__name__": "sandbox_child"}
exec(code, space)
space["serve"](settings)
"""
"""What the fresh interpreter is told on its command line; the rest follows over a pipe."""


class CodeFault(Exception):
    """The code did what ends it: broke a limit, died, forged an answer. It scores nothing."""


class NotRun(Exception):
    """The process did not do its work, and the code is not to blame."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Order:
    """How a process is started."""

    command: tuple[str, ...]
    """The interpreter and all before it."""
    code: Any
    """What its inside runs: code or source of ``sandbox_child``."""
    settings: Mapping[str, Any]
    """What its inside is told, beside what differs from process to process."""
    environment: Mapping[str, str]
    """All of its environment variables."""
    timeout: float
    """Seconds that it may take, once it is confined."""
    output: int
    """Bytes that it may print."""
    answer: int
    """Characters that one answer may have."""
    disk: int
    """Bytes that its folder may hold; 0 where it is not written to."""
    seen_folder: str | None
    """Where the inside sees its folder, if not in its place."""
    folder_rights: tuple[int, int] | None
    """Rights of Landlock on that folder, as in ``Landlock.rules``."""


class SandboxProcess:
    """A process for one piece of code.

    Args:
        order: How it is started.

    Raises:
        NotRun: It did not start, or is not confined.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self._answers, self.printed, self._num_printed = b"", b"", 0
        self._deadline = time.monotonic() + START_SECONDS
        self._ready = False
        self._cpu_seconds = 0.0
        self.folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
        self.seen_folder = order.seen_folder or self.folder
        self._selector = selectors.DefaultSelector()
        self._pipes: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def ask(self, *message: Any) -> tuple[str, Any]:
        """Sends a message under a new nonce and waits for the answer.

        Returns:
            Its kind and its value, plain data.

        Raises:
            CodeFault: The process broke a limit, died, or answered what it was not asked.
            NotRun: The machine failed it.
        """
        nonce = secrets.token_hex(8)
        return self._exchange((nonce, *message), nonce)

    def reply(self, *message: Any) -> tuple[str, Any]:
        """Sends what the process asked for in its last answer and waits for the next one."""
        return self._exchange(message, self._nonce)

    def close(self) -> None:
        """Ends the process and removes what it left."""
        self._end()
        self._selector.close()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                os.close(pipe)
        self._pipes = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> SandboxProcess:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    # Starting and ending --------------------------------------------------------------------------

    def _start(self) -> None:
        order, settings = self._order, dict(self._order.settings)
        into_child, self._to_child = self._pipe()
        self._from_child, from_inside = self._pipe()
        self._output, printed = self._pipe()
        self._nonce = secrets.token_hex(8)
        settings |= {
            **{"nonce": self._nonce, "input": into_child, "answers": from_inside},
            **{"folder": self.seen_folder},
        }
        if settings["parent"] is not None:
            settings["parent"] = os.getpid()
        if settings["uid"] is not None:
            os.chown(self.folder, settings["uid"], settings["uid"])
        if order.folder_rights is not None and settings["landlock"] is not None:
            attributes, rules = settings["landlock"]
            here = (self.seen_folder, *order.folder_rights)
            settings["landlock"] = (attributes, [*rules, here])
        try:
            self._process = subprocess.Popen(
                [
                    *(self.folder if word == FOLDER else word for word in order.command),
                    *("-c", BOOTSTRAP, str(into_child)),
                ],
                env=dict(order.environment),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=[into_child, from_inside],
                start_new_session=True,
            )
        except OSError as error:
            raise NotRun(Status.WORKER_DIED, f"it does not start: {error}") from error
        for pipe in (into_child, from_inside, printed):
            os.close(pipe)
            self._pipes.remove(pipe)
        for pipe in (self._to_child, self._from_child, self._output):
            os.set_blocking(pipe, False)
        self._selector.register(self._from_child, selectors.EVENT_READ)
        self._selector.register(self._output, selectors.EVENT_READ)
        try:
            kind, value = self._exchange((order.code, settings), self._nonce)
        except CodeFault as error:
            with contextlib.suppress(OSError, CodeFault, KeyError):
                self._read_output()  # it may have said why, just before
            said = self.printed.decode("utf-8", "replace").strip()
            raise NotRun(Status.WORKER_DIED, f"it did not start: {error} {said}".strip()) from error
        if kind != "ready":
            raise NotRun(Status.WORKER_DIED, str(value))
        self._ready = True
        self._began, self._waited = time.monotonic(), self._waiting()
        self._deadline = self._began + PATIENCE * order.timeout

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._pipes += ends
        return ends

    def _end(self) -> int | None:
        """Kills the process if it still lives; returns how it ended, None if it was not there."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            process.kill()
        return self._reaped(process)

    def _reaped(self, process: subprocess.Popen[bytes]) -> int:
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except ChildProcessError:  # somebody of this process waits for any child
            process.returncode = 0
            return 0
        process.returncode = os.waitstatus_to_exitcode(status)
        self._cpu_seconds = usage.ru_utime + usage.ru_stime
        return process.returncode

    # Talking --------------------------------------------------------------------------------------

    def _exchange(self, message: Any, nonce: str) -> tuple[str, Any]:
        self._nonce = nonce
        try:
            content = marshal.dumps(message, 2)
        except ValueError as error:
            raise NotRun(Status.RAISED, f"it cannot be sent: {error}") from error
        line = self._pump(len(content).to_bytes(4, "big") + content)
        try:
            given, kind, value = read_answer(line)
        except Malformed as error:
            raise CodeFault(f"it forged an answer: {error}") from error
        if given != nonce:
            raise CodeFault("it answered what it was not asked")
        return kind, value

    def _pump(self, sending: bytes) -> bytes:
        """Sends all of a message while reading; returns the next whole line."""
        left = memoryview(sending)
        self._selector.register(self._to_child, selectors.EVENT_WRITE)
        writing = True
        try:
            while True:
                line, found, rest = self._answers.partition(b"\n")
                if found and not writing:
                    self._answers = rest
                    return line
                if len(self._answers) > self._order.answer + 100:
                    raise CodeFault(f"an answer is longer than {self._order.answer} characters")
                tick = _FOLDER_TICK if self._order.disk else _TICK
                for key, _ in self._selector.select(tick):
                    if key.fd == self._to_child:
                        left = self._send(left)
                        if not left:
                            self._selector.unregister(self._to_child)
                            writing = False
                    elif key.fd == self._from_child:
                        self._receive()
                    else:
                        self._read_output()
                self._look_at_limits()
        finally:
            if writing:
                self._selector.unregister(self._to_child)

    def _send(self, left: memoryview) -> memoryview:
        try:
            return left[os.write(self._to_child, left) :]
        except BlockingIOError:
            return left
        except BrokenPipeError:
            return left[:0]  # why it is gone is seen where it answers

    def _receive(self) -> None:
        piece = os.read(self._from_child, 1 << 16)
        if not piece:
            raise self._died()
        self._answers += piece

    def _read_output(self) -> None:
        piece = os.read(self._output, 1 << 16)
        if not piece:
            self._selector.unregister(self._output)
        self.printed = (self.printed + piece)[:_KEPT_OUTPUT]
        self._num_printed += len(piece)
        if self._num_printed > self._order.output:
            raise CodeFault(f"it printed more than {self._order.output} bytes")

    def _look_at_limits(self) -> None:
        now, timeout = time.monotonic(), self._order.timeout
        if self._ready and now - self._began > timeout:
            waited = self._waiting() - self._waited
            if now - self._began - waited > timeout:
                raise CodeFault(f"it took longer than {timeout:g} s")
        if now > self._deadline:
            raise NotRun(Status.TIMEOUT, "the machine is too busy to run it")
        if self._order.disk and _size(self.folder) > self._order.disk:
            raise CodeFault(f"its files hold more than {self._order.disk} bytes")

    def _died(self) -> CodeFault | NotRun:
        """Why there will be no answer."""
        process, self._process = self._process, None
        assert process is not None
        for _ in range(200):  # it has closed its pipe; as a rule it is about to end
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                break
            time.sleep(0.005)
        else:
            process.kill()
            self._reaped(process)
            return CodeFault("it closed the way back")
        code = self._reaped(process)
        if code == -signal.SIGXCPU or self._cpu_seconds >= self._order.timeout:
            return CodeFault(f"it took longer than {self._order.timeout:g} s")
        if code == -signal.SIGKILL:  # nothing that the code may do has this end
            return NotRun(Status.WORKER_DIED, "it was killed from outside: is memory short?")
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return CodeFault(f"it ended with {how} and no answer")

    def _waiting(self) -> float:
        """Seconds that the process has spent waiting for a processor, where the kernel counts."""
        assert self._process is not None
        try:
            counts = Path(f"/proc/{_innermost(self._process.pid)}/schedstat").read_text()
            return int(counts.split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0


def sweep() -> None:
    """Removes the temporary folders of processes that were killed before they could do so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        try:
            mine = os.geteuid() in (0, folder.lstat().st_uid)
            if owner.isdigit() and mine:
                os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # it lives and is somebody else's, or the folder is gone
            continue


def _innermost(pid: int) -> int:
    """The process that bubblewrap, or its init, has started; the same one without bubblewrap."""
    while True:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return pid
        if not children:
            return pid
        pid = int(children[0])


def _size(folder: str) -> int:
    """Bytes that the files of a folder hold on the disk, and some for each file."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                total += max(status.st_size, 512 * status.st_blocks) + 1024
    return total

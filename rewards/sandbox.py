"""A place to run code that a model wrote: a confined process for each piece, tried before use.

A process gives away, before it sees the code: all of the file system but Python's own library, all
system calls but those that computing needs, every environment variable, its user where it can, and
what it may use of time, memory and disk. bubblewrap adds namespaces where it is installed. Where
one of the parts is missing, nothing runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from instructrec.errors import ConfigError, SandboxError
from instructrec.rewards import sandbox_policy
from instructrec.rewards.sandbox_probe import PROBE, advice
from instructrec.rewards.sandbox_process import (
    FOLDER,
    CodeFault,
    NotRun,
    Order,
    SandboxProcess,
    sweep,
)

ENVIRONMENT = {"LANG": "C.UTF-8", "PATH": "", "PYTHONHASHSEED": "0", "TZ": "UTC"}
"""All environment variables of the code; the hash seed makes its sets and verdicts repeatable."""
NOBODY = 65534
"""User that the code runs as where the host is root and the interpreter can be read by all."""
_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
_OTHERS = ("/usr/share/zoneinfo", "/dev/urandom")
_TRIAL_SECONDS = 30.0  # the trial is not judged by the limit of the code
_BOX = "/box"  # where code in bubblewrap sees its folder


@dataclass(frozen=True)
class Limits:
    """What one piece of code may use."""

    timeout_s: float = 5.0
    """Seconds for all of its tests, without those that it waited for a processor."""
    memory_mb: int = 512
    """Most address space in MiB, the interpreter's some 20 among them."""
    output_kb: int = 64
    """Most that it may print, and most of one answer, in KiB."""
    disk_mb: int = 0
    """Most that its files may hold in MiB; 0 lets it write none."""


class Sandbox:
    """Starts confined processes.

    Args:
        limits: What each may use.
        bubblewrap: ``auto`` adds it where it is installed and works, ``require`` demands it,
            ``never`` leaves it out.
        interpreter: Python that runs the code, at least 3.11; None for this one.
        confined: False leaves out all that confines the code but time, memory and output.

    Raises:
        SandboxError: A part is missing, or an attack succeeded.
        ConfigError: A limit is not positive.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        bubblewrap: Literal["auto", "never", "require"] = "auto",
        interpreter: str | None = None,
        confined: bool = True,
    ) -> None:
        self.limits = limits or Limits()
        self.confined = confined
        self.interpreter = os.path.realpath(interpreter) if interpreter else _own_interpreter()
        _check_limits(self.limits)
        sweep()
        if not confined:
            _warn_of_no_sandbox()
            self._order = self._plain_order()
            return
        self._abi = _check_system(self.limits)
        bwrap = None if bubblewrap == "never" else shutil.which("bwrap")
        if bwrap is None and bubblewrap == "require":
            raise SandboxError(
                "bubblewrap: require, but there is no bwrap on the PATH: install the package "
                "bubblewrap, or set bubblewrap: auto."
            )
        if bwrap is not None:
            self._order = self._wrapped_order(bwrap)
            try:
                self.check()
                return
            except SandboxError:
                if bubblewrap == "require":
                    raise
        self._order = self._native_order()
        self.check()

    @property
    def layers(self) -> tuple[str, ...]:
        """What confines the code, outermost first."""
        if not self.confined:
            return ("rlimits",)
        wrapped = ("bubblewrap",) if self._order.seen_folder else ()
        user = ("user",) if self._order.settings["uid"] is not None else ()
        return (*wrapped, *user, "rlimits", "landlock", "seccomp")

    def start(self) -> SandboxProcess:
        """Starts a process for one piece of code; it is to be closed.

        Raises:
            NotRun: It did not start.
        """
        return SandboxProcess(self._order)

    def check(self) -> None:
        """Attacks a process of its own kind; the same kind is attacked once in a program.

        Raises:
            SandboxError: An attack succeeded, or the process does not start.
        """
        known = repr(self._order)
        with _checking:
            if known not in _held:
                self._attack()
                _held.add(known)

    def _attack(self) -> None:
        patient = replace(self._order, timeout=max(self._order.timeout, _TRIAL_SECONDS))
        try:
            with _bait() as (secret, outside), SandboxProcess(patient) as process:
                folder = process.seen_folder if self.limits.disk_mb else None
                process.ask("program", PROBE, "attack")
                facts = (secret, outside, folder, os.getpid(), [*ENVIRONMENT, "LC_CTYPE", "PWD"])
                kind, could = process.ask(facts, {})
                changed = Path(outside).exists() or Path(secret).read_text() != "secret"
        except (CodeFault, NotRun) as error:
            raise SandboxError(
                f"code cannot be confined on this system: {error}. {advice(str(error))} "
                f"{_NOTHING_RUNS}"
            ) from error
        if kind != "value":
            raise SandboxError(f"the trial of the sandbox failed: {could}. {_NOTHING_RUNS}")
        could += ["change files of the host"] if changed else []
        if could:
            raise SandboxError(
                f"the sandbox ({', '.join(self.layers)}) does not hold: code in it could "
                f"{', '.join(could)}. {_NOTHING_RUNS}"
            )

    # Orders ---------------------------------------------------------------------------------------

    def _plain_order(self) -> Order:
        kept = {"filter": None, "landlock": None, "capset": 0, "uid": None}
        return self._make_order((), {**kept, "parent": 0}, None)

    def _native_order(self) -> Order:
        uid = NOBODY if os.geteuid() == 0 and _readable_by_all(self._readable()) else None
        return self._make_order((), {**self._rules(), "uid": uid, "parent": 0}, None)

    def _wrapped_order(self, bwrap: str) -> Order:
        binds: list[str] = []
        for path in (*self._readable(), self.interpreter):
            if os.path.islink(path):
                binds += ["--symlink", os.readlink(path), path]
            elif os.path.exists(path) and not path.startswith("/dev/"):
                binds += ["--ro-bind", path, path]
        bind = "--bind" if self.limits.disk_mb else "--ro-bind"
        wrap = (
            *(bwrap, "--unshare-all", "--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY)),
            *("--die-with-parent", "--new-session", "--clearenv"),
            *(word for name, value in ENVIRONMENT.items() for word in ("--setenv", name, value)),
            # /dev is a tmpfs, which could take half of the memory.
            *("--cap-drop", "ALL", "--dev", "/dev", "--remount-ro", "/dev", *binds),
            *(bind, FOLDER, _BOX, "--chdir", _BOX),
        )
        settings = {**self._rules(), "uid": None, "parent": None}
        return self._make_order(wrap, settings, _BOX)

    def _rules(self) -> dict[str, Any]:
        machine = platform.machine()
        rules = sandbox_policy.landlock_rules(self._abi, self._readable())
        return {
            "filter": sandbox_policy.seccomp_filter(machine, writable=bool(self.limits.disk_mb)),
            "landlock": (rules.attributes, list(rules.rules)),
            "capset": sandbox_policy.capset_number(machine),
        }

    def _make_order(
        self, before: tuple[str, ...], settings: dict[str, Any], seen_folder: str | None
    ) -> Order:
        limits = self.limits
        answer = limits.output_kb << 10
        own = self.interpreter == _own_interpreter()
        return Order(
            # Not -I, which would ignore the hash seed; no other variable of Python's is set.
            command=(*before, self.interpreter, "-s", "-P", "-S", "-B"),
            code=_inside() if own else _inside_source(),
            settings={**settings, "limits": _resource_limits(limits), "longest_answer": answer},
            environment=ENVIRONMENT,
            timeout=limits.timeout_s,
            output=limits.output_kb << 10,
            answer=answer,
            disk=limits.disk_mb << 20,
            seen_folder=seen_folder,
            folder_rights=sandbox_policy.WRITABLE_FOLDER if limits.disk_mb else None,
        )

    def _readable(self) -> tuple[str, ...]:
        """Paths that the code may read: the libraries of Python and of the system."""
        prefix = Path(self.interpreter).parent.parent
        return tuple(dict.fromkeys([str(prefix / "lib"), *_LIBRARIES, *_OTHERS]))


def _own_interpreter() -> str:
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@lru_cache(maxsize=1)
def _inside_source() -> str:
    return Path(__file__).with_name("sandbox_child.py").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _inside() -> Any:
    """The code of the inside, compiled once and not in each process."""
    return compile(_inside_source(), "<sandbox>", "exec", dont_inherit=True)


def _check_limits(limits: Limits) -> None:
    for name, least in (("timeout_s", 0.0), ("memory_mb", 63), ("output_kb", 0), ("disk_mb", -1)):
        value = getattr(limits, name)
        if not least < value < math.inf:
            raise ConfigError(f"{name} = {value!r} of a sandbox: expected more than {least:g}.")


def _check_system(limits: Limits) -> int:
    """Returns the version of Landlock.

    Raises:
        SandboxError: Something is missing that can be told without a trial.
    """
    if sys.platform != "linux" or not sandbox_policy.supports(platform.machine()):
        raise SandboxError(
            f"code can be confined on Linux (x86_64, aarch64) alone, and this is {sys.platform} "
            f"({platform.machine()}): use a Linux machine, virtual machine or container. "
            f"{_NOTHING_RUNS}"
        )
    abi = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        raise SandboxError(f"code cannot be confined: {advice('Landlock')} {_NOTHING_RUNS}")
    if limits.disk_mb and abi < sandbox_policy.ABI_FOR_WRITING:
        raise SandboxError(
            f"disk_mb = {limits.disk_mb}: code may write files from Linux 6.2 on (version "
            f"{sandbox_policy.ABI_FOR_WRITING} of Landlock; this kernel has {abi}). Set disk_mb: 0."
        )
    return int(abi)


def _resource_limits(limits: Limits) -> list[tuple[int, int]]:
    import resource  # Windows has none

    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": math.ceil(limits.timeout_s) + 1,
        "RLIMIT_FSIZE": limits.disk_mb << 20,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 0,
        "RLIMIT_AS": limits.memory_mb << 20,
    }
    return [(getattr(resource, k), v) for k, v in wanted.items() if hasattr(resource, k)]


def _readable_by_all(paths: tuple[str, ...]) -> bool:
    """Whether any user may read the first of the paths, where Python's library is."""
    place = Path(paths[0])
    folders = [place, *place.parents]
    return place.stat().st_mode & stat.S_IROTH != 0 and all(
        folder.stat().st_mode & stat.S_IXOTH for folder in folders
    )


@contextlib.contextmanager
def _bait() -> Iterator[tuple[str, str]]:
    """A file of the host that must not be read, and a place where none must be made."""
    with tempfile.TemporaryDirectory(prefix="instructrec-probe-") as folder:
        os.chmod(folder, 0o777)  # so that it is the sandbox that denies, not the folder's rights
        secret = Path(folder, "secret")
        secret.write_text("secret", encoding="utf-8")
        secret.chmod(0o666)
        yield str(secret), str(Path(folder, "outside"))


def _warn_of_no_sandbox() -> None:
    print(
        "instructrec: warning: dangerously_run_without_sandbox is set: what the model writes runs "
        "with all rights of this user, on this machine and its network.",
        file=sys.stderr,
        flush=True,
    )


_NOTHING_RUNS = "No code is run. docs/code_execution.md says what is needed."
_held: set[str] = set()
_checking = threading.Lock()

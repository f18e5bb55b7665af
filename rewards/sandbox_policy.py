"""What the kernel lets model-written code do: a list of system calls, and of paths to read.

Pure tables and bytes: nothing here touches the process. System calls that are not listed do not
exist for the code (``ENOSYS``), so it has no network, no processes, no threads, no signals to
others, no tracing and no new privileges. Landlock decides which files an ``open`` may reach.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

_CALLS = {
    # name: (x86_64, aarch64); None where the architecture has no such call
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "nanosleep": (35, 101),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "ftruncate": (77, 46),
    "getcwd": (79, 17),
    "rename": (82, None),
    "unlink": (87, None),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "getdents64": (217, 61),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "dup3": (292, 24),
    "renameat2": (316, 276),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "rseq": (334, 293),
}
"""System calls that stay, whatever their arguments."""
_OPENS = {"open": ((2, None), 1), "openat": ((257, 56), 2)}  # and the place of their flags
_FCNTL, _FCNTL_COMMANDS = (72, 25), (0, 1, 2, 3, 4, 1030)  # no F_SETOWN: it sends signals
_IOCTL = (16, 29)
_CAPSET = (126, 91)

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_X32 = 0x40000000  # calls of a second table that x86_64 has

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EACCES, _ENOSYS, _ENOTTY, _EPERM = 13, 38, 25, 1
_WRITING = 0o3 | 0o100 | 0o1000 | 0o20000000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_TMPFILE

# Rights of Landlock, by their bits.
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 5, 1 << 8, 1 << 14
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE
ABI_FOR_WRITING = 3
"""First version of Landlock that knows of truncating files."""
WRITABLE_FOLDER = (_OF_FILES | _READ_DIR | _REMOVE_FILE | _MAKE_REG, _OF_FILES)
"""Rights on the folder of code that may write files, as in a rule (from ``ABI_FOR_WRITING`` on)."""


@dataclass(frozen=True)
class Landlock:
    """A set of rules, ready for the kernel."""

    attributes: bytes
    """``struct landlock_ruleset_attr``: everything that needs a rule."""
    rules: tuple[tuple[str, int, int], ...]
    """Path, its rights when it is a folder, and when it is a file."""


def supports(machine: str) -> bool:
    """Whether there is a table for an architecture, as ``platform.machine`` names it."""
    return machine in _ARCHITECTURES


def capset_number(machine: str) -> int:
    """Returns the number of the system call ``capset``."""
    return _CAPSET[_ARCHITECTURES[machine][0]]


def allowed_calls(machine: str) -> dict[str, int]:
    """Returns the names and numbers of the system calls that stay, with or without conditions."""
    column = _ARCHITECTURES[machine][0]
    table = {**_CALLS, **{k: v for k, (v, _) in _OPENS.items()}, "fcntl": _FCNTL}
    return {name: n for name, row in table.items() if (n := row[column]) is not None}


def seccomp_filter(machine: str, *, writable: bool) -> bytes:
    """Returns the program (``struct sock_filter[]``) that judges each system call.

    Args:
        machine: Architecture; see ``supports``.
        writable: Whether files may be opened for writing, where Landlock lets them be.
    """
    column, audit = _ARCHITECTURES[machine]
    program = [
        *(_step(_LOAD, 4), _step(_EQUAL, audit, 1, 0), _step(_RETURN, _KILL)),
        *(_step(_LOAD, 0), _step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _KILL)),
    ]
    for row in _CALLS.values():
        if (number := row[column]) is not None:
            program += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ALLOW)]
    for row, place in _OPENS.values():
        if (number := row[column]) is not None:
            denied = 0 if writable else _WRITING
            program += [
                *(_step(_EQUAL, number, 0, 4), _step(_LOAD, 16 + 8 * place)),
                *(_step(_ANY_BIT, denied, 0, 1), _step(_RETURN, _ERRNO | _EACCES)),
                _step(_RETURN, _ALLOW),
            ]
    commands = [
        step
        for command in _FCNTL_COMMANDS
        for step in (_step(_EQUAL, command, 0, 1), _step(_RETURN, _ALLOW))
    ]
    program += [
        *(_step(_EQUAL, _FCNTL[column], 0, len(commands) + 2), _step(_LOAD, 16 + 8 * 1)),
        *(*commands, _step(_RETURN, _ERRNO | _EPERM)),
        # What Python asks of a file is whether it is a terminal.
        *(_step(_EQUAL, _IOCTL[column], 0, 1), _step(_RETURN, _ERRNO | _ENOTTY)),
        _step(_RETURN, _ERRNO | _ENOSYS),
    ]
    return b"".join(program)


def landlock_rules(abi: int, readable: Sequence[str]) -> Landlock:
    """Returns rules under which all is denied but reading some paths.

    Args:
        abi: Version of the kernel's Landlock, at least 1.
        readable: Folders and files that may be read.
    """
    files = (1 << (13 if abi == 1 else 14 if abi == 2 else 15 if abi < 5 else 16)) - 1
    attributes = struct.pack("=Q", files)
    attributes += struct.pack("=Q", 0b11) if abi >= 4 else b""  # binding and connecting of TCP
    attributes += struct.pack("=Q", 0b11) if abi >= 6 else b""  # abstract sockets, signals
    rules = [(path, _READ_FILE | _READ_DIR, _READ_FILE) for path in readable]
    rules.append(("/dev/null", 0, _READ_FILE | _WRITE_FILE))
    return Landlock(attributes, tuple(rules))


def _step(code: int, value: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, jump_true, jump_false, value)

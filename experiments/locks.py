"""One process at a time in a folder: a lock that the system takes back however its owner ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from instructrec.errors import CheckpointError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that knows no locks."""


@contextmanager
def held(path: Path, doing: str, *, shared: bool = False) -> Iterator[None]:
    """Holds a folder or file, which need not exist, while the block lasts.

    The lock is a file beside it, ``.<name>.lock``, that says who holds it; it is gone afterwards.
    Where a process was killed the file stays, but not the lock: the next one takes it over. On a
    file system without locks there is a warning and no protection.

    Args:
        path: What is held.
        doing: What for, in one or two words.
        shared: Let others hold it in the same way at the same time, but nobody alone.

    Raises:
        CheckpointError: Another process holds it, the lock cannot be made, or the folder that is
            there already cannot be written to.
    """
    path = path.resolve()
    file = path.with_name(f".{path.name}.lock")
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open(file, path, shared)
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            _release(descriptor, file)
            raise PermissionError(errno.EACCES, "it may be read only")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be made or held ({error.strerror or error}): expected a place that can "
            "be written to. Choose another one."
        ) from error
    try:
        _sign(descriptor, doing)
        yield
    finally:
        _release(descriptor, file)
        with suppress(OSError):  # those that we made and nobody has used
            for folder in made:
                folder.rmdir()


def _open(file: Path, path: Path, shared: bool) -> int:
    """Opens the lock file and takes the lock; returns the descriptor that holds it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    return descriptor
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            raise CheckpointError(
                f"{path} is in use: another process is at work there{holder}. Expected a place "
                "that nobody else writes to. Wait for it, end it, or choose another name."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
            warnings.warn(
                f"the file system of {path} knows no locks: make sure yourself that no other "
                "process writes there.",
                RuntimeWarning,
                stacklevel=4,
            )
            return descriptor
        os.close(descriptor)  # whoever held it has deleted the file meanwhile


def _sign(descriptor: int, doing: str) -> None:
    """Says in the lock file who holds it."""
    who = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "doing": doing,
    }
    with suppress(OSError):  # a full disk is no reason to stop here
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        who = json.loads(os.pread(descriptor, 4096, 0))
        return f" ({who['doing']}: {who['pid']} on {who['host']}, since {who['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _release(descriptor: int, file: Path) -> None:
    """Lets go; the last holder deletes the file while nobody else can have it."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(file)):
            file.unlink()
    os.close(descriptor)

"""Which checkpoints of a run there are, which are kept, and which one it goes on from.

Beside ``update-000008`` the folder may hold what a killed process left: ``.staging-`` (not yet
whole), ``.replaced-`` (made room for a new one of its name), ``.deleted-`` (no longer kept). And
``.corrupt-``: damaged ones that a run went on without; they are left for people to look at.
"""

from __future__ import annotations

import os
import re
import warnings
from contextlib import suppress
from pathlib import Path

from instructrec.crash_points import crash_point
from instructrec.errors import CheckpointError
from instructrec.rl.checkpoint import (
    FILES,
    OtherFormat,
    Unusable,
    checkpoint_path,
    has_its_files,
    verify,
)
from instructrec.rl.durable import Disk

_NAME = re.compile(r"update-(\d{6,})")


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of a run, oldest update first (staged leftovers are not among them)."""
    try:
        found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that can be read whole, or None; damaged newer ones are warned of.

    Raises:
        CheckpointError: There are checkpoints, but not one of them is whole, or a newer one is of
            another version or cannot be read (``CheckpointReadError``).
    """
    return _newest_whole(directory, Disk())[0]


def take_up(directory: Path, disk: Disk | None = None) -> Path | None:
    """The newest whole checkpoint, for a run that goes on from it and has the folder to itself.

    What a killed process left is tidied up first, and damaged newer checkpoints lose their names.

    Raises:
        CheckpointError: As `latest_checkpoint`; nothing was changed but leftovers.
    """
    disk = disk or Disk()
    _tidy(directory, disk)
    checkpoint, damaged = _newest_whole(directory, disk)
    crash_point("resume.opened")
    for path in damaged:
        disk.rename(path, _free_name(directory / f".corrupt-{path.name}"))
    if damaged:
        disk.flush_folder(directory)
        crash_point("resume.quarantined")
    return checkpoint


def prune_checkpoints(
    directory: Path, keep: int, keep_update: int | None = None, disk: Disk | None = None
) -> None:
    """Deletes all but the newest ``keep`` whole checkpoints and the one of ``keep_update``.

    A folder that holds anything else than the files of a checkpoint is left alone.

    Args:
        directory: Where they lie.
        keep: How many, 1 or more.
        keep_update: One that is kept although it is older.
        disk: The calls to the disk.
    """
    disk = disk or Disk()
    listed = list_checkpoints(directory)
    whole = [path for path in listed if has_its_files(path)][-keep:]
    spared = None if keep_update is None else checkpoint_path(directory, keep_update)
    for path in listed[: listed.index(whole[0])] if whole else []:
        if path != spared and _is_ours(path):
            deleted = _free_name(directory / f".deleted-{path.name}")
            disk.rename(path, deleted)
            crash_point("prune.renamed")
            _delete(deleted)
    _tidy(directory, disk)


def delete_checkpoints(directory: Path) -> None:
    """Deletes the checkpoints of a run that has come to its end; what is not ours stays.

    Args:
        directory: Where they lie.
    """
    _tidy(directory, Disk())
    for path in list_checkpoints(directory):
        if _is_ours(path):
            _delete(path)
    with suppress(OSError):  # missing, a link, or something else is in it
        directory.rmdir()


def _newest_whole(directory: Path, disk: Disk) -> tuple[Path | None, list[Path]]:
    """The newest whole checkpoint, and the damaged ones that are newer."""
    problems: dict[Path, str] = {}
    for path in reversed(list_checkpoints(directory)):
        try:
            verify(path, disk)
        except OtherFormat as error:
            raise CheckpointError(f"{error}. {error.advice}") from error
        except Unusable as error:
            problems[path] = str(error)
            continue
        for problem in problems.values():
            message = (
                f"{problem}. Continuing from {path.name}, the newest checkpoint that is whole: the "
                "updates since then run again."
            )
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        return path, list(problems)
    if problems:
        raise CheckpointError(
            f"no checkpoint can be read: {'; '.join(problems.values())}. Expected one that is "
            f"whole in {directory}. Put a copy of one back there, or start anew with --overwrite."
        )
    return None, []


def _tidy(directory: Path, disk: Disk) -> None:
    """Finishes what a killed process had begun: nobody else is at work here."""
    for path in sorted(directory.glob(".replaced-update-*")):
        named = directory / path.name.removeprefix(".replaced-")
        if named.exists():
            _delete(path)
        else:
            disk.rename(path, named)
            disk.flush_folder(directory)
    for kind in (".staging-update-*", ".deleted-update-*"):
        for path in directory.glob(kind):
            _delete(path)


def _delete(path: Path) -> None:
    """Deletes a folder of ours, file by file; anything else in it stays, and so does the folder."""
    if path.is_symlink():
        return
    for name in sorted(FILES):
        (path / name).unlink(missing_ok=True)
        crash_point("prune.half")
    if not any(path.iterdir()):
        path.rmdir()


def _is_ours(path: Path) -> bool:
    """Whether a folder holds nothing that is no part of a checkpoint."""
    if path.is_symlink() or not path.is_dir():
        return False
    return all(e.name in FILES and e.is_file(follow_symlinks=False) for e in os.scandir(path))


def _free_name(path: Path) -> Path:
    """The name itself, or with a number behind it where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free

"""Checkpoints: everything stateful, written whole or not at all, checked when read.

A checkpoint is a folder ``update-000008`` with the tensors by kind (``policy.safetensors``,
``critic.safetensors``, ...), ``state.json`` and, written last, ``MANIFEST.json`` with the size and
SHA-256 of each. It is staged under another name, flushed to disk and renamed, so a crash leaves
either the old state or the new one; a flipped bit is found when it is read. Nothing is pickled.
Which checkpoints of a run are kept, and which one it goes on from, is said in
``checkpoint_keeping``.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from instructrec.crash_points import crash_point
from instructrec.errors import CheckpointError, NumericsError
from instructrec.rl.durable import Disk, Written, safetensors_chunks, sum_of, write_file

FORMAT_VERSION = 2
OLDEST_FORMAT = 1
"""Format 1 had all tensors in one file, and sums without sizes."""
PARTS = ("policy", "critic", "optimizer", "generator")
"""First words of the tensors' names that have files of their own."""
STATE, MANIFEST, OTHERS = "state.json", "MANIFEST.json", "tensors.safetensors"
FILES = frozenset({STATE, MANIFEST, OTHERS, *(f"{part}.safetensors" for part in PARTS)})
"""Every file that a checkpoint may hold."""
_NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors of the system by which a file is missing; any other says nothing about its content."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    """Weights, optimizer moments and generator states by name."""
    state: dict[str, Any]
    """Counters and settings, JSON-able."""


def checkpoint_path(directory: Path, update: int) -> Path:
    """Folder of the checkpoint after the given update."""
    return directory / f"update-{update:06d}"


def update_of(checkpoint: Path | None) -> int:
    """Update after which a checkpoint was written; 0 for none."""
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def write_checkpoint(folder: Path, snapshot: Snapshot, disk: Disk | None = None) -> None:
    """Commits a checkpoint; an older one of the same name stays until the new one is whole.

    When this returns, the checkpoint survives a loss of power. Its files can be read by their
    owner alone.

    Args:
        folder: Its place, by ``checkpoint_path``.
        snapshot: What it shall hold.
        disk: The calls to the disk.

    Raises:
        NumericsError: A number is not finite; nothing was written.
        CheckpointError: The disk refused; what was there before is still there.
    """
    disk = disk or Disk()
    state = _checked(folder, snapshot)
    staging = folder.with_name(f".staging-{folder.name}-{os.getpid()}")
    try:
        _make_directory(folder.parent, disk)
        if staging.exists():
            shutil.rmtree(staging)
        disk.make_folder(staging)
        crash_point("checkpoint.staged")
        _fill(staging, snapshot.tensors, state, disk)
        disk.flush_folder(staging)
        crash_point("checkpoint.flushed")
        _give_name(staging, folder, disk)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        closed = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        advice = "Make that folder writable again" if closed else "Free some space"
        raise CheckpointError(
            f"cannot write the checkpoint {folder}: {error}. Earlier checkpoints are untouched. "
            f"{advice}, then resume."
        ) from error
    crash_point("checkpoint.committed")


def read_checkpoint(folder: Path) -> Snapshot:
    """Reads a checkpoint and holds it against its manifest.

    Raises:
        CheckpointReadError: The disk or its permissions refuse to show it.
        CheckpointError: It is missing, of another format, incomplete or damaged.
    """
    try:
        return load_verified(folder)
    except Unusable as error:
        raise CheckpointError(f"{error}. {error.advice}") from error


class Unusable(Exception):
    """What is wrong with a checkpoint, without a full stop, and what to do about it."""

    advice = "Resume from an older checkpoint of the run."


class OtherFormat(Unusable):
    """It is whole, but for another version."""

    advice = "Continue it with the version of instructrec that wrote it."


class CheckpointReadError(CheckpointError):
    """The system refused to read a checkpoint, which may be whole all the same."""

    @classmethod
    def of(cls, folder: Path, error: OSError) -> CheckpointReadError:
        """What became of reading a checkpoint."""
        return cls(
            f"{folder} cannot be read ({error}): expected a disk that works and files that may be "
            "read. The checkpoint may be whole, so nothing was set aside or deleted, and no older "
            "one stands in for it. Mend that and give the same command again; to do without this "
            "checkpoint, move its folder away first."
        )


def verify(folder: Path, disk: Disk | None = None) -> list[str]:
    """Holds a checkpoint against its manifest; returns the names of its files.

    Args:
        folder: The checkpoint.
        disk: The calls to the disk.

    Raises:
        Unusable: It is missing, of another format, incomplete or damaged.
        CheckpointReadError: The disk or its permissions refuse to show it.
    """
    disk = disk or Disk()
    try:
        expected = _expected(folder, disk)
        for name, (size, sha256) in expected.items():
            found = sum_of(folder / name, disk)
            if found.sha256 != sha256 or size not in (found.size, None):
                length = "" if size in (found.size, None) else f"{found.size} bytes, not {size}; "
                raise Unusable(
                    f"{folder / name} is damaged: {length}its SHA-256 is {found.sha256[:12]}…, "
                    f"{MANIFEST} expects {sha256[:12]}…"
                )
    except (*_NOT_THERE, KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise Unusable(f"{folder} is not a complete checkpoint ({what})") from error
    except OSError as error:
        raise CheckpointReadError.of(folder, error) from error
    return list(expected)


def load_verified(folder: Path) -> Snapshot:
    """Reads a checkpoint that is whole.

    Raises:
        Unusable: It is missing, of another format, incomplete or damaged.
        CheckpointReadError: The disk or its permissions refuse to show it.
    """
    names = verify(folder)
    try:
        tensors: dict[str, Tensor] = {}
        for name in names:
            if name.endswith(".safetensors"):
                tensors |= load_file(folder / name)
        return Snapshot(tensors, json.loads((folder / STATE).read_text(encoding="utf-8")))
    except (*_NOT_THERE, ValueError, SafetensorError) as error:
        what = f"{type(error).__name__}: {error}"
        raise Unusable(f"{folder} cannot be read ({what})") from error
    except OSError as error:
        raise CheckpointReadError.of(folder, error) from error


def has_its_files(folder: Path) -> bool:
    """Whether all files are there with their sizes; their content is not looked at."""
    try:
        return all(
            (folder / name).stat().st_size == size or size is None
            for name, (size, _) in _expected(folder, Disk()).items()
        )
    except (OSError, KeyError, TypeError, AttributeError, ValueError, Unusable):
        return False


# Writing ------------------------------------------------------------------------------------------


def _checked(folder: Path, snapshot: Snapshot) -> bytes:
    """Refuses numbers that are not finite; returns the state as JSON."""
    kept = "No checkpoint was written of this state; the one before is untouched."
    advice = "Resume from it with other rewards or settings of the optimizer, or start a new run."
    for name, tensor in snapshot.tensors.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            count = int((~torch.isfinite(tensor)).sum())
            raise NumericsError(
                f"{folder.name}: {name} holds {count} of {tensor.numel()} numbers that are not "
                f"finite: expected none. {kept} {advice}"
            )
    try:
        return json.dumps(snapshot.state, indent=1, allow_nan=False).encode()
    except ValueError as error:
        raise NumericsError(
            f"{folder.name}: its counters hold a number that is not finite ({error}): expected "
            f"none. {kept} {advice}"
        ) from error


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; in one pass and without a copy, unlike ``isfinite().all()``."""
    return not tensor.numel() or all(map(math.isfinite, map(float, torch.aminmax(tensor.detach()))))


def _make_directory(directory: Path, disk: Disk) -> None:
    """Makes the folder of the checkpoints, and forces its name to the disk."""
    if not directory.is_dir():
        directory.mkdir(parents=True)
        disk.flush_folder(directory.parent)


def _fill(staging: Path, tensors: dict[str, Tensor], state: bytes, disk: Disk) -> None:
    """Writes all files, the manifest last."""
    files: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part = name.partition(".")[0]
        files.setdefault(f"{part}.safetensors" if part in PARTS else OTHERS, {})[name] = tensor
    written: dict[str, Written] = {}
    for file in sorted(files):
        written[file] = write_file(staging / file, safetensors_chunks(files[file]), disk)
    middle = len(state) // 2
    written[STATE] = write_file(staging / STATE, (state[:middle], state[middle:]), disk)
    manifest = {
        "format_version": FORMAT_VERSION,
        "finite": True,
        "files": {name: asdict(w) for name, w in written.items()},
    }
    crash_point("checkpoint.unsealed")
    write_file(staging / MANIFEST, [json.dumps(manifest, indent=1).encode()], disk)
    crash_point("checkpoint.sealed")


def _give_name(staging: Path, folder: Path, disk: Disk) -> None:
    """Renames a staged checkpoint; one of that name is found under another until then."""
    aside = folder.with_name(f".replaced-{folder.name}")
    replaces = folder.exists()
    if replaces:
        if aside.exists():
            shutil.rmtree(aside)
        disk.rename(folder, aside)
        crash_point("checkpoint.moved_aside")
    try:
        disk.rename(staging, folder)
    except OSError:
        if replaces:
            os.rename(aside, folder)
        raise
    crash_point("checkpoint.renamed")
    disk.flush_folder(folder.parent)
    if replaces:
        shutil.rmtree(aside)


# Reading ------------------------------------------------------------------------------------------


def _expected(folder: Path, disk: Disk) -> dict[str, tuple[int | None, str]]:
    """Size (where it is known) and sum of each file, from the manifest."""
    with disk.open_to_read(folder / MANIFEST) as file:
        manifest = json.loads(file.read().decode())
    version = manifest["format_version"]
    if version not in range(OLDEST_FORMAT, FORMAT_VERSION + 1):
        raise OtherFormat(
            f"{folder} has format {version}: expected {OLDEST_FORMAT} to {FORMAT_VERSION}"
        )
    expected: dict[str, tuple[int | None, str]]
    if version == OLDEST_FORMAT:
        expected = {name: (None, sha256) for name, sha256 in manifest["sha256"].items()}
    else:
        if manifest["finite"] is not True:
            raise Unusable(f"{folder} does not say that its numbers are finite")
        expected = {name: (f["size"], f["sha256"]) for name, f in manifest["files"].items()}
    if unknown := sorted(expected.keys() - FILES):
        raise Unusable(f"{folder} names a file that is no part of a checkpoint: {unknown[0]!r}")
    if STATE not in expected:
        raise Unusable(f"{folder} has no {STATE}")
    return expected

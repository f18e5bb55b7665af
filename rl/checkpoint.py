"""Checkpoints: everything stateful, written whole or not at all, checked when read.

A checkpoint is a folder ``update-000008`` with ``tensors.safetensors``, ``state.json`` and a
manifest of SHA-256 sums. It is staged under another name, flushed to disk and renamed, so a crash
leaves either the old state or the new one; a flipped bit is found when it is read. Nothing is
pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from instructrec.errors import CheckpointError

FORMAT_VERSION = 1
_NAME = re.compile(r"update-(\d{6})")
_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "MANIFEST.json"


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


def write_checkpoint(folder: Path, snapshot: Snapshot) -> None:
    """Commits a checkpoint; an older one of the same name is replaced.

    Raises:
        CheckpointError: The disk refused; what was there before is still there.
    """
    staging = folder.with_name(f".staging-{folder.name}-{os.getpid()}")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        tensors = {name: t.detach().cpu().contiguous() for name, t in snapshot.tensors.items()}
        save_file(tensors, staging / _TENSORS)
        (staging / _STATE).write_text(json.dumps(snapshot.state, indent=1, allow_nan=False))
        # safetensors writes through a temporary file that only its owner may read.
        shutil.copymode(staging / _STATE, staging / _TENSORS)
        sums = {name: _sha256(staging / name) for name in (_TENSORS, _STATE)}
        manifest = {"format_version": FORMAT_VERSION, "sha256": sums}
        (staging / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        for name in (_TENSORS, _STATE, _MANIFEST):
            _flush(staging / name)
        _flush(staging)
        if folder.exists():
            shutil.rmtree(folder)
        staging.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the checkpoint {folder}: {error}. Earlier checkpoints are untouched. "
            "Free some space or choose another output folder, then resume."
        ) from error


def read_checkpoint(folder: Path) -> Snapshot:
    """Reads a checkpoint and holds it against its manifest.

    Raises:
        CheckpointError: It is missing, of another format, incomplete or damaged.
    """
    try:
        return _read(folder)
    except _Unusable as error:
        raise CheckpointError(f"{error}. {error.advice}") from error


class _Unusable(Exception):
    """What is wrong with a checkpoint, without a full stop, and what to do about it."""

    advice = "Resume from an older checkpoint of the run."


class _OtherFormat(_Unusable):
    advice = "Continue it with the version of instructrec that wrote it."


def _read(folder: Path) -> Snapshot:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["format_version"] != FORMAT_VERSION:
            given = manifest["format_version"]
            raise _OtherFormat(f"{folder} has format {given}: expected {FORMAT_VERSION}")
        for name, expected in manifest["sha256"].items():
            given = _sha256(folder / name)
            if given != expected:
                raise _Unusable(
                    f"{folder / name} is damaged: its SHA-256 is {given[:12]}…, {_MANIFEST} "
                    f"expects {expected[:12]}…"
                )
        return Snapshot(load_file(folder / _TENSORS), json.loads((folder / _STATE).read_text()))
    except (OSError, KeyError, json.JSONDecodeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise _Unusable(f"{folder} is not a complete checkpoint ({what})") from error


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of a run, oldest first (staged leftovers are not among them)."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that can be read whole, or None; damaged newer ones are warned of.

    Raises:
        CheckpointError: There are checkpoints, but not one of them is whole.
    """
    problems = []
    for path in reversed(list_checkpoints(directory)):
        try:
            _read(path)
        except _Unusable as error:
            problems.append(str(error))
            continue
        for problem in problems:
            message = (
                f"{problem}. Continuing from {path.name}, the newest checkpoint that is whole: the "
                "updates since then run again."
            )
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        return path
    if problems:
        raise CheckpointError(
            f"no checkpoint can be read: {'; '.join(problems)}. Expected one that is whole in "
            f"{directory}. Put a copy of one back there, or start anew with --overwrite."
        )
    return None


def prune_checkpoints(directory: Path, keep: int, keep_update: int | None = None) -> None:
    """Deletes all but the newest ``keep`` checkpoints and the one of ``keep_update``."""
    spared = None if keep_update is None else checkpoint_path(directory, keep_update)
    for path in list_checkpoints(directory)[:-keep]:
        if path != spared:
            shutil.rmtree(path)
    for leftover in directory.glob(".staging-update-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Forces a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

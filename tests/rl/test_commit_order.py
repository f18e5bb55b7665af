"""Power may go at any call: what was not flushed by then is lost, and a whole checkpoint is not."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from instructrec.errors import CheckpointError
from instructrec.rl.checkpoint import (
    Snapshot,
    checkpoint_path,
    read_checkpoint,
    write_checkpoint,
)
from instructrec.rl.checkpoint_keeping import (
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    take_up,
)
from instructrec.rl.durable import Disk


def snapshot(update: int) -> Snapshot:
    weights = torch.full((8,), float(update))
    tensors = {"policy.w": weights, "optimizer.0.exp_avg": weights, "generator.a": weights.int()}
    return Snapshot(tensors, {"update": update})


class RecordingDisk(Disk):
    """Does everything, and takes it down: (call, path, what)."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Path, object]] = []
        self.open: dict[int, Path] = {}

    def make_folder(self, path: Path) -> None:
        super().make_folder(path)
        self.calls.append(("make", path, None))

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self.open[descriptor] = path
        self.calls.append(("create", path, None))
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> None:
        self.calls.append(("write", self.open[descriptor], bytes(data)))
        super().write(descriptor, data)

    def close(self, descriptor: int, *, flush: bool) -> None:
        super().close(descriptor, flush=flush)
        path = self.open.pop(descriptor, None)
        if flush and path is not None:
            self.calls.append(("flush", path, None))

    def flush_folder(self, path: Path) -> None:
        super().flush_folder(path)
        self.calls.append(("flush folder", path, None))

    def rename(self, path: Path, target: Path) -> None:
        super().rename(path, target)
        self.calls.append(("rename", path, target))


ORDER = ("make", "create", "rename")
Entries = list[tuple[str, str, str]]


class Crashed:
    """What a disk may hold when the power goes after some calls.

    Files lose what was not flushed. Of the changes to a folder that were not flushed, the first few
    may have been kept, any number of them, and each folder for itself.
    """

    def __init__(self, calls: list[tuple[str, Path, object]], directory: Path) -> None:
        self.directory = directory
        self.written: dict[int, bytes] = {}
        self.safe: dict[int, bytes] = {}
        self.numbers: dict[Path, int] = {}
        self.waiting: dict[Path, Entries] = {}
        self.done: Entries = []
        for number, (call, path, what) in enumerate(calls):
            if call in ("make", "create"):
                self.numbers[path] = number
                self.written[number] = self.safe[number] = b""
                self.waiting.setdefault(path.parent, []).append((call, str(path), str(number)))
            elif call == "write":
                assert isinstance(what, bytes)
                self.written[self.numbers[path]] += what
            elif call == "flush":
                self.safe[self.numbers[path]] = self.written[self.numbers[path]]
            elif call == "rename":
                self.waiting.setdefault(path.parent, []).append((call, str(path), str(what)))
            else:
                self.done += self.waiting.pop(path, [])

    def outcomes(self) -> list[Entries]:
        """Changes that may have been kept."""
        choices = [
            [entries[:count] for count in range(len(entries) + 1)]
            for entries in self.waiting.values()
        ]
        return [[*self.done, *itertools.chain(*chosen)] for chosen in itertools.product(*choices)]

    def rebuild(self, before: Path, entries: Entries, flushed_only: bool) -> None:
        """Makes the folder hold what was there before, and these changes."""
        shutil.rmtree(self.directory)
        shutil.copytree(before, self.directory)
        contents = self.safe if flushed_only else self.written
        for call, path, what in sorted(entries, key=lambda entry: ORDER.index(entry[0])):
            if call == "rename":
                if Path(path).exists():
                    Path(path).rename(what)
            elif call == "make":
                Path(path).mkdir(exist_ok=True)
            elif Path(path).parent.is_dir():  # its folder's own entry may be lost
                Path(path).write_bytes(contents[int(what)])


@pytest.mark.parametrize("update", [2, 1], ids=["the next one", "over one of the same update"])
def test_a_whole_checkpoint_is_found_whenever_the_power_goes(tmp_path: Path, update: int) -> None:
    directory, before = tmp_path / "checkpoints", tmp_path / "before"
    write_checkpoint(checkpoint_path(directory, 1), snapshot(1))
    shutil.copytree(directory, before)
    disk = RecordingDisk()
    write_checkpoint(checkpoint_path(directory, update), snapshot(update), disk)
    committed = len(disk.calls)
    prune_checkpoints(directory, 1, disk=disk)
    tried = 0
    for count in range(len(disk.calls) + 1):
        crashed = Crashed(disk.calls[:count], directory)
        for entries, flushed_only in itertools.product(crashed.outcomes(), (True, False)):
            if not flushed_only and crashed.safe == crashed.written:
                continue  # the same once more
            crashed.rebuild(before, entries, flushed_only)
            found = take_up(directory)
            assert found is not None
            read = read_checkpoint(found).state["update"]
            assert read in (1, update) and (count < committed or read == update)
            tried += 1
    assert tried > 2 * len(disk.calls)


def test_the_replay_notices_a_name_before_the_content(tmp_path: Path) -> None:
    """Without its flushes a commit would be lost, so the test above can fail."""
    directory, before = tmp_path / "checkpoints", tmp_path / "before"
    directory.mkdir()
    shutil.copytree(directory, before)
    disk = RecordingDisk()
    write_checkpoint(checkpoint_path(directory, 1), snapshot(1), disk)
    careless = [call for call in disk.calls if call[0] != "flush"]
    Crashed(careless, directory).rebuild(before, Crashed(careless, directory).done, True)
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        latest_checkpoint(directory)


def test_all_that_a_commit_writes_is_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay above believes the disk that a flush is one; this one asks the system."""
    forced, fsync = set(), os.fsync

    def note(descriptor: int) -> None:
        forced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    folder = checkpoint_path(tmp_path / "checkpoints", 1)
    write_checkpoint(folder, snapshot(1))
    written = [tmp_path, folder.parent, folder, *folder.iterdir()]
    assert len(written) > 6
    assert [path for path in written if path.stat().st_ino not in forced] == []


class FullDisk(Disk):
    """Has no room from some call on, or takes nothing any more for another reason."""

    def __init__(self, room: int, number: int = errno.ENOSPC) -> None:
        self.room, self.number = room, number

    def _spend(self) -> None:
        self.room -= 1
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number))

    def make_folder(self, path: Path) -> None:
        self._spend()
        super().make_folder(path)

    def create(self, path: Path) -> int:
        self._spend()
        return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> None:
        self._spend()
        super().write(descriptor, data)

    def rename(self, path: Path, target: Path) -> None:
        self._spend()
        super().rename(path, target)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, r"No space left on device\..*Free some space, then resume"),
        (errno.EROFS, r"Read-only file system\..*Make that folder writable again, then resume"),
    ],
)
@pytest.mark.parametrize("update", [2, 1])
def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_else(
    tmp_path: Path, update: int, number: int, told: str
) -> None:
    write_checkpoint(checkpoint_path(tmp_path, 1), snapshot(1))
    for room in itertools.count():
        disk = FullDisk(room, number)
        try:
            write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update), disk)
            break
        except CheckpointError as error:
            assert re.search(told, str(error))
            assert [path.name for path in tmp_path.iterdir()] == ["update-000001"]
            assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1)
    assert room > 12
    assert list_checkpoints(tmp_path)[-1] == checkpoint_path(tmp_path, update)

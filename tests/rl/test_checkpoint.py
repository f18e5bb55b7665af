from __future__ import annotations

import json
import os

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
)


def snapshot(update):
    return Snapshot({"weight": torch.full((4,), float(update))}, {"update": update})


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path):
    folder = checkpoint_path(tmp_path, 3)
    write_checkpoint(folder, snapshot(3))
    read = read_checkpoint(folder)
    assert read.state == {"update": 3}
    assert torch.equal(read.tensors["weight"], torch.full((4,), 3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["update-000003"]


def test_writing_again_replaces_the_older_one(tmp_path):
    folder = checkpoint_path(tmp_path, 1)
    write_checkpoint(folder, snapshot(1))
    write_checkpoint(folder, Snapshot({"weight": torch.zeros(2)}, {"update": 1, "again": True}))
    assert read_checkpoint(folder).state["again"] is True


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_one_flipped_bit_is_found(tmp_path, name):
    folder = checkpoint_path(tmp_path, 1)
    write_checkpoint(folder, snapshot(1))
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(folder)


def test_the_latest_whole_checkpoint_is_found_behind_a_damaged_one(tmp_path):
    for update in (1, 2):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
    (checkpoint_path(tmp_path, 2) / "tensors.safetensors").write_bytes(b"")
    (tmp_path / ".staging-update-000003-77").mkdir()
    with pytest.warns(RuntimeWarning, match=r"000002/tensors.* damaged.*from update-000001"):
        assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1)


def test_the_warning_says_what_was_found_and_what_happens_and_asks_for_nothing(tmp_path):
    for update in (1, 2):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
    (checkpoint_path(tmp_path, 2) / "state.json").write_text("{}")
    expected = r"SHA-256 is 44136fa355b3…, MANIFEST.json expects \w{12}…\. Continuing from update-0"
    with pytest.warns(RuntimeWarning, match=expected) as caught:
        latest_checkpoint(tmp_path)
    assert str(caught[0].message).endswith("the updates since then run again.")
    assert "Resume" not in str(caught[0].message)


@pytest.mark.parametrize("umask", [0o000, 0o027])
def test_a_checkpoint_can_be_read_by_its_owner_alone_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_checkpoint(checkpoint_path(tmp_path, 1), snapshot(1))
    finally:
        os.umask(before)
    folder = checkpoint_path(tmp_path, 1)
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o600"}


def test_only_damaged_checkpoints_is_an_error_and_none_is_not(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    write_checkpoint(checkpoint_path(tmp_path, 1), snapshot(1))
    (checkpoint_path(tmp_path, 1) / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        latest_checkpoint(tmp_path)


def test_another_format_is_refused_with_what_to_do(tmp_path):
    folder = checkpoint_path(tmp_path, 1)
    write_checkpoint(folder, snapshot(1))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    (folder / "MANIFEST.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format 99: expected 1"):
        read_checkpoint(folder)


def test_pruning_spares_the_newest_and_the_best(tmp_path):
    for update in range(1, 6):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
    (tmp_path / ".staging-update-000009-1").mkdir()
    prune_checkpoints(tmp_path, keep=2, keep_update=1)
    assert [p.name[-1] for p in list_checkpoints(tmp_path)] == ["1", "4", "5"]
    assert not list(tmp_path.glob(".staging*"))


def test_a_write_that_fails_leaves_the_older_state(tmp_path):
    folder = checkpoint_path(tmp_path, 1)
    write_checkpoint(folder, snapshot(1))
    blocked = checkpoint_path(folder / "state.json", 2)  # a file where a folder would have to be
    with pytest.raises(CheckpointError, match="cannot write"):
        write_checkpoint(blocked, snapshot(2))
    assert read_checkpoint(folder).state == {"update": 1}

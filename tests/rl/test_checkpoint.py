from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from instructrec.errors import CheckpointError, NumericsError
from instructrec.rl.checkpoint import (
    CheckpointReadError,
    Snapshot,
    checkpoint_path,
    is_finite,
    read_checkpoint,
    update_of,
    write_checkpoint,
)
from instructrec.rl.checkpoint_keeping import (
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    take_up,
)
from instructrec.rl.durable import Disk


class RefusingDisk(Disk):
    """Does not show one file of the second checkpoint."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number

    def open_to_read(self, path: Path):
        if path.parts[-2:] == ("update-000002", self.name):
            raise OSError(self.number, os.strerror(self.number), str(path))
        return super().open_to_read(path)


def snapshot(update):
    return Snapshot({"weight": torch.full((4,), float(update))}, {"update": update})


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path):
    folder = checkpoint_path(tmp_path, 3)
    write_checkpoint(folder, snapshot(3))
    read = read_checkpoint(folder)
    assert read.state == {"update": 3}
    assert torch.equal(read.tensors["weight"], torch.full((4,), 3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["update-000003"]


def test_weights_that_train_are_looked_through_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torch, on numbers that a gradient goes through
        assert is_finite(torch.nn.Parameter(torch.ones(3)))
        assert not is_finite(torch.nn.Parameter(torch.tensor([1.0, float("inf")])))


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


def test_the_older_format_still_reads(tmp_path):
    folder = checkpoint_path(tmp_path, 4)
    folder.mkdir()
    save_file({"policy.w": torch.ones(2)}, folder / "tensors.safetensors")
    (folder / "state.json").write_text(json.dumps({"update": 4}))
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("tensors.safetensors", "state.json")
    }
    (folder / "MANIFEST.json").write_text(json.dumps({"format_version": 1, "sha256": sums}))
    assert torch.equal(
        read_checkpoint(latest_checkpoint(tmp_path)).tensors["policy.w"], torch.ones(2)
    )
    (folder / "state.json").write_text(json.dumps({"update": 5}))
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        read_checkpoint(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_never_committed(tmp_path, number):
    write_checkpoint(checkpoint_path(tmp_path, 1), snapshot(1))
    weights = torch.zeros(5)
    weights[3] = number
    for bad in (
        Snapshot({"policy.w": weights}, {}),
        Snapshot({"optimizer.0.exp_avg": weights.bfloat16()}, {}),
        Snapshot({}, {"coefficients": {"kl": number}}),
    ):
        with pytest.raises(NumericsError, match=r"not finite.*No checkpoint was written"):
            write_checkpoint(checkpoint_path(tmp_path, 2), bad)
    assert [path.name for path in tmp_path.iterdir()] == ["update-000001"]
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1)


def test_every_type_and_layout_of_tensor_comes_back(tmp_path):
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    tensors = {f"policy.{kind}": torch.arange(7).to(kind) for kind in kinds}
    tensors |= {"critic.t": torch.arange(6.0).reshape(2, 3).T, "critic.none": torch.zeros(0, 3)}
    tensors |= {"optimizer.0.step": torch.tensor(3.0), "other": torch.ones(2)[:1]}
    folder = checkpoint_path(tmp_path, 1)
    write_checkpoint(folder, Snapshot(tensors, {}))
    read = read_checkpoint(folder).tensors
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    assert len(list(folder.glob("*.safetensors"))) == 4


@pytest.mark.parametrize("how", ["missing", "cut", "zeros", "longer"])
@pytest.mark.parametrize("name", ["policy.safetensors", "state.json", "MANIFEST.json"])
def test_damage_is_named_set_aside_and_gone_past(tmp_path, name, how):
    for update in (1, 2):
        tensors = {"policy.w": torch.full((9,), 1.0 + update)}
        write_checkpoint(checkpoint_path(tmp_path, update), Snapshot(tensors, {"update": update}))
    file = checkpoint_path(tmp_path, 2) / name
    content = file.read_bytes()
    made = {"cut": content[:-9], "zeros": bytes(len(content)), "longer": content + b"x"}
    file.unlink()
    if how != "missing":
        file.write_bytes(made[how])
    with pytest.warns(RuntimeWarning, match=r"update-000002.*Continuing from update-000001"):
        assert take_up(tmp_path) == checkpoint_path(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".corrupt-update-000002", "update-000001"]


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("name", ["tensors.safetensors", "MANIFEST.json"])
def test_what_cannot_be_read_just_now_is_not_taken_for_damage(tmp_path, name, number):
    for update in (1, 2):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
    before = sorted(tmp_path.rglob("*"))
    refused = (
        rf"update-000002 cannot be read \(\[Errno {number}\].*nothing was set aside or deleted"
    )
    with pytest.raises(CheckpointReadError, match=refused):
        take_up(tmp_path, RefusingDisk(name, number))
    assert sorted(tmp_path.rglob("*")) == before
    assert take_up(tmp_path) == checkpoint_path(tmp_path, 2)


def test_nothing_is_set_aside_while_no_checkpoint_is_whole(tmp_path):
    for update in (1, 2):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
        (checkpoint_path(tmp_path, update) / "state.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        take_up(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_newer_format_is_not_gone_past(tmp_path):
    for update in (1, 2):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
    file = checkpoint_path(tmp_path, 2) / "MANIFEST.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 3}))
    with pytest.raises(
        CheckpointError, match=r"format 3: expected 1 to 2\. Continue it with the v"
    ):
        take_up(tmp_path)


def test_a_manifest_may_name_no_other_files(tmp_path):
    folder = checkpoint_path(tmp_path / "checkpoints", 1)
    write_checkpoint(folder, snapshot(1))
    (tmp_path / "secret").write_text("")
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["files"]["../../secret"] = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="no part of a checkpoint"):
        read_checkpoint(folder)


def test_pruning_leaves_alone_what_is_not_ours(tmp_path):
    for update in range(1, 6):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
    (checkpoint_path(tmp_path, 1) / "notes.txt").write_text("keep")
    elsewhere = tmp_path / "elsewhere"
    checkpoint_path(tmp_path, 2).rename(elsewhere)
    checkpoint_path(tmp_path, 2).symlink_to(elsewhere)
    prune_checkpoints(tmp_path, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("elsewhere", "update-000001", "update-000002", "update-000005")
    ]
    assert (elsewhere / "state.json").exists()


def test_pruning_counts_whole_checkpoints_alone(tmp_path):
    for update in (1, 2, 3):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
    (checkpoint_path(tmp_path, 3) / "state.json").unlink()
    prune_checkpoints(tmp_path, keep=1)
    assert [p.name[-1] for p in list_checkpoints(tmp_path)] == ["2", "3"]
    (checkpoint_path(tmp_path, 2) / "MANIFEST.json").unlink()
    prune_checkpoints(tmp_path, keep=1)
    assert [p.name[-1] for p in list_checkpoints(tmp_path)] == ["2", "3"]


def test_order_goes_by_the_number_and_not_by_the_clock(tmp_path):
    for update in (9, 10, 1_000_000):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
        os.utime(checkpoint_path(tmp_path, update), (0, 1e9 - update))
    assert [update_of(path) for path in list_checkpoints(tmp_path)] == [9, 10, 1_000_000]
    assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1_000_000)


@pytest.mark.slow
def test_many_commits_take_no_more_room_than_those_that_are_kept(tmp_path):
    for update in range(1, 101):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot(update))
        assert len(list(tmp_path.iterdir())) <= 4
        prune_checkpoints(tmp_path, keep=3)
        assert latest_checkpoint(tmp_path) == checkpoint_path(tmp_path, update)
    assert len(list(tmp_path.iterdir())) == 3

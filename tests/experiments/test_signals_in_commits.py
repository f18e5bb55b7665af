"""Signals while a checkpoint is written, which ends first, and in the final evaluation."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.kill_run import UPDATES, Runner, committed, faults, outcome
from instructrec.crash_points import CRASH_POINTS, listening
from instructrec.errors import RunInterrupted
from instructrec.experiments.interruption import StopRequest
from instructrec.experiments.runfolder import RunFolder
from instructrec.rl.checkpoint import Snapshot, checkpoint_path, read_checkpoint, write_checkpoint
from instructrec.rl.checkpoint_keeping import take_up

IN_A_COMMIT = [name for name in CRASH_POINTS if name.startswith("checkpoint.")]
NAMES = ["update-000001", "update-000002"]


def snapshot(text: str) -> Snapshot:
    tensors = {"policy.w": torch.ones(8), "optimizer.0.exp_avg": torch.zeros(8)}
    return Snapshot(tensors, {"text": text})


@pytest.fixture
def commit(tmp_path: Path) -> Callable[[str, int], None]:
    """Commits over an older checkpoint of update 2, with so many SIGTERM when it is at a place."""
    for update in (1, 2):
        write_checkpoint(checkpoint_path(tmp_path, update), snapshot("old"))

    def run(place: str, signals: int) -> None:
        left = signals

        def send(name: str) -> None:
            nonlocal left
            while name == place and left:
                left -= 1
                os.kill(os.getpid(), signal.SIGTERM)

        with listening(send):
            write_checkpoint(checkpoint_path(tmp_path, 2), snapshot("new"))

    return run


def text_of(folder: Path) -> str:
    return str(read_checkpoint(folder).state["text"])


@pytest.mark.parametrize("place", IN_A_COMMIT)
def test_a_signal_in_a_commit_lets_it_end_and_stops_behind_it(
    tmp_path: Path, place: str, commit: Callable[[str, int], None]
) -> None:
    with StopRequest() as stop, stop.attended():
        try:
            commit(place, 1)
        except KeyboardInterrupt:  # which would end the tests instead of failing this one
            pytest.fail("the commit was broken off")
        assert stop.requested
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES
    assert text_of(checkpoint_path(tmp_path, 2)) == "new"


@pytest.mark.parametrize("place", IN_A_COMMIT)
def test_a_second_signal_in_a_commit_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, place: str, commit: Callable[[str, int], None]
) -> None:
    with StopRequest() as stop, stop.attended(), pytest.raises(KeyboardInterrupt):
        commit(place, 2)
    hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert all(name.startswith((".staging-", ".replaced-")) for name in hidden)
    found = take_up(tmp_path)
    assert found == checkpoint_path(tmp_path, 2)
    named = place in ("checkpoint.renamed", "checkpoint.committed")
    assert text_of(found) == ("new" if named else "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == NAMES


@pytest.mark.slow
@pytest.mark.timeout(900)  # seven runs, which take long where others are at work
def test_a_run_that_is_signalled_in_a_commit_ends_behind_it_and_resumes_exactly(
    tmp_path: Path,
) -> None:
    whole = Runner(tmp_path / "whole", "full")
    assert whole.start().code == 0
    expected = outcome(whole.run)
    for number, place in enumerate(
        ("checkpoint.staged:2", "checkpoint.file.begun:9", "checkpoint.renamed:2")
    ):
        runner = Runner(tmp_path / f"run-{number}", "full")
        ended = runner.start(crash_at=f"{place}:TERM")
        assert (ended.signal, ended.code) == (0, RunInterrupted.exit_code), ended.output
        done = committed(runner.run)
        assert f"stopped after update {done} of" in ended.output and 0 < done < UPDATES
        assert RunFolder.open(runner.run).record()["status"] == "interrupted"
        assert not list((runner.run / "checkpoints").glob(".*"))
        assert runner.start("--resume").code == 0
        assert faults(runner.run, expected) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "evaluations"), [("full", 3), ("sft", 4)])
def test_a_run_that_is_stopped_in_its_final_evaluation_says_so_and_goes_on(
    tmp_path: Path, kind: str, evaluations: int
) -> None:
    whole = Runner(tmp_path / "whole", kind)
    assert whole.start().code == 0
    expected = outcome(whole.run)
    runner = Runner(tmp_path / "stopped", kind)
    ended = runner.start(crash_at=f"evaluation.answered:{evaluations + 1}:TERM")
    assert (ended.signal, ended.code) == (0, RunInterrupted.exit_code), ended.output
    assert (
        "stopped before all that was trained was measured and written" in ended.output
        and committed(runner.run) == UPDATES
    )
    assert RunFolder.open(runner.run).record()["status"] == "interrupted"
    assert runner.start("--resume").code == 0
    assert faults(runner.run, expected) == []

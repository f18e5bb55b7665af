"""Supervised runs that are stopped and killed through the command line, and go on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from benchmarks.kill_run import Runner, committed, faults, outcome
from instructrec.experiments.runfolder import RunFolder


@pytest.mark.slow
def test_a_run_that_is_stopped_and_then_killed_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole = Runner(tmp_path / "whole", "sft")
    assert whole.start().code == 0
    expected = outcome(whole.run)
    assert not (whole.run / "checkpoints").exists()  # they have served
    runner = Runner(tmp_path / "broken", "sft")
    stopped = runner.start(crash_at="fit.stepped:3:TERM")
    assert stopped.code == 75 and "stopped after step 3 of 5, which is saved" in stopped.output
    assert RunFolder.open(runner.run).record()["status"] == "interrupted"
    assert committed(runner.run) == 3
    killed = runner.start("--resume", crash_at="fit.reported")
    assert killed.signal == signal.SIGKILL and "resuming after step 3" in killed.output
    other = runner.start("--resume", "--sft.learning_rate", "1e-3")
    assert other.code == 2 and "--allow_change" in other.output
    assert runner.start("--resume").code == 0
    assert faults(runner.run, expected) == []
    again = runner.start("--resume")
    assert again.code == 0 and "has finished already" in again.output
    assert faults(runner.run, expected) == []

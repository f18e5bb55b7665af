"""What a run writes down of its faults, and what a report makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec import faults
from instructrec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HangError,
    InstructRecError,
    NumericsError,
    PolicyError,
    RewardError,
    RunInterrupted,
    SandboxError,
    TrackingError,
)
from instructrec.experiments.config import OutputConfig, TrainConfig
from instructrec.experiments.fault_log import FaultLog, exit_code, read_faults, summed
from instructrec.experiments.recording import Recorder
from instructrec.experiments.report import report
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.tracking import NullTracker
from instructrec.faults import LONGEST, Fault, heard_by, note

TIMEOUT = Fault("reward", "timeout", "judge", "no answer after 60 s", 2, ("a", "b"))
OOM = Fault("memory", "out_of_memory", "training step", "4 episodes at a time from now on")
INFO = RunInfo("train", "ppo", "ppo-parity", 1, "tiny", "parity")


class Deaf(NullTracker):
    where = ""

    def __init__(self, *_: object, **__: object) -> None:
        pass


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Recorder]:
    """Opens the record of a run; a second time that of the same run, resumed."""

    def opened(resumed: int | None = None) -> Recorder:
        config = TrainConfig(output=OutputConfig(), seed=1)
        path, resume = tmp_path / "run", resumed is not None
        folder = RunFolder.create(path, INFO, config.to_dict(), resume=resume)
        says: dict[str, Any] = {name: lambda _: None for name in ("show", "warn", "say")}
        return Recorder(
            config,
            folder,
            job_type="train",
            resumed_update=resumed,
            open_mirror=Deaf,
            **says,
        )

    return opened


def update(number: int) -> dict[str, float]:
    return {"train/update": float(number), "reward/total/mean": 0.5}


def test_faults_are_written_with_the_update_that_they_happened_in(
    record: Callable[..., Recorder], tmp_path: Path
) -> None:
    with record() as recorder:
        note(TIMEOUT)
        recorder.on_update(update(1), [])
        note(OOM)
        assert RunFolder.open(tmp_path / "run").record()["exact"] is False
    rows = read_faults(tmp_path / "run")
    assert [(row["update"], row["kind"]) for row in rows] == [(1, "timeout"), (2, "out_of_memory")]
    assert rows[0]["samples"] == ["a", "b"] and rows[0]["count"] == 2


def test_a_run_without_faults_has_no_file_and_is_exact(
    record: Callable[..., Recorder], tmp_path: Path
) -> None:
    with record() as recorder:
        recorder.on_update(update(1), [])
    assert not (tmp_path / "run" / "faults.jsonl").exists()
    assert "exact" not in RunFolder.open(tmp_path / "run").record()


def test_what_ended_a_run_stays_and_what_is_done_again_goes(
    record: Callable[..., Recorder], tmp_path: Path
) -> None:
    with pytest.raises(RewardError), record() as recorder:
        note(TIMEOUT)
        recorder.on_update(update(1), [])
        note(TIMEOUT)
        raise RewardError("7 of 8 rewards failed")
    assert not faults._listeners
    with record(resumed=1):
        note(TIMEOUT)
    rows = read_faults(tmp_path / "run")
    assert [(row["update"], row["kind"]) for row in rows] == [
        (1, "timeout"),
        (1, "RewardError"),
        (2, "timeout"),
    ]
    assert rows[1]["exit_code"] == 5 and rows[1]["message"] == "7 of 8 rewards failed"


def test_an_interruption_is_no_fault(record: Callable[..., Recorder], tmp_path: Path) -> None:
    for stop in (KeyboardInterrupt, RunInterrupted):
        with pytest.raises(stop), record(resumed=0 if stop is RunInterrupted else None):
            raise stop("now")
    assert read_faults(tmp_path / "run") == []


def test_a_report_sums_the_faults_of_a_run(record: Callable[..., Recorder], tmp_path: Path) -> None:
    hostile = Fault("reward", "raised", "judge", "<script>x</script> | \x1b[2J", 3)
    with pytest.raises(NumericsError), record() as recorder:
        for number in (1, 2, 3):
            note(TIMEOUT)
            if number == 2:
                note(hostile)
            recorder.on_update(update(number), [])
        raise NumericsError("the weights are gone")
    said: list[str] = []
    results = report(str(tmp_path / "run"), say=said.append)
    first = results["faults"][0]
    assert (first["name"], first["count"], first["first"], first["last"]) == ("judge", 6, 1, 3)
    assert [f["kind"] for f in results["faults"]] == ["timeout", "raised", "NumericsError"]
    text = "\n".join(said)
    assert "reward: timeout" in text and "1 to 3" in text and "\x1b" not in text
    written = (tmp_path / "run" / "report" / "report.md").read_text()
    assert "## Faults" in written
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "<h2>Faults" in page and "<script>x" not in page


def test_equal_faults_are_counted_together() -> None:
    rows = [{"update": u, "boundary": "reward", "kind": "raised", "name": "a"} for u in (5, 2)]
    assert [(f["count"], f["first"], f["last"]) for f in summed(rows)] == [(2, 5, 5)]
    assert summed([]) == []


def test_long_messages_are_cut() -> None:
    assert len(Fault("reward", "raised", "judge", "x" * 10_000).message) == LONGEST


def test_a_fault_that_nobody_hears_is_a_warning_and_one_that_is_heard_is_not() -> None:
    with pytest.warns(RuntimeWarning, match="no answer after 60 s"):
        note(TIMEOUT)
    outer: list[Fault] = []
    inner: list[Fault] = []
    with heard_by(outer.append):
        with heard_by(inner.append):
            note(TIMEOUT)
        note(OOM)
    assert (outer, inner) == ([TIMEOUT, OOM], [TIMEOUT])


def test_the_log_of_a_torn_file_goes_on(tmp_path: Path) -> None:
    log = FaultLog(tmp_path)
    log.write(1, TIMEOUT)
    log.close()
    with open(tmp_path / "faults.jsonl", "a") as file:
        file.write('{"update": 2, "bound')
    log = FaultLog(tmp_path, resumed_update=1)
    log.write(2, OOM)
    log.close()
    assert [row["update"] for row in read_faults(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InstructRecError, 1),
        (ConfigError, 2),
        (DataError, 3),
        (PolicyError, 4),
        (RewardError, 5),
        (SandboxError, 6),
        (NumericsError, 7),
        (CheckpointError, 8),
        (TrackingError, 9),
        (HangError, 10),
        (RunInterrupted, 75),
        (ValueError, 1),
    ],
)
def test_every_kind_of_error_has_its_exit_code(error: type[Exception], code: int) -> None:
    assert exit_code(error("text")) == code

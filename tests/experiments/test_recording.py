"""What a run tells its trackers, and when."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import NumericsError, RunInterrupted
from instructrec.experiments.config import OutputConfig, TrainConfig
from instructrec.experiments.recording import Recorder, lineage, logged_policy, parent_of
from instructrec.experiments.runfolder import RunFolder, RunInfo, read_metrics, read_rows
from instructrec.experiments.tracking import Distributions, NullTracker, TrackingConfig
from instructrec.rl.monitors import Alarm

CONFIG = TrainConfig(output=OutputConfig(samples_per_update=2), seed=1)
INFO = RunInfo("train", "ppo", "ppo-parity", 1, "tiny", "parity")
METRICS = {"train/update": 1.0, "reward/total/mean": 0.5}
ROWS = [{"update": 1, "id": str(i), "parts": {"exact": 1.0}, "total": 1.0} for i in range(4)]


class Listening(NullTracker):
    """Takes down everything that it is told."""

    mode, where = "offline", "over there"

    def __init__(self) -> None:
        self.opened: dict[str, Any] = {}
        self.told: list[tuple[Any, ...]] = []

    def __call__(self, config: TrackingConfig, folder: Path, **about: Any) -> Listening:
        self.opened = about
        return self

    def log(self, metrics: Mapping[str, Any], spread: Distributions | None = None) -> None:
        self.told.append(("log", dict(metrics), {k: len(v) for k, v in (spread or {}).items()}))

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.told.append(("samples", [row["id"] for row in rows]))

    def alert(self, title: str, text: str, level: str) -> None:
        self.told.append(("alert", title, text, level))

    def use_policy(self, name: str) -> None:
        self.told.append(("use", name))

    def log_policy(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
        self.told.append(("policy", folder.name, name, metadata["policy_hash"]))

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        self.told.append(("end", status))


@pytest.fixture
def listener() -> Listening:
    return Listening()


@pytest.fixture
def record(tmp_path: Path, listener: Listening) -> Callable[..., Recorder]:
    """Opens the record of a run in a new folder."""

    def opened(config: TrainConfig = CONFIG, info: RunInfo = INFO) -> Recorder:
        folder = RunFolder.create(tmp_path / "run", info, config.to_dict(), command=["train"])
        return Recorder(
            config,
            folder,
            job_type="train",
            resumed_update=None,
            show=lambda _: None,
            warn=lambda _: None,
            say=lambda _: None,
            open_mirror=listener,
        )

    return opened


def test_an_update_goes_to_the_folder_and_to_the_tracker(
    record: Callable[..., Recorder], listener: Listening, tmp_path: Path
) -> None:
    with record() as recorder:
        recorder.on_update(METRICS, ROWS)
    assert read_metrics(tmp_path / "run") == [METRICS]
    assert [row["id"] for row in read_rows(tmp_path / "run" / "samples.jsonl")] == ["0", "1"]
    assert listener.told == [
        ("log", METRICS, {"exact": 4, "total": 4}),
        ("samples", ["0", "1"]),
        ("end", "finished"),
    ]


def test_the_tracker_knows_the_configuration_and_what_ran(
    record: Callable[..., Recorder], listener: Listening
) -> None:
    with record():
        pass
    told = listener.opened["run_config"]
    assert told["ppo"]["num_updates"] == CONFIG.ppo.num_updates
    assert told["run"]["algorithm"] == "ppo" and told["run"]["command"] == ["train"]
    assert "python" in told["run"]["versions"]


def test_warnings_and_failures_are_alerts(
    record: Callable[..., Recorder], listener: Listening
) -> None:
    with pytest.raises(NumericsError), record() as recorder:
        recorder.on_update(METRICS, [])
        recorder.on_warning("the entropy fell")
        raise NumericsError("the gradient norm is nan")
    name = "ppo-closed-answers-s1"
    assert [told for told in listener.told if told[0] == "alert"] == [
        ("alert", f"{name}, update 1", "the entropy fell", "warning"),
        ("alert", f"{name} failed", "NumericsError: the gradient norm is nan", "error"),
    ]
    assert listener.told[-1] == ("end", "failed")


def test_an_alarm_is_kept_with_as_many_responses_as_the_sample_log_keeps(
    record: Callable[..., Recorder], listener: Listening, tmp_path: Path
) -> None:
    rows = [{"id": str(i), "response": "same"} for i in range(9)]
    with record() as recorder:
        recorder.on_update(METRICS, [])
        recorder.on_alarm(Alarm("repetition", "It repeats.", "lower_lr", "the rate 2 -> 1", rows))
    text = "It repeats. From here on: the rate 2 -> 1."
    assert ("alert", "ppo-closed-answers-s1, update 1", text, "warning") in listener.told
    (row,) = read_rows(tmp_path / "run" / "warnings.jsonl")
    assert len(row.pop("samples")) == CONFIG.samples_kept < 9
    assert row == {
        **{"update": 1, "message": "It repeats.", "monitor": "repetition"},
        **{"action": "lower_lr", "effect": "the rate 2 -> 1"},
    }


def test_a_run_that_was_stopped_is_no_alert(
    record: Callable[..., Recorder], listener: Listening
) -> None:
    with pytest.raises(RunInterrupted), record():
        raise RunInterrupted("stopped")
    assert listener.told == [("end", "interrupted")]


@pytest.mark.parametrize("wanted", [False, True])
def test_the_policy_is_sent_when_asked(
    record: Callable[..., Recorder], listener: Listening, tmp_path: Path, wanted: bool
) -> None:
    config = replace(CONFIG, tracking=TrackingConfig(log_policy=wanted))
    with record(config) as recorder:
        (tmp_path / "run" / "policy").mkdir()
        recorder.summary = {"policy_hash": "abc"}
    sent = [told for told in listener.told if told[0] == "policy"]
    expected = [("policy", "policy", "ppo-closed-answers-s1-policy", "abc")]
    assert sent == (expected if wanted else [])


def test_the_lineage_names_the_parent_by_its_weights(
    record: Callable[..., Recorder], listener: Listening, tmp_path: Path
) -> None:
    sft = replace(CONFIG, algorithm="sft", tracking=TrackingConfig(log_policy=True)).resolved()
    parent = RunFolder.create(tmp_path / "sft", INFO, sft.to_dict())
    parent.finish("finished", {"policy_hash": "p4r3nt"})
    with record(info=replace(INFO, parent=str(parent.path))):
        folder = RunFolder(tmp_path / "run")
        found = lineage(folder, {"policy_hash": "abc", "best_update": 3, "eval/total/mean": 0.5})
    assert found["parent_policy_hash"] == "p4r3nt" and found["parent"] == str(parent.path)
    assert (found["policy_hash"], found["update"], found["eval/total/mean"]) == ("abc", 3, 0.5)
    assert found["base_model"] == "tiny" and found["seed"] == 1
    assert ("use", "sft-closed-answers-s1-policy") in listener.told


def test_a_lineage_that_cannot_be_read_does_not_fail_the_run(
    record: Callable[..., Recorder], listener: Listening, tmp_path: Path
) -> None:
    parent = RunFolder.create(tmp_path / "sft", INFO, CONFIG.to_dict())
    (parent.path / "summary.json").write_text("{")
    config = replace(CONFIG, tracking=TrackingConfig(log_policy=True))
    with record(config, replace(INFO, parent=str(parent.path))):
        (tmp_path / "run" / "policy").mkdir()
    assert listener.told == [("end", "finished")]


def test_a_parent_that_is_gone_matters_to_nobody(
    record: Callable[..., Recorder], listener: Listening, tmp_path: Path
) -> None:
    with record(info=replace(INFO, parent=str(tmp_path / "gone"))):
        pass
    folder = RunFolder(tmp_path / "run")
    assert parent_of(folder) is None and logged_policy(None) is None
    assert lineage(folder, {})["parent_policy_hash"] is None
    assert listener.told == [("end", "finished")]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full and /proc")
def test_a_full_disk_is_told_to_the_tracker(
    record: Callable[..., Recorder], listener: Listening, tmp_path: Path
) -> None:
    def fill(file: Path) -> None:
        """From now on there is no space for what is written to it."""
        (number,) = [n for n in Path("/proc/self/fd").iterdir() if n.resolve() == file.resolve()]
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, int(number.name))
        os.close(full)

    with pytest.raises(OSError, match="No space left"), record() as recorder:
        fill(tmp_path / "run" / "metrics.jsonl")
        recorder.on_update(METRICS, ROWS)
    told = [words[0] for words in listener.told]
    assert told == ["alert", "end"]
    assert listener.told[-1] == ("end", "failed")

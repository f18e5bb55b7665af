"""Trackio in the place of W&B: a stand-in for it, and the real one where it is installed."""

from __future__ import annotations

import enum
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instructrec.experiments.tracking import (
    NullTracker,
    TrackingConfig,
    distributions,
    open_tracking,
)

NAMES = {"name": "ppo-parity-s1", "job_type": "train", "group": "ppo-parity"}
BOTH = TrackingConfig(report_to=("trackio",), project="answers", tags=("mine",))


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, Any], int | None]] = []
        self.alerts: list[tuple[str, str, Any, int]] = []
        self.ended = 0
        self.broken = False

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if self.broken:
            raise OSError("database is locked")
        self.logged.append((metrics, step))

    def alert(self, title: str, text: str, level: Any, step: int) -> None:
        self.alerts.append((title, text, level, step))

    def finish(self) -> None:
        self.ended += 1


class FakeTrackio:
    """The part of the module that is used."""

    class AlertLevel(enum.Enum):
        WARN = "warn"
        ERROR = "error"

    @staticmethod
    def Table(columns: list[str], data: list[list[Any]]) -> tuple[Any, ...]:
        return ("table", columns, data)

    @staticmethod
    def Histogram(sequence: list[float], num_bins: int) -> tuple[Any, ...]:
        return ("histogram", sequence)

    def __init__(self) -> None:
        self.run = FakeRun()
        self.opened: dict[str, Any] = {}

    def init(self, **options: Any) -> FakeRun:
        print("* a greeting of several lines")
        self.opened = options
        return self.run


def start(folder: Path, trackio: FakeTrackio, config: TrackingConfig = BOTH) -> tuple[Any, list]:
    notes: list[str] = []
    tracker = open_tracking(
        config,
        folder,
        **NAMES,
        tags=["ppo"],
        run_config={"ppo": {"lam": (1.0,)}},
        note=notes.append,
        trackio=trackio,
    )
    return tracker, notes


def test_the_run_is_named_grouped_and_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trackio = FakeTrackio()
    tracker, notes = start(tmp_path, trackio)
    opened = trackio.opened
    assert (opened["project"], opened["name"]) == ("answers", "ppo-parity-s1")
    assert opened["group"] == "ppo-parity"
    assert "space_id" not in opened  # nothing leaves the machine
    assert opened["config"]["ppo"] == {"lam": [1.0]}
    assert opened["config"]["tags"] == ["ppo", "mine"]
    assert opened["config"]["job_type"] == "train"
    assert notes == [tracker.where] == ["Trackio: trackio show --project answers"]
    assert capsys.readouterr().out == ""


def test_a_continued_run_goes_on_and_a_new_one_of_the_same_name_does_not(tmp_path: Path) -> None:
    trackio = FakeTrackio()
    modes = []
    for name in ("a", "a", "b"):
        (tmp_path / name).mkdir(exist_ok=True)
        start(tmp_path / name, trackio)
        modes.append(trackio.opened["resume"])
    assert modes == ["never", "allow", "never"]


def test_numbers_stand_at_their_update(tmp_path: Path) -> None:
    trackio = FakeTrackio()
    tracker, _ = start(tmp_path, trackio)
    spread = distributions([{"total": 1}])
    tracker.log({"train/update": 3.0, "reward/total/mean": 0.5, "x": float("nan")}, spread)
    tracker.log_samples([{"id": "a", "prompt": [{"role": "user"}], "parts": {"exact": 1.0}}])
    tracker.log({"sft/step": 7.0})
    tracker.finish("finished", {"eval/total/mean": 0.5, "ids": ["a"]})
    assert trackio.run.logged == [
        (
            {
                "train/update": 3.0,
                "reward/total/mean": 0.5,
                "histogram/total": ("histogram", [1.0]),
            },
            3,
        ),
        (
            {"samples": ("table", ["id", "prompt", "exact"], [["a", "[{'role': 'user'}]", 1.0]])},
            3,
        ),
        ({"sft/step": 7.0}, 7),
        ({"final/eval/total/mean": 0.5, "status": "finished"}, 7),
    ]
    assert trackio.run.ended == 1


def test_trouble_becomes_an_alert(tmp_path: Path) -> None:
    trackio = FakeTrackio()
    tracker, _ = start(tmp_path, trackio)
    tracker.log({"train/update": 2.0})
    tracker.alert("title", "text", "warning")
    assert trackio.run.alerts == [("title", "text", FakeTrackio.AlertLevel.WARN, 2)]


def test_a_failure_is_one_warning_and_then_silence(tmp_path: Path) -> None:
    trackio = FakeTrackio()
    tracker, _ = start(tmp_path, trackio)
    trackio.run.broken = True
    with pytest.warns(RuntimeWarning, match="Trackio failed .*database is locked") as caught:
        for update in range(3):
            tracker.log({"train/update": float(update)})
        tracker.finish("finished")
    assert len(caught) == 1


def test_disabled_means_none_of_them(tmp_path: Path) -> None:
    config = TrackingConfig(mode="disabled", report_to=("wandb", "trackio"))
    assert isinstance(start(tmp_path, FakeTrackio(), config)[0], NullTracker)


def test_a_missing_package_is_named_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.warns(RuntimeWarning, match=r"goes on without it .*instructrec\[trackio\]"):
        assert isinstance(open_tracking(BOTH, tmp_path, **NAMES), NullTracker)


@pytest.mark.slow
def test_the_real_one_holds_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    code = f"""
from pathlib import Path
from instructrec.experiments.tracking import TrackingConfig, distributions, open_tracking
from instructrec.experiments.tracking_threads import in_background
opened = open_tracking(TrackingConfig(report_to=("trackio",)), Path({str(tmp_path)!r}), **{NAMES!r})
tracker = in_background(opened, 60)
for update in (1, 2):
    episodes = [{{"total": 1.0, "parts": {{"exact": 1.0}}}}]
    metrics = {{"train/update": float(update), "reward/total/mean": update / 10}}
    tracker.log(metrics, distributions(episodes))
    tracker.log_samples([{{"update": update, "prompt": "2?", "parts": {{"exact": 1.0}}}}])
tracker.alert("title", "text", "warning")
tracker.finish("finished", {{"eval/total/mean": 0.5}})
"""
    environment = os.environ | {"HOME": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    told = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert told.returncode == 0, told.stderr
    database = sqlite3.connect(tmp_path / "trackio" / "instructrec.db")
    found = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    rows = [(name, step, json.loads(values)) for name, step, values in found]
    assert {name for name, _, _ in rows} == {"ppo-parity-s1"}
    curve = [(step, v["reward/total/mean"]) for _, step, v in rows if "reward/total/mean" in v]
    assert curve == [(1, 0.1), (2, 0.2)]
    samples = [v["samples"]["_value"] for _, _, v in rows if "samples" in v]
    assert samples == [[{"update": u, "prompt": "2?", "exact": 1.0}] for u in (1, 2)]
    assert rows[-1][2] == {"final/eval/total/mean": 0.5, "status": "finished"}

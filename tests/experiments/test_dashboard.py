"""``instructrec dashboard``: what the saved view shows, and what it needs."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from instructrec.errors import TrackingError
from instructrec.experiments.cli import main
from instructrec.experiments.dashboard import DashboardConfig, make

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("wandb_workspaces") is None, reason="wandb-workspaces is not installed"
)


def test_a_missing_package_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["dashboard"]) == 2
    assert "instructrec[dashboard]" in capsys.readouterr().err


@needs_package
def test_the_view_is_written_without_a_network(tmp_path: Path) -> None:
    file = tmp_path / "view.json"
    assert main(["dashboard", "--project", "answers", "--out", str(file)]) == 0
    spec = json.loads(file.read_text(encoding="utf-8"))
    assert spec["project"] == "answers"
    section = spec["spec"]["section"]
    panels = {
        panel["config"].get("chartTitle", panel["viewType"]): panel
        for one in section["panelBankConfig"]["sections"]
        for panel in one["panels"]
    }
    held_out = panels["held-out total"]["config"]
    assert held_out["metrics"] == ["eval/total/mean"] and held_out["xAxis"] == "train/update"
    assert (held_out["groupAgg"], held_out["groupArea"]) == ("mean", "minmax")
    assert panels["total by KL to the reference"]["config"]["xAxis"] == "ppo/kl_ref"
    assert panels["reward parts of the rollouts"]["config"]["metricRegex"] == "reward/.*/mean"
    tasks = re.compile(panels["tasks of a mixture"]["config"]["metricRegex"])
    assert all(map(tasks.fullmatch, ("eval/task/arithmetic/mean", "rollout/task/parity/total")))
    assert not tasks.fullmatch("eval/total/mean")
    kinds = {panel["viewType"] for panel in panels.values()}
    assert "Run Comparer" in kinds
    assert "samples" in json.dumps(section)
    assert section["runSets"][0]["grouping"]


@needs_package
def test_without_a_key_nothing_is_tried() -> None:
    with pytest.raises(TrackingError, match=r"no key was found.*wandb login.*--out FILE"):
        make(DashboardConfig(), has_key=lambda: False)


@needs_package
@pytest.mark.slow
def test_a_server_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(TrackingError, match=r"could not be saved.*--out FILE"):
        make(DashboardConfig(entity="someone"), has_key=lambda: True)

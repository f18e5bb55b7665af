"""A comparison as a report of W&B: what it holds, and that nothing is lost without a server."""

from __future__ import annotations

import importlib.util

import pytest

from instructrec.experiments.tracking import TrackingConfig
from instructrec.experiments.wandb_report import describe, save

IS_INSTALLED = importlib.util.find_spec("wandb_workspaces") is not None
CONFIG = TrackingConfig(project="answers")


@pytest.mark.skipif(not IS_INSTALLED, reason="wandb-workspaces is not installed")
def test_a_report_holds_the_tables_and_the_curves() -> None:
    report = describe("a against b", "# a against b\n\n| a | b |", CONFIG, "me")
    assert (report.project, report.entity, report.title) == ("answers", "me", "a against b")
    text, heading, grid = report.blocks
    assert text.text.startswith("# a against b") and heading.text == "Learning curves"
    assert grid.panels[0].y == ["eval/total/mean"]
    assert grid.runsets[0].project == "answers"


def test_what_goes_wrong_is_said_in_one_line() -> None:
    def nobody() -> str:
        raise ConnectionError("no server\nanywhere")

    said: list[str] = []
    save("a against b", "# a", CONFIG, say=said.append, entity=nobody)
    assert len(said) == 1 and "no report in W&B (" in said[0] and "\n" not in said[0]


@pytest.mark.skipif(IS_INSTALLED, reason="wandb-workspaces is installed")
def test_a_missing_package_is_named() -> None:
    said: list[str] = []
    save("a against b", "# a", CONFIG, say=said.append, entity=lambda: "me")
    assert "instructrec[dashboard]" in said[0]

"""An evaluation in W&B: off unless asked for, and with its numbers, families and responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from instructrec.experiments.config import EvaluateConfig, OutputConfig, PlaceConfig
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.evaluation import Evaluation
from instructrec.experiments.evaluation_report import track
from instructrec.experiments.tracking import TrackingConfig, note_unused


def silent(text: str) -> None:
    pass


def evaluated(folder: Path, tracking: TrackingConfig | None = None) -> Evaluation:
    given = {} if tracking is None else {"tracking": tracking}
    output = OutputConfig(dir=str(folder))
    config = EvaluateConfig(task="parity", limit=12, output=output, **given)
    return run_evaluation("oracle", config, say=silent)


def test_nothing_is_sent_unless_asked_for(tmp_path: Path) -> None:
    evaluated(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1 and not list(tmp_path.glob("*/wandb"))


def test_an_evaluation_is_a_run_with_its_numbers_and_responses(
    tmp_path: Path, fake_wandb: Any
) -> None:
    evaluation = evaluated(tmp_path)
    config = TrackingConfig(mode="offline")
    track("runs/oracle", evaluation, tmp_path, config, say=silent, wandb=fake_wandb)
    assert fake_wandb.opened["job_type"] == "eval" and fake_wandb.opened["group"] == "oracle"
    assert fake_wandb.opened["name"] == "oracle-parity-test"
    sent = fake_wandb.run
    assert sent.summary["final/eval/total/mean"] == 1.0 and sent.summary["exit_code"] == 0
    families = sent.tables["families"]
    assert dict(zip(families.columns, families.data[0], strict=True))["mean"] == 1.0
    assert len(sent.tables["samples"].data) == 12


def test_settings_of_tracking_that_do_nothing_are_told(tmp_path: Path) -> None:
    told: list[str] = []
    tracking = TrackingConfig(mode="disabled", project="mine", tags=("a",))
    config = EvaluateConfig(
        task="parity", limit=4, output=PlaceConfig(str(tmp_path)), tracking=tracking
    )
    run_evaluation("oracle", config, say=told.append)
    assert told[0].startswith("note: tracking.project, tracking.tags given, but nothing is mirror")
    told.clear()
    note_unused(TrackingConfig(mode="disabled"), told.append)
    note_unused(TrackingConfig(mode="offline", project="mine"), told.append)
    assert told == []
    note_unused(TrackingConfig(mode="offline", log_policy=True), told.append)
    assert len(told) == 1 and "the run that trained a policy sends it" in told[0]


def test_an_evaluation_is_tracked_on_request(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    evaluated(tmp_path, TrackingConfig(mode="offline"))
    assert list(tmp_path.glob("*/wandb/offline-run-*/*.wandb"))

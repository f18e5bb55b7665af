"""`instructrec train-reward` with algorithm alignment, and the numbers of its report."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.errors import DataError
from instructrec.experiments.alignment_stats import against_others, alignment_report, calibrate
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.preference_data import PreferenceTask
from instructrec.experiments.reward_model_config import RewardModelConfig, RewardOutputConfig
from instructrec.experiments.reward_run import run_reward_training
from instructrec.experiments.tracking import TrackingConfig
from instructrec.metrics import lookup
from instructrec.policies.config import PolicyConfig
from instructrec.rewards import make_reward
from instructrec.rl.reward_config import FitConfig

EYE = np.eye(3, dtype=bool)
HELD_OUT = {"validation_fraction": 0.3, "test_fraction": 0.3}


def test_calibrated_scores_are_the_share_of_matches_at_even_odds():
    rng = np.random.default_rng(0)
    cosine = rng.normal(0.0, 0.25, (60, 60))
    np.fill_diagonal(cosine, rng.normal(0.5, 0.25, 60))
    slope, intercept = calibrate(cosine, np.eye(60, dtype=bool))
    # Two normal densities with the same spread: log-odds (0.5 c - 0.125) / 0.25², but for chance.
    assert slope == pytest.approx(8.0, abs=2.0) and intercept == pytest.approx(-2.0, abs=0.8)
    found = alignment_report(cosine, np.eye(60, dtype=bool), range(60), slope, intercept)
    assert found.calibration_error < 0.06
    assert found.match_score > 0.7 > 0.3 > found.mismatch_score


def test_pairs_that_are_told_apart_perfectly_have_a_finite_slope():
    slope, intercept = calibrate(np.where(EYE, 0.9, 0.1), EYE)
    assert 0 < slope < 1000 and math.isfinite(intercept)
    slope, _ = calibrate(np.where(EYE, 0.1, 0.9), EYE)
    assert slope == 0.0  # a similarity never counts against a pair


def test_accuracy_and_recall_by_hand():
    cosine = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.1], [0.2, 0.2, 0.2]])
    found = alignment_report(cosine, EYE, ["a", "b", "c"], 1.0, 0.0)
    assert found.accuracy.mean == pytest.approx((1.0 + 0.5 + 0.5) / 3)
    assert found.recall_at_1.mean == pytest.approx(1 / 3)
    above, best = against_others(cosine, EYE)
    assert above.tolist() == [1.0, 0.5, 0.5] and best.tolist() == [True, False, False]
    alone, _ = against_others(cosine[:1, :1], EYE[:1, :1])
    assert math.isnan(alone[0])  # no other output to be above of
    same = EYE.copy()
    same[1, 0] = same[0, 1] = True
    assert alignment_report(cosine, same, ["a", "a", "c"], 1.0, 0.0).recall_at_1.mean == (
        pytest.approx(2 / 3)
    )


def config_of(tmp_path, number=40, steps=12) -> RewardModelConfig:
    file = tmp_path / "demonstrations.jsonl"
    rows = [{"prompt": f"say {i}", "reference": f"{i} {i} {i}"} for i in range(number)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RewardModelConfig(
        algorithm="alignment",
        task=PreferenceTask(str(file), HELD_OUT),
        policy=PolicyConfig(model="tiny", dtype="float32", device="cpu"),
        fit=FitConfig(max_steps=steps, batch_size=8, learning_rate=3e-3, eval_every=6),
        tracking=TrackingConfig(mode="disabled"),
        output=RewardOutputConfig(dir=str(tmp_path / "runs")),
    )


def test_a_run_leaves_a_model_that_the_reward_loads(tmp_path):
    said = []
    outcome = run_reward_training(config_of(tmp_path), say=said.append)
    path = outcome.folder.path
    for key in outcome.summary:
        if "/" in key:
            lookup(key)
    rows = read_rows(path / outcome.summary["scores_file"])
    reward = make_reward("alignment", path=str(path), device="cpu")
    given = reward([row["prompt"] for row in rows], [row["output"] for row in rows])
    assert given == pytest.approx([row["score"] for row in rows], abs=1e-5)
    above = [row["above_others"] for row in rows]
    best = [row["is_best"] for row in rows]
    assert outcome.summary["eval/pair_accuracy/mean"] == pytest.approx(sum(above) / len(rows))
    assert outcome.summary["eval/recall_at_1"] == pytest.approx(sum(best) / len(rows))
    assert "use: alignment" in (path / "reward_model" / "README.md").read_text()
    assert "own output" in said[1] and "| measured on | the test split" in said[1]
    task = make_task(str(tmp_path / "demonstrations.jsonl"), split="test", **HELD_OUT)
    assert [row["id"] for row in rows] == [task[i].id for i in range(len(task))]
    assert outcome.summary["measured_on"] == "test"


def test_without_a_test_split_one_half_calibrates_and_the_other_one_measures(tmp_path):
    config = config_of(tmp_path, steps=1)
    options = {"validation_fraction": 0.5, "test_fraction": 0.0}
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, options=options))
    said = []
    outcome = run_reward_training(config, say=said.append)
    held_out = make_task(config.task.name, split="validation", **options)
    rows = read_rows(outcome.folder.path / outcome.summary["scores_file"])
    assert len(rows) == len(held_out) - len(held_out) // 2
    assert "a half (the other one calibrated the score) of the validation split" in said[1]
    assert outcome.summary["measured_pairs_chose_the_weights"] and "flatters" in said[1]


def test_too_few_held_out_instructions_are_refused(tmp_path):
    config = config_of(tmp_path)
    for limits, found in (
        (
            {"validation_limit": 3, "test_split": None},
            "1 held-out instructions .* and 2 to measure",
        ),
        ({"test_limit": 1}, "and 1 to measure it: expected at least 2"),
    ):
        task = dataclasses.replace(config.task, **limits)
        with pytest.raises(DataError, match=found):
            run_reward_training(
                dataclasses.replace(config, task=task, name=f"limits{len(limits)}"), say=str
            )

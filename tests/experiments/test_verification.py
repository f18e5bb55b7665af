"""Evaluations score the weights that were trained, or say that they do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from instructrec.errors import PolicyError
from instructrec.experiments.config import (
    EvalConfig,
    EvaluateConfig,
    OutputConfig,
    TaskConfig,
    TrainConfig,
)
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.jsonl import read_json, read_rows
from instructrec.experiments.tracking import TrackingConfig
from instructrec.experiments.train import Outcome, run_training
from instructrec.experiments.verification import unchanged
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import PPOConfig
from instructrec.rl.run_state import TrainingResult


def learner(step: float, *, best_update: int = 2, last: Callable[[Any], None] = lambda p: None):
    """Two updates that add a number to all trained weights; ``last`` has the last word."""

    def learn(policy: Any, env: Any, config: PPOConfig, **options: Any) -> TrainingResult:
        for update in (1, 2):
            with torch.no_grad():
                for weight in policy.model.parameters():
                    if weight.requires_grad:
                        weight += step
            options["on_update"]({"train/update": float(update), **options["evaluate"]()}, [])
        last(policy)
        return TrainingResult(2, best_update, None, "finished")

    return learn


def train(folder: Path, learn: Any, how: str = "full") -> Outcome:
    config = TrainConfig(
        name="run",
        task=TaskConfig(name="parity", options={"size": 40}),
        policy=PolicyConfig(model="tiny", device="cpu", dtype="float32", train=how, num_layers=1),
        ppo=PPOConfig(
            num_updates=2,
            episodes_per_update=4,
            num_mini_batches=1,
            response_length=3,
            eval_every=1,
        ),
        eval=EvalConfig(limit=4, validation_limit=4),
        tracking=TrackingConfig(mode="disabled"),
        output=OutputConfig(dir=str(folder)),
    )
    return run_training(config, train_ppo=learn, say=lambda text: None)


def measure(run: Path | str, folder: Path, **changes: Any) -> Any:
    config = EvaluateConfig(
        limit=4, device="cpu", output=OutputConfig(dir=str(folder / "elsewhere")), **changes
    )
    return run_evaluation(str(run), config, say=lambda text: None)


@pytest.mark.parametrize("how", ["full", "last_layers", "lora"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_is_measured_with_the_weights_that_it_recorded(
    tmp_path: Path, how: str, dtype: str
) -> None:
    outcome = train(tmp_path, learner(0.01), how)
    recorded = outcome.summary["policy_hash"]
    file = outcome.folder.path / outcome.summary["eval_file"]
    assert read_json(file.with_suffix(".json"))["weights_hash"] == recorded
    assert recorded == outcome.policy.weights_hash()
    evaluation = measure(outcome.folder.path, tmp_path, dtype=dtype, name="again")
    assert evaluation.header["weights_hash"] == recorded
    assert read_rows(outcome.folder.path / "warnings.jsonl") == []


def test_changed_weights_in_the_run_folder_are_refused(tmp_path: Path) -> None:
    folder = train(tmp_path, learner(0.01)).folder
    load_policy(PolicyConfig(model="tiny", device="cpu"), seed=9).save(folder.policy)
    with pytest.raises(PolicyError, match=r"the run recorded .* for its policy"):
        measure(folder.path, tmp_path)
    assert len(measure(folder.policy, tmp_path).rows) == 4  # by the name of the folder they are


def test_other_weights_than_those_of_the_best_update_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="expected those of number 1, the best one"):
        train(tmp_path, learner(0.01, best_update=1))


def test_a_run_that_trained_nothing_says_so(tmp_path: Path) -> None:
    folder = train(tmp_path, learner(0.0)).folder
    (warning,) = read_rows(folder.path / "warnings.jsonl")
    assert "the very weights that it started with: every step was left out" in warning["message"]
    assert folder.record()["status"] == "finished"


def test_why_nothing_changed() -> None:
    assert unchanged("a", "b", {"updates": 3, "best_update": 3}) is None
    assert "no step was asked for" in str(unchanged("a", "a", {"updates": 0, "best_update": 0}))
    text = str(unchanged("a", "a", {"updates": 9, "best_update": 0}))
    assert "no validation was better than the one before the first step" in text

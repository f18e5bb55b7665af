"""Validations in which rewards fail choose nothing and end nothing; steps without numbers stop."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from instructrec.errors import ConfigError, NumericsError
from instructrec.faults import heard_by
from instructrec.rl.checkpoint import CheckpointReadError, update_of
from instructrec.rl.checkpoint_keeping import delete_checkpoints, list_checkpoints
from instructrec.rl.config import SFTConfig
from instructrec.rl.fitting import Surroundings
from instructrec.rl.sft import Demonstration, run_sft

ROWS = [Demonstration(f"name {letter}", letter) for letter in "abcd"]
FAILED = {"eval/judge/error_frac": 1.0}


def test_an_evaluation_whose_rewards_failed_is_told_and_chooses_nothing(toy, tmp_path):
    found = iter([{"eval/total/mean": 0.5}, FAILED, {"eval/total/mean": 0.4}, FAILED])
    config = dataclasses.replace(toy.fast, eval_every=1, early_stopping_patience=2)
    asked, faults = [], []
    with heard_by(faults.append):
        _, result, log = toy.train(
            config,
            evaluate=lambda: dict(next(found)),
            should_prune=lambda update, metrics: asked.append(update) is not None,
            checkpoint_dir=tmp_path,
        )
    assert (result.updates, result.best_update, result.stopped) == (4, 1, "finished")
    assert asked == [1, 3] and len(log) == 4
    assert [(f.boundary, f.kind) for f in faults] == [("reward", "unmeasured")] * 2


def test_a_number_that_no_evaluation_reports_is_still_refused(toy):
    config = dataclasses.replace(toy.fast, eval_every=1)
    with pytest.raises(ConfigError, match="reports no 'eval/total/mean'"):
        toy.train(config, evaluate=lambda: {"eval/judge/error_frac": 0.0})


def test_supervised_training_goes_past_a_validation_without_a_score(toy):
    found = iter([{"eval/total/mean": 0.5}, FAILED, {"eval/total/mean": math.nan}, FAILED])
    config = SFTConfig(max_steps=3, batch_size=2, eval_every=1, best_by="reward")
    around = Surroundings(on_step=lambda _: None)
    with heard_by(lambda _: None):
        result = run_sft(
            toy.policy(), ROWS, ROWS, config, seed=0, around=around, evaluate=lambda _: next(found)
        )
    assert (result.steps, result.best_step, result.best_score) == (3, 0, 0.5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_without_a_finite_gradient_is_not_taken_and_the_work_is_kept(toy, tmp_path, value):
    policy, hashes = toy.policy(), []
    weight = policy.model.lm_head.weight if hasattr(policy.model, "lm_head") else None
    weight = next(policy.model.parameters()) if weight is None else weight
    calls = []

    def spoil(gradient):
        calls.append(1)
        spoilt = gradient.clone()
        spoilt.view(-1)[0] = value
        return spoilt if len(calls) > 2 else gradient

    weight.register_hook(spoil)
    around = Surroundings(
        on_step=lambda _: hashes.append(policy.weights_hash()), checkpoint_dir=tmp_path
    )
    config = SFTConfig(max_steps=5, batch_size=4)
    with pytest.raises(NumericsError, match="step 3, or its gradient"):
        run_sft(policy, ROWS, [], config, seed=0, around=around)
    assert policy.weights_hash() == hashes[-1] and len(hashes) == 2
    assert all(torch.isfinite(p).all() for p in policy.model.parameters())
    assert [update_of(path) for path in list_checkpoints(tmp_path)] == [2]


def test_the_last_weights_stay_where_the_best_checkpoint_is_damaged(toy, tmp_path):
    scores = iter([0.1, 0.9, 0.5, 0.4])
    config = dataclasses.replace(toy.fast, eval_every=1)
    common = {"evaluate": lambda: {"eval/total/mean": next(scores)}, "checkpoint_dir": tmp_path}
    toy.train(config, **common)
    (tmp_path / "update-000002" / "policy.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="keeps the weights of update 4, the last one"):
        _, result, _ = toy.train(config, resume_from=tmp_path / "update-000004", **common)
    assert (result.updates, result.best_update) == (4, 4)


def test_a_best_checkpoint_that_cannot_be_read_just_now_is_asked_for_again(toy, tmp_path):
    scores = iter([0.1, 0.9, 0.5, 0.4])
    config = dataclasses.replace(toy.fast, eval_every=1)
    common = {"evaluate": lambda: {"eval/total/mean": next(scores)}, "checkpoint_dir": tmp_path}
    toy.train(config, **common)
    file = tmp_path / "update-000002" / "policy.safetensors"
    file.rename(tmp_path / "kept")
    file.symlink_to("/proc/self/mem")  # whose beginning nobody can read
    with pytest.raises(CheckpointReadError, match="Input/output error"):
        toy.train(config, resume_from=tmp_path / "update-000004", **common)
    (tmp_path / "kept").rename(file)
    _, result, _ = toy.train(config, resume_from=tmp_path / "update-000004", **common)
    assert (result.updates, result.best_update) == (4, 2)


def test_only_checkpoints_are_deleted_at_the_end(toy, tmp_path):
    toy.train(dataclasses.replace(toy.fast, num_updates=1), checkpoint_dir=tmp_path / "a")
    toy.train(dataclasses.replace(toy.fast, num_updates=1), checkpoint_dir=tmp_path / "b")
    (tmp_path / "b" / "notes.txt").write_text("mine")
    for name in "ab":
        delete_checkpoints(tmp_path / name)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "b",
        "b/notes.txt",
    ]

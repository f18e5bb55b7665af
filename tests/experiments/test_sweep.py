"""Sweeps: trials as runs, pruning, what is written, and going on after a kill."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from instructrec.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    PolicyError,
    RunInterrupted,
    SandboxError,
)
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.sweep import finished, open_study, run_sweep
from instructrec.experiments.sweep_spec import SweepSpec, parse_spec

pytest.importorskip("optuna")


def spec_of(**changes: Any) -> SweepSpec:
    given = {
        "recipe": "tiny_smoke",
        "settings": {"ppo.num_updates": 4, "tracking.mode": "disabled"},
        "space": {
            "ppo.learning_rate": {"log_uniform": [1e-5, 1e-2]},
            "ppo.entropy_coef": {"uniform": [0.0, 1.0]},
        },
        "trials": 6,
        "pruner": "none",
    }
    return parse_spec({**given, **changes}, name="toy")


def by_entropy(config: TrainConfig, update: int) -> float:
    """A score that the entropy coefficient decides."""
    return config.ppo.entropy_coef * update / 4


def sweep(spec: SweepSpec, folder: Path, training: Any, **options: Any) -> dict[str, Any]:
    return run_sweep(spec, folder, train=training, say=lambda text: None, **options)


def test_the_best_trial_is_found_reported_and_can_be_run_again(
    tmp_path: Path, quick_training: Any
) -> None:
    quick_training.curve = by_entropy
    folder = tmp_path / "toy"
    results = sweep(spec_of(trials=12, sampler="random"), folder, quick_training)
    values = [row["value"] for row in results["trials"]]
    assert len(values) == 12 and values == sorted(values, reverse=True)
    best = results["best"]
    assert best["value"] == pytest.approx(best["params"]["ppo.entropy_coef"])
    assert results["importance"]["ppo.entropy_coef"] > results["importance"]["ppo.learning_rate"]
    assert json.loads((folder / "sweep.json").read_text()) == results
    page = (folder / "sweep.md").read_text()
    assert all(f"| t{row['trial']:03d} | complete |" in page for row in results["trials"])
    rate = f"--ppo.learning_rate={best['params']['ppo.learning_rate']}"  # to the last digit
    assert "    instructrec train tiny_smoke --ppo.num_updates=4" in page and rate in page
    assert (folder / "importance.png").stat().st_size > 5000
    run = RunFolder.open(best["runs"][0])
    assert best["test"] == run.summary()["eval/total/mean"]
    command = run.record()["command"]
    assert f"--ppo.entropy_coef={best['params']['ppo.entropy_coef']}" in command
    assert run.info().variant == f"toy-t{best['trial']:03d}"


def test_the_score_of_a_setting_is_the_mean_of_its_seeds(
    tmp_path: Path, quick_training: Any
) -> None:
    quick_training.curve = lambda config, update: float(config.seed)
    results = sweep(spec_of(seeds=[1, 4], trials=1), tmp_path / "toy", quick_training)
    assert results["best"]["value"] == 2.5 and results["best"]["scores"] == [1.0, 4.0]
    assert [name for name, _ in quick_training.trained] == ["toy-t000-s1", "toy-t000-s4"]


def test_runs_that_are_worse_than_the_median_are_pruned(
    tmp_path: Path, quick_training: Any
) -> None:
    quick_training.curve = by_entropy
    spec = spec_of(pruner="median", pruner_startup=2, trials=8, sampler="random")
    results = sweep(spec, tmp_path / "toy", quick_training)
    pruned = [row for row in results["trials"] if row["state"] == "pruned"]
    assert pruned and all(row["value"] is None for row in pruned)
    for row in pruned:
        run = RunFolder.open(tmp_path / "toy" / "runs" / f"toy-t{row['trial']:03d}-s0")
        assert run.record()["status"] == "finished" and run.summary()["stopped"] == "pruned"
        assert len(read_metrics(run.path)) < 4
    best = max(row["params"]["ppo.entropy_coef"] for row in results["trials"])
    assert results["best"]["params"]["ppo.entropy_coef"] == best


def test_a_grid_tries_every_combination_once(tmp_path: Path, quick_training: Any) -> None:
    space = {"ppo.gamma": {"choice": [0.5, 1.0]}, "ppo.num_ppo_epochs": {"choice": [1, 2, 3]}}
    spec = spec_of(space=space, sampler="grid", trials=20)
    results = sweep(spec, tmp_path / "toy", quick_training)
    tried = {tuple(row["params"].values()) for row in results["trials"]}
    assert len(results["trials"]) == len(tried) == 6


def test_settings_that_break_are_failed_trials_and_other_errors_end_the_sweep(
    tmp_path: Path, quick_training: Any
) -> None:
    def breaks(config: TrainConfig, update: int) -> None:
        if config.ppo.entropy_coef > 0.4:
            raise NumericsError("the loss is nan.")

    quick_training.before = breaks
    results = sweep(spec_of(), tmp_path / "toy", quick_training)
    failed = [row for row in results["trials"] if row["state"] == "failed"]
    assert 0 < len(failed) < 6 and all(row["error"] == "the loss is nan." for row in failed)
    assert "failed: the loss is nan." in (tmp_path / "toy" / "sweep.md").read_text()

    def missing(config: TrainConfig, update: int) -> None:
        raise PolicyError("there is no such model.")

    quick_training.before = missing
    quick_training.trained.clear()
    with pytest.raises(PolicyError):
        sweep(spec_of(), tmp_path / "other", quick_training)
    assert len(quick_training.trained) == 1


def out_of_memory() -> PolicyError:
    """As the guards raise it when not even one episode fits."""
    error = PolicyError("out of memory in the training step with one episode at a time.")
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    return error


@pytest.mark.parametrize(
    "lack", [out_of_memory(), torch.OutOfMemoryError("CUDA out of memory."), MemoryError()]
)
def test_a_trial_that_the_memory_does_not_hold_fails_and_the_others_go_on(
    tmp_path: Path, quick_training: Any, lack: Exception
) -> None:
    def fills(config: TrainConfig, update: int) -> None:
        if config.ppo.response_length == 64:
            raise lack

    quick_training.before = fills
    space = {"ppo.response_length": {"choice": [64, 8, 4]}}  # the first is the one that fails
    results = sweep(spec_of(space=space, sampler="grid"), tmp_path / "toy", quick_training)
    states = {row["params"]["ppo.response_length"]: row["state"] for row in results["trials"]}
    assert states == {64: "failed", 8: "complete", 4: "complete"}
    (failed,) = (row for row in results["trials"] if row["state"] == "failed")
    assert failed["error"] == (str(lack) or "MemoryError")
    assert f"t000 failed: {failed['error']}" in (tmp_path / "toy" / "sweep.md").read_text()


@pytest.mark.parametrize("kind", [PolicyError, DataError])
def test_an_error_of_model_or_data_is_the_trials_once_another_one_could_use_them(
    tmp_path: Path, quick_training: Any, kind: type[Exception]
) -> None:
    def refuses(config: TrainConfig, update: int) -> None:
        if config.ppo.response_length == 64:
            raise kind("cannot be used.")

    quick_training.before = refuses
    space = {"ppo.response_length": {"choice": [8, 64, 4]}}
    results = sweep(spec_of(space=space, sampler="grid"), tmp_path / "toy", quick_training)
    assert [row["state"] for row in results["trials"]] == ["complete", "complete", "failed"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no space left on device"),
        CheckpointError("another process is at work."),
        SandboxError("code cannot be confined."),
        RunInterrupted("stopped after update 1."),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
)
def test_what_would_meet_the_next_trial_as_well_ends_the_sweep(
    tmp_path: Path, quick_training: Any, error: Exception
) -> None:
    def breaks(config: TrainConfig, update: int) -> None:
        if len(quick_training.trained) == 2:
            raise error

    quick_training.before = breaks
    with pytest.raises(type(error)):
        sweep(spec_of(), tmp_path / "toy", quick_training)
    assert len(quick_training.trained) == 2
    quick_training.before = lambda config, update: None
    results = sweep(spec_of(), tmp_path / "toy", quick_training, resume=True)
    assert [row["state"] for row in results["trials"]] == ["complete"] * 6


def test_an_interrupted_trial_goes_on_with_its_values_and_its_run(
    tmp_path: Path, quick_training: Any
) -> None:
    """As after a kill, the record says that the trial is at work."""

    def dies(config: TrainConfig, update: int) -> None:
        if len(quick_training.trained) == 3 and update == 3:
            raise KeyboardInterrupt

    quick_training.curve, quick_training.before = by_entropy, dies
    folder, spec = tmp_path / "toy", spec_of(pruner="median")
    with pytest.raises(KeyboardInterrupt):
        sweep(spec, folder, quick_training)
    study = open_study(spec, folder)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    at_work = study.trials[2]

    quick_training.before = lambda config, update: None
    results = sweep(spec, folder, quick_training, resume=True)
    assert quick_training.trained[3] == ("toy-t002-s0", 3)  # two updates had been done
    assert len(results["trials"]) == 6
    (again,) = (row for row in results["trials"] if row["trial"] == 2)
    assert again["params"] == at_work.params and again["state"] == "complete"
    continued = open_study(spec, folder).trials[3]
    assert continued.intermediate_values.keys() == {1, 2, 3, 4}

    uninterrupted = QuickAgain(quick_training)
    other = sweep(spec, tmp_path / "other", uninterrupted)
    assert [row["params"] for row in other["trials"]] == [r["params"] for r in results["trials"]]


class QuickAgain:
    """The same training under another count."""

    def __init__(self, training: Any) -> None:
        self.training = training

    def __call__(self, config: TrainConfig, **options: Any) -> None:
        self.training(config, **options)


def test_a_sweep_is_continued_as_it_was_and_by_one_process(
    tmp_path: Path, quick_training: Any
) -> None:
    folder = tmp_path / "toy"
    sweep(spec_of(trials=1), folder, quick_training)
    with pytest.raises(CheckpointError, match=r"exists already.*--resume"):
        sweep(spec_of(trials=1), folder, quick_training)
    with pytest.raises(CheckpointError, match="another metric"):
        other = dataclasses.replace(spec_of(), metric="eval/exact_match/mean")
        sweep(other, folder, quick_training, resume=True)
    assert len(sweep(spec_of(trials=2), folder, quick_training, resume=True)["trials"]) == 2

    def meanwhile(config: TrainConfig, update: int) -> None:
        sweep(spec_of(trials=4), folder, quick_training, resume=True)

    quick_training.before = meanwhile
    with pytest.raises(CheckpointError, match="another process is at work"):
        sweep(spec_of(trials=3), folder, quick_training, resume=True)
    assert "trials: 3" in (folder / "sweep.yaml").read_text()  # the one that was refused: 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="holds no sweep"):
        sweep(spec_of(), tmp_path / "mine", quick_training, overwrite=True)


def test_a_sweep_without_a_finished_trial_fails(tmp_path: Path, quick_training: Any) -> None:
    def breaks(config: TrainConfig, update: int) -> None:
        raise NumericsError("the loss is nan.")

    quick_training.before = breaks
    with pytest.raises(ConfigError, match=r"no trial came to its end: the loss is nan"):
        sweep(spec_of(trials=2), tmp_path / "toy", quick_training)


TOY = """
recipe: tiny_smoke
settings: {ppo.num_updates: 3, tracking.mode: disabled, output.export_policy: false}
space:
  ppo.learning_rate: {log_uniform: [1e-4, 1e-2]}
  ppo.num_ppo_epochs: {integer: [1, 2]}
trials: 3
pruner_startup: 1
"""


@pytest.mark.slow
def test_a_sweep_that_was_killed_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(TOY, encoding="utf-8")
    command = [sys.executable, "-m", "instructrec.experiments.cli", "sweep", "toy.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    at_work = Path("runs/sweeps/toy/runs/toy-t001-s0")
    deadline = time.monotonic() + 200
    while not (at_work / "metrics.jsonl").exists() or not read_metrics(at_work):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = read_metrics(at_work)
    first = read_metrics("runs/sweeps/toy/runs/toy-t000-s0")

    assert subprocess.run([*command, "--resume"]).returncode == 0
    results = json.loads(Path("runs/sweeps/toy/sweep.json").read_text())
    assert sorted(row["trial"] for row in results["trials"])[:2] == [0, 1]
    assert len(results["trials"]) == 3
    assert read_metrics("runs/sweeps/toy/runs/toy-t000-s0") == first
    after = read_metrics(at_work)
    assert [row["train/update"] for row in after][: len(before)] == [
        row["train/update"] for row in before
    ]
    assert (RunFolder.open(at_work).record()).get("resumed")
    from instructrec.experiments.sweep_spec import read_spec

    spec = read_spec(Path("toy.yaml"))
    assert len(finished(open_study(spec, Path("runs/sweeps/toy")))) == 3

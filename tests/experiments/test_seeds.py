"""Several seeds of one setting: one run each, resumed, reported, and stopped by a failure."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import instructrec
from instructrec.errors import CheckpointError, ConfigError, NumericsError, RunInterrupted
from instructrec.experiments.cli import main
from instructrec.experiments.config import OutputConfig, TrainConfig
from instructrec.experiments.contenders import read_comparison
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.seeds import SeedsOutcome, for_one_seed
from instructrec.experiments.train_seeds import run_seeds
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import PPOConfig


def config(folder: Path, **changes: Any) -> TrainConfig:
    ppo = PPOConfig(num_updates=2, episodes_per_update=4, num_mini_batches=1, eval_every=1)
    made = TrainConfig(variant="quick", ppo=ppo, output=OutputConfig(dir=str(folder)))
    return dataclasses.replace(made, **changes)


def train(folder: Path, training: Any, *seeds: int, **options: Any) -> tuple[SeedsOutcome, str]:
    """Trains the seeds; returns what came out and what was said."""
    said: list[str] = []
    options.setdefault("config", config(folder))
    outcome = run_seeds(options.pop("config"), seeds, train=training, say=said.append, **options)
    return outcome, "\n".join(said)


def test_every_seed_is_the_run_that_it_would_be_by_itself(
    tmp_path: Path, quick_training: Any
) -> None:
    command = ["train", "quick", "--seeds", "1", "2", "--keep_going", "--seed=9"]
    start = config(tmp_path, policy=PolicyConfig(model="starts/s{seed}/policy"))
    train(tmp_path, quick_training, 1, 2, config=start, command=command[:5])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quick-s1", "quick-s2"]
    folder = RunFolder.open(tmp_path / "quick-s2")
    assert folder.info().seed == 2 and folder.info().variant == "quick"
    assert folder.config()["policy"]["model"] == "starts/s2/policy"
    recorded = json.loads((folder.path / "run.json").read_text())["command"]
    assert recorded == ["train", "quick", "--seed", "2"]
    assert for_one_seed(command, 1) == ["train", "quick", "--seed", "1"]
    assert for_one_seed(["--seeds=1", "--name", "a"], 1) == ["--seed", "1", "--name", "a"]


def test_seeds_stand_together_in_a_comparison_and_in_the_table(
    tmp_path: Path, quick_training: Any
) -> None:
    outcome, said = train(tmp_path, quick_training, 1, 2, 3)
    means = [run.summary["eval/total/mean"] for run in outcome.runs]
    scores = outcome.scores["total"]
    assert scores.mean == pytest.approx(sum(means) / 3) and scores.low < scores.mean < scores.high
    for run, mean in zip(outcome.runs, means, strict=True):
        assert f"{mean:.3f}" in said and str(run.folder.path) in said
    assert f"{scores.mean:.3f} [{scores.low:.3f}, {scores.high:.3f}]" in said
    folders = [str(run.folder.path) for run in outcome.runs]
    assert f"instructrec compare {' '.join(folders)}" in said
    other, _ = train(tmp_path, quick_training, 1, config=config(tmp_path, variant="other"))
    named = [*folders, str(other.runs[0].folder.path)]
    ours, _ = read_comparison(named).contenders
    assert (ours.name, ours.seeds) == ("quick", [1, 2, 3])


def test_a_failed_seed_ends_the_command_and_resume_goes_on(
    tmp_path: Path, quick_training: Any
) -> None:
    def fails(run: TrainConfig, update: int) -> None:
        if run.seed == 2 and update == 2:
            raise NumericsError("the loss is nan.")

    quick_training.before = fails
    said: list[str] = []
    with pytest.raises(NumericsError, match="nan"):
        run_seeds(config(tmp_path), [1, 2, 3], train=quick_training, say=said.append)
    end = said[-1]
    assert "stopped at seed 2" in end and "finished: 1 (" in end and "not begun: 3" in end
    assert not (tmp_path / "quick-s3").exists()

    quick_training.before = lambda run, update: None
    quick_training.trained.clear()
    outcome, text = train(tmp_path, quick_training, 1, 2, 3, resume=True)
    assert quick_training.trained == [("quick-s2", 2), ("quick-s3", 1)]
    assert "seed 1:" in text and "finished already" in text and len(outcome.runs) == 3


def test_keep_going_trains_the_others_and_then_raises(tmp_path: Path, quick_training: Any) -> None:
    def fails(run: TrainConfig, update: int) -> None:
        if run.seed == 1:
            raise NumericsError("the loss is nan.")

    quick_training.before = fails
    said: list[str] = []
    with pytest.raises(NumericsError):
        run_seeds(
            config(tmp_path), [1, 2, 3], keep_going=True, train=quick_training, say=said.append
        )
    assert "seed 1 failed: the loss is nan." in said[-1] and "quick-s3" in said[-1]


def test_an_interruption_ends_all_seeds(tmp_path: Path, quick_training: Any) -> None:
    def stops(run: TrainConfig, update: int) -> None:
        raise RunInterrupted("stopped.")

    quick_training.before = stops
    with pytest.raises(RunInterrupted):
        run_seeds(
            config(tmp_path),
            [1, 2],
            keep_going=True,
            train=quick_training,
            say=lambda text: None,
        )
    assert [name for name, _ in quick_training.trained] == ["quick-s1"]


def test_what_cannot_be_trained_is_refused_before_the_first_seed(
    tmp_path: Path, quick_training: Any
) -> None:
    with pytest.raises(ConfigError, match="different seeds"):
        train(tmp_path, quick_training, 1, 1)
    with pytest.raises(ConfigError, match="folder of its own"):
        train(tmp_path, quick_training, 1, 2, config=config(tmp_path, name="one"))
    train(tmp_path, quick_training, 2)
    quick_training.trained.clear()
    with pytest.raises(CheckpointError, match=r"quick-s2 exists already.*--resume"):
        train(tmp_path, quick_training, 1, 2)
    changed = config(tmp_path, ppo=dataclasses.replace(config(tmp_path).ppo, learning_rate=1.0))
    with pytest.raises(ConfigError, match="started with other settings"):
        train(tmp_path, quick_training, 2, config=changed, resume=True)
    assert quick_training.trained == []
    train(tmp_path, quick_training, 2, overwrite=True)
    assert quick_training.trained == [("quick-s2", 1)]


def test_a_finished_seed_goes_on_to_more_updates(tmp_path: Path, quick_training: Any) -> None:
    train(tmp_path, quick_training, 1)
    more = config(tmp_path, ppo=dataclasses.replace(config(tmp_path).ppo, num_updates=3))
    train(tmp_path, quick_training, 1, config=more, resume=True)
    assert quick_training.trained == [("quick-s1", 1), ("quick-s1", 3)]


def test_the_command_refuses_what_has_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny_smoke", "--keep_going"]) == 2
    assert "--keep_going is about several seeds" in capsys.readouterr().err
    assert main(["train", "tiny_smoke", "--sanity", "--seeds", "1", "2"]) == 2
    assert "--seeds" in capsys.readouterr().err
    assert main(["train", "tiny_smoke", "--seeds", "1", "1"]) == 2
    assert "different seeds" in capsys.readouterr().err


@pytest.mark.slow
def test_seeds_are_trained_from_the_command_line_and_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seeds = ["--seeds", "1", "2"]
    small = ["--ppo.num_updates", "1", "--tracking.mode", "disabled"]
    assert main(["train", "tiny_smoke", *small, *seeds]) == 0
    assert "runs/tiny-smoke-s1 runs/tiny-smoke-s2" in capsys.readouterr().out
    weights = Path("runs/tiny-smoke-s2/policy/model.safetensors").read_bytes()
    single = [*small, "--seed", "2", "--variant", "alone"]
    assert main(["train", "tiny_smoke", *single]) == 0
    assert Path("runs/alone-s2/policy/model.safetensors").read_bytes() == weights
    settings = {"ppo.num_updates": 1, "tracking.mode": "disabled"}
    outcome = instructrec.train(
        "tiny_smoke", settings=settings, seeds=[1, 2, 3], resume=True, say=lambda text: None
    )
    assert [run.seed for run in outcome.runs] == [1, 2, 3]
    assert set(outcome.scores) == {"total", "exact_match"}

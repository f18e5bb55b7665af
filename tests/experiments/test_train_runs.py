"""Training runs around an injected learner: what is written, resumed, refused and interrupted."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from instructrec.envs.refine import RefineVectorEnv
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import CheckpointError, ConfigError, DataError, RunInterrupted
from instructrec.experiments.config import (
    EvalConfig,
    OutputConfig,
    TaskConfig,
    TrainConfig,
)
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.tracking import TrackingConfig
from instructrec.experiments.train import Outcome, run_training
from instructrec.policies.base import Prompt, Responses, StopReason
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.rl.checkpoint import Snapshot, checkpoint_path, read_checkpoint, write_checkpoint
from instructrec.rl.config import PPOConfig
from instructrec.rl.monitors import Alarm
from instructrec.rl.run_state import TrainingResult


class Echo:
    """A policy that answers "even" and whose one weight is a counter of updates."""

    name, takes_system = "echo", True
    device = torch.device("cpu")
    compute_dtype = torch.float32

    def __init__(self) -> None:
        self.model = torch.nn.Linear(1, 1, bias=False)
        self.prompts: list[Prompt] = []
        self.set_weight(0)

    def set_weight(self, value: float) -> None:
        with torch.no_grad():
            self.model.weight.fill_(value)

    def respond(
        self,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]] | None = None,
        sampling: Sampling | None = None,
    ) -> Responses:
        self.prompts += prompts
        count = len(prompts)
        return Responses(["even"] * count, stop_reasons=[StopReason.EOS] * count)

    def weights_hash(self) -> str:
        return str(float(self.model.weight.detach()))

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights.json").write_text(self.weights_hash())


SPEEDS = {
    "speed/episodes_per_s": 1.5,
    "speed/tokens_per_s": 2e3,
    "speed/update_flops_per_s": 3e10,
    "speed/update_limit_frac": 0.2,
    "speed/limit_frac": 0.1,
}


class FakeLearner:
    """Counts updates as ``train_ppo`` does, with real checkpoints and no learning."""

    def __init__(self, on_begin: Callable[[int], None] = lambda update: None) -> None:
        self.on_begin = on_begin
        self.resumed_from: Path | None = None
        self.env: Any = None

    def __call__(
        self,
        policy: Echo,
        env: Any,
        config: PPOConfig,
        *,
        seed: int,
        on_update: Callable[[dict[str, float], list[dict[str, Any]]], None],
        evaluate: Callable[[], dict[str, float]] | None,
        checkpoint_dir: Path,
        resume_from: Path | None,
        should_stop: Callable[[], bool],
        on_alarm: Callable[[Alarm], None],
        should_prune: Callable[[int, dict[str, float]], bool],
        allow_change: Sequence[str] = (),
    ) -> TrainingResult:
        assert env.num_envs == config.episodes_per_update
        self.env = env
        self.resumed_from = resume_from
        done = read_checkpoint(resume_from).state["update"] if resume_from else 0
        stopped = False
        while done < config.num_updates and not stopped:
            self.on_begin(done + 1)
            done += 1
            policy.set_weight(done)
            metrics = {"train/update": float(done), "reward/total/mean": done / 10}
            metrics["ppo/critic_used"] = float(done > 1)
            for key, value in SPEEDS.items():
                metrics[key] = value * done
            if evaluate is not None:
                metrics |= evaluate()
            stopped = should_stop()
            write_checkpoint(checkpoint_path(checkpoint_dir, done), Snapshot({}, {"update": done}))
            on_update(metrics, [{"update": done, "id": str(i)} for i in range(3)])
            if done == 2:
                on_alarm(Alarm("repetition", "something looks wrong.", samples=[{"id": "0"}] * 3))
        return TrainingResult(done, done, None, "interrupted" if stopped else "finished")


def small(folder: Path, **changes: Any) -> TrainConfig:
    config = TrainConfig(
        name="run",
        task=TaskConfig(name="parity", options={"size": 40}),
        policy=PolicyConfig(model="echo"),
        ppo=PPOConfig(num_updates=3, episodes_per_update=4, num_mini_batches=1, eval_every=1),
        eval=EvalConfig(limit=10, validation_limit=6),
        tracking=TrackingConfig(mode="disabled"),
        output=OutputConfig(dir=str(folder), samples_per_update=2),
    )
    return dataclasses.replace(config, **changes)


def train(
    config: TrainConfig,
    learner: FakeLearner | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> Outcome:
    return run_training(
        config,
        load_policy=lambda *_: Echo(),  # type: ignore[arg-type]
        train_ppo=learner or FakeLearner(),
        say=lambda text: None,
        resume=resume,
        overwrite=overwrite,
    )


def updates(folder: Path) -> list[float]:
    return [row["train/update"] for row in read_metrics(folder)]


def test_a_run_leaves_the_whole_folder(tmp_path: Path) -> None:
    outcome = train(small(tmp_path))
    folder = outcome.folder
    assert folder.record()["status"] == "finished"
    assert updates(folder.path) == [1, 2, 3]
    assert [row["update"] for row in read_rows(folder.samples_path)] == [1, 1, 2, 2, 3, 3]
    assert folder.summary() == json.loads(json.dumps(outcome.summary))
    assert (folder.policy / "weights.json").read_text() == "3.0"
    names = {path.name for path in (folder.path / "eval").glob("*.jsonl")}
    assert names == {
        "parity-validation-greedy_first6-1.jsonl",
        "parity-validation-greedy_first6-2.jsonl",
        "parity-validation-greedy_first6-3.jsonl",
        "parity-test-greedy_first10-3.jsonl",
    }


def test_the_final_numbers_are_those_of_the_test_split(tmp_path: Path) -> None:
    outcome = train(small(tmp_path))
    rows = read_rows(outcome.folder.path / outcome.summary["eval_file"])
    share = sum(row["reference"] == "even" for row in rows) / len(rows)
    assert len(rows) == 10 and 0 < share < 1
    assert outcome.summary["eval/exact_match/mean"] == pytest.approx(share)
    assert (
        outcome.summary["eval/exact_match/ci_low"]
        < share
        < outcome.summary["eval/exact_match/ci_high"]
    )


def test_validation_numbers_stand_beside_the_update_that_they_belong_to(tmp_path: Path) -> None:
    rows = read_metrics(train(small(tmp_path)).folder.path)
    assert all("eval/exact_match/mean" in row for row in rows)


def test_nothing_is_evaluated_during_training_unless_asked_for(tmp_path: Path) -> None:
    ppo = PPOConfig(num_updates=1, episodes_per_update=4, num_mini_batches=1)
    outcome = train(small(tmp_path, ppo=ppo))
    assert [path.name for path in (outcome.folder.path / "eval").glob("*.jsonl")] == [
        "parity-test-greedy_first10-1.jsonl"
    ]


def test_an_existing_run_is_not_touched_without_a_flag(tmp_path: Path) -> None:
    train(small(tmp_path))
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"--resume.*--overwrite"):
        train(small(tmp_path))
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    assert train(small(tmp_path), overwrite=True).summary["updates"] == 3


def test_a_mistake_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown reward"):
        train(small(tmp_path, rewards={"nothing": 1.0}))
    with pytest.raises(ConfigError, match="unknown split"):
        train(small(tmp_path, task=TaskConfig(name="parity", test_split="tset")))
    assert list(tmp_path.iterdir()) == []


def test_a_failing_run_says_so_in_its_folder(tmp_path: Path) -> None:
    def fail(update: int) -> None:
        raise DataError(f"no data in update {update}")

    with pytest.raises(DataError):
        train(small(tmp_path), FakeLearner(fail))
    record = RunFolder.open(tmp_path / "run").record()
    assert record["status"] == "failed" and "no data in update 1" in record["error"]


def test_a_finished_run_is_extended(tmp_path: Path) -> None:
    train(small(tmp_path))
    longer = small(tmp_path)
    longer = dataclasses.replace(longer, ppo=dataclasses.replace(longer.ppo, num_updates=5))
    learner = FakeLearner()
    outcome = train(longer, learner, resume=True)
    assert learner.resumed_from is not None and learner.resumed_from.name == "update-000003"
    assert updates(tmp_path / "run") == [1, 2, 3, 4, 5]
    assert outcome.summary["updates"] == 5
    assert (outcome.folder.policy / "weights.json").read_text() == "5.0"
    assert outcome.folder.config()["ppo"]["num_updates"] == 5


def test_what_came_after_the_checkpoint_is_done_again_and_not_twice_recorded(
    tmp_path: Path,
) -> None:
    def die(update: int) -> None:
        if update == 3:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(small(tmp_path), FakeLearner(die))
    folder = RunFolder.open(tmp_path / "run")
    with folder.metrics_path.open("a") as file:  # recorded, but its checkpoint was lost
        file.write('{"train/update": 3.0, "reward/total/mean": 99}\n{"train/upd')
    train(small(tmp_path), resume=True)
    assert updates(tmp_path / "run") == [1, 2, 3]
    assert read_metrics(tmp_path / "run")[-1]["reward/total/mean"] == pytest.approx(0.3)
    assert [row["update"] for row in read_rows(folder.samples_path)] == [1, 1, 2, 2, 3, 3]


def test_a_run_that_stopped_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    def die(update: int) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(small(tmp_path), FakeLearner(die))
    assert train(small(tmp_path), resume=True).summary["updates"] == 3
    assert updates(tmp_path / "run") == [1, 2, 3]


def test_resuming_where_nothing_is_begins(tmp_path: Path) -> None:
    said: list[str] = []
    run_training(
        small(tmp_path),
        resume=True,
        load_policy=lambda *_: Echo(),  # type: ignore[arg-type]
        train_ppo=FakeLearner(),
        say=said.append,
    )
    assert "starting from the beginning" in said[0]


def test_a_run_is_not_continued_to_fewer_updates_than_it_has(tmp_path: Path) -> None:
    train(small(tmp_path))
    config = small(tmp_path)
    ppo = dataclasses.replace(config.ppo, num_updates=2)
    shorter = dataclasses.replace(config, ppo=ppo)
    with pytest.raises(ConfigError, match=r"ppo.num_updates = 2.*3 updates"):
        train(shorter, resume=True)
    assert updates(tmp_path / "run") == [1, 2, 3]


def test_a_continued_run_keeps_its_settings(tmp_path: Path) -> None:
    train(small(tmp_path))
    with pytest.raises(ConfigError, match=r"rewards\.bleu"):
        train(small(tmp_path, rewards={"exact_match": 1.0, "bleu": 0.5}), resume=True)


# Interruption -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_one_signal_stops_behind_a_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    def interrupt(update: int) -> None:
        if update == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(RunInterrupted, match=r"update 2 of 3.*--resume"):
        train(small(tmp_path), FakeLearner(interrupt))
    folder = RunFolder.open(tmp_path / "run")
    assert folder.record()["status"] == "interrupted"
    assert updates(folder.path) == [1, 2] and folder.summary() == {}
    train(small(tmp_path), resume=True)
    assert folder.record()["status"] == "finished" and updates(folder.path) == [1, 2, 3]


def test_a_second_signal_stops_at_once_and_the_folder_stays_readable(tmp_path: Path) -> None:
    def insist(update: int) -> None:
        if update == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunInterrupted):
        train(small(tmp_path), FakeLearner(insist))
    folder = RunFolder.open(tmp_path / "run")
    assert folder.record()["status"] == "interrupted" and updates(folder.path) == [1]


# What is said, and scripted evaluations -----------------------------------------------------------


def test_a_run_says_what_it_does_and_ends_with_words_and_paths(tmp_path: Path) -> None:
    said: list[str] = []
    run_training(
        small(tmp_path),
        load_policy=lambda *_: Echo(),  # type: ignore[arg-type]
        train_ppo=FakeLearner(),
        say=said.append,
    )
    assert "parity: 40 to train on" in said[0] and "cpu" in said[0]
    assert "3 updates of 4 episodes (12 in all)" in said[0]
    assert "the critic was the baseline in 2 of 3 updates" in said[-1]
    assert (  # the median of three updates
        "speed: 3.00 episodes/s, 4,000 tokens/s, 20% of what this machine could do at most; "
        "optimizer steps at 60 GFLOP/s, 40% of its matrix rate." in said[-1]
    )
    assert "held-out exact_match: " in said[-1] and str(tmp_path / "run" / "policy") in said[-1]


@pytest.mark.parametrize(("policy", "score"), [("oracle", 1.0), ("empty", 0.0)])
def test_scripted_policies_bound_the_score(tmp_path: Path, policy: str, score: float) -> None:
    from instructrec.experiments.config import EvaluateConfig

    said: list[str] = []
    config = EvaluateConfig(limit=10, output=OutputConfig(dir=str(tmp_path)))
    evaluation = run_evaluation(policy, config, say=said.append)
    assert evaluation.metrics()["eval/exact_match/mean"] == score
    (folder,) = tmp_path.iterdir()
    assert RunFolder.open(folder).record()["job_type"] == "eval"
    assert RunFolder.open(folder).summary()["eval/exact_match/mean"] == score
    assert "exact_match" in said[0] and "category" in said[0]
    again = EvaluateConfig(
        limit=10, name="again", rewards={"bleu": 1.0}, output=OutputConfig(dir=str(tmp_path))
    )
    replayed = run_evaluation(str(evaluation.path), again, say=said.append)
    assert replayed.metrics()["eval/bleu/mean"] == score


def test_what_looked_wrong_is_kept_beside_the_numbers(tmp_path: Path) -> None:
    outcome = train(small(tmp_path))
    (row,) = read_rows(outcome.folder.path / "warnings.jsonl")
    assert (row["update"], row["message"], len(row["samples"])) == (2, "something looks wrong.", 2)


def test_the_task_says_how_many_tries_the_learner_gets(tmp_path: Path) -> None:
    task = TaskConfig(name="parity", options={"size": 40})
    tries = dataclasses.replace(task, env="refine", max_turns=5, turn_reward="last")
    for each, kind in ((task, InstructionVectorEnv), (tries, RefineVectorEnv)):
        learner = FakeLearner()
        train(small(tmp_path, task=each), learner, overwrite=True)
        assert type(learner.env) is kind
    assert (learner.env.rules.max_turns, learner.env.rules.turn_reward) == (5, "last")
    assert learner.env.task.split == "train"


def test_several_tries_are_validated_and_measured_as_they_are_trained(tmp_path: Path) -> None:
    task = TaskConfig(name="parity", options={"size": 40}, env="refine", max_turns=8)
    outcome = train(small(tmp_path, task=task))
    folder = outcome.folder.path
    names = [path.name for path in sorted((folder / "eval").glob("*.jsonl"))]
    assert names[0] == "parity-test-refine8_greedy_first10-3.jsonl"
    assert names[-1] == "parity-validation-refine8_greedy_first6-3.jsonl"
    rows = read_rows(folder / outcome.summary["eval_file"])
    assert [row["num_turns"] for row in rows] == [1 if row["total"] else 8 for row in rows]
    assert outcome.summary["eval/first_turn"] == outcome.summary["eval/total/mean"]  # it repeats
    assert outcome.summary["eval/turns"] > 1
    assert all(row["eval/turns"] > 1 for row in read_metrics(folder))  # of the validations
    assert outcome.folder.config()["ppo"]["micro_batch_size"] == 2  # eight answers are long

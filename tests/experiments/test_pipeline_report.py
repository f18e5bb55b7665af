"""A pipeline's settings, and what its report says, on numbers made by hand."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from instructrec.envs.tasks.base import make_task
from instructrec.errors import CheckpointError, ConfigError
from instructrec.experiments import pipeline_report as report
from instructrec.experiments.config import OutputConfig, TaskConfig
from instructrec.experiments.evaluation import Evaluation
from instructrec.experiments.jsonl import Row
from instructrec.experiments.locks import held
from instructrec.experiments.overoptimisation import Point
from instructrec.experiments.pipeline import run_pipeline
from instructrec.experiments.pipeline_config import (
    ChoiceConfig,
    LearnedRewardConfig,
    MentorConfig,
    PipelineConfig,
    SamplesConfig,
    refuse_changed,
)
from instructrec.experiments.pipeline_report import Measured
from instructrec.experiments.pipeline_stages import Window
from instructrec.experiments.pipeline_tracking import track
from instructrec.experiments.tracking import TrackingConfig
from instructrec.policies.config import PolicyConfig
from instructrec.rewards.parts import RewardSpec
from instructrec.rl.config import PPOConfig, SFTConfig

POINTS = [Point(0, 0, 0.0, 0.5), Point(2, 3, 1.0, 0.7), Point(4, 9, 2.0, 0.6)]


def row(i: int, gold: float | None, proxy: float = 0.0, sample: int = 0) -> Row:
    return {
        "id": f"q{i}",
        "sample": sample,
        "prompt": f"Question {i}",
        "response": f"answer {sample} with ````` in it",
        "parts": {"gold": gold, "proxy": proxy},
        "response_len": 4,
        "item": None,
        "family": "f",
    }


def test_the_best_of_n_is_taken_by_the_proxy_and_judged_by_gold() -> None:
    rows = [row(0, 0.1, 2.0), row(0, 0.9, 1.0, 1), row(1, 0.3, -1.0), row(1, 0.4, 0.0, 1)]
    best = report.best_by_proxy(Evaluation(rows, {"samples": 2}))
    assert [r["parts"]["gold"] for r in best.rows] == [0.1, 0.4]
    assert best.proxy == [2.0, 0.0] and best.kl == pytest.approx(math.log(2) - 0.5)


def test_differences_pair_instructions_that_both_have_a_gold_score() -> None:
    before = Measured("SFT", [row(0, 0.2), row(1, None), row(2, 0.4)], [])
    after = Measured("PPO", [row(2, 0.8), row(1, 0.9), row(0, 0.2)], [])
    found = report.difference(after, before)
    assert (found.mean, found.n) == (pytest.approx(0.2), 2)


def summary(best: int, stopped: str = "finished") -> Row:
    return {"best_update": best, "stopped": stopped, "updates": 4}


def test_the_report_says_what_chose_and_what_gold_said_of_it() -> None:
    by_proxy = report.ending(POINTS, summary(4), ChoiceConfig(patience=1, kl_budget=10.0))
    assert "best proxy on validation instructions within a KL of 10 nats" in by_proxy["told"]
    assert "Gold was 0.600 there; the best gold was 0.700, after update 2" in by_proxy["told"]
    assert by_proxy["overoptimised_from"] == {"update": 2, "kl": 3, "proxy": 1.0, "gold": 0.7}
    by_gold = report.ending(POINTS, summary(2, "pruned"), ChoiceConfig(by="gold", patience=1))
    assert "not there where it is hidden" in by_gold["told"]
    assert "was ended there, after update 4" in by_gold["told"]
    calm = report.ending(POINTS, summary(4), ChoiceConfig(patience=2))
    assert calm["overoptimised_from"] is None and "no over-optimisation was seen" in calm["told"]


def test_the_table_of_updates_marks_the_kept_one_and_the_turning_point() -> None:
    end = report.ending(POINTS, summary(4), ChoiceConfig(patience=1))
    lines = report.point_table(POINTS, end).splitlines()
    assert lines[3].endswith("| gold stops rising |") and lines[4].endswith("| kept |")
    assert "kept" not in lines[2]


def test_samples_show_gains_and_losses_and_cannot_end_their_block() -> None:
    before = Measured("SFT", [row(i, 0.5) for i in range(20)], [])
    after = Measured("PPO", [row(i, i / 20) for i in range(20)], [])
    text = report.samples(before, after)
    assert "Question 19" in text and "Question 0 " in text and "Question 10" not in text
    assert text.count("`````") == 2


def test_a_window_goes_on_from_the_beginning_behind_the_end() -> None:
    task = make_task("parity", split="train", size=10)
    window = Window(task, 8, 4)
    assert [window[i].id for i in range(4)] == [task[i].id for i in (8, 9, 0, 1)]
    assert len(Window(task, 0, 99)) == 10 and window.fingerprint != task.fingerprint
    with pytest.raises(IndexError):
        window[4]


def test_gold_is_measured_in_ppo_with_weight_0_and_trains_nothing_else() -> None:
    config = PipelineConfig(
        task=TaskConfig(name="parity"),
        gold={"f1": 0.5, "exact_match": 1.0},
        policy=PolicyConfig(device="cuda:1"),
    )
    ppo = config.ppo_run(1, "runs/x/sft", Path("runs/x/reward-model-1")).reward_value()
    assert {name: spec["weight"] for name, spec in ppo.items()} == {"proxy": 1.0, "gold": 0.0}
    assert ppo["gold"]["options"]["parts"] == {"f1": 0.5, "exact_match": 1.0}
    assert ppo["proxy"]["options"]["normalise"] is True
    assert ppo["proxy"]["options"]["device"] == "cuda:1"  # where the policy is
    last = config.both_rewards(Path("m"), trained_on="gold")
    assert {name: spec["weight"] for name, spec in last.items()} == {"proxy": 0.0, "gold": 1.0}


def test_all_stages_stand_in_one_group() -> None:
    config = PipelineConfig(name="mine")
    runs = [config.sft_run(), config.ppo_run(1, "a", Path("b")), config.reward_run(1, Path(), "a")]
    assert {run.tracking.group for run in runs} == {"mine"}
    assert {str(run.folder.parent) for run in runs} == {"runs/mine"}


def test_settings_may_change_until_a_stage_has_used_them(tmp_path: Path) -> None:
    config = PipelineConfig(name="mine", output=OutputConfig(dir=str(tmp_path)))
    config.folder.mkdir()
    (config.folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    refuse_changed(replace(config, rounds=3))
    other = replace(config, reward_model=LearnedRewardConfig(validation_fraction=0.5))
    refuse_changed(other)
    (config.folder / "reward-model-1").mkdir()
    with pytest.raises(ConfigError, match=r"validation_fraction: 0.2 -> 0.5"):
        refuse_changed(other)
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1"):
        refuse_changed(replace(config, seed=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PipelineConfig(ppo=PPOConfig()), "ppo.eval_every = 0"),
        (lambda: PipelineConfig(ppo=PPOConfig(eval_every=1, kl_coef=0.0)), "ppo.kl_coef = 0"),
        (lambda: PipelineConfig(rounds=0), "rounds = 0"),
        (lambda: PipelineConfig(name="a/b"), "names a folder"),
        (lambda: PipelineConfig(task=TaskConfig(env="refine")), "single answers"),
        (lambda: PipelineConfig(sft=SFTConfig(head="labels")), "sft.head = 'labels'"),
        (lambda: PipelineConfig(gold={"judge": RewardSpec(options={"api_key": "k"})}), "api_key"),
        (lambda: SamplesConfig(n=1), "samples.n = 1"),
        (lambda: SamplesConfig(temperature=0.0), "samples.temperature"),
        (lambda: MentorConfig(noise=0.6), "0.6"),
        (lambda: ChoiceConfig(patience=0), "choice.patience = 0"),
        (lambda: ChoiceConfig(kl_budget=-1.0), "choice.kl_budget"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_was_found_is_a_run_in_the_group_of_the_stages(
    tmp_path: Path, fake_wandb: Any
) -> None:
    config = PipelineConfig(
        name="mine",
        output=OutputConfig(dir=str(tmp_path)),
        tracking=TrackingConfig(mode="offline"),
    )
    gold = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    end = report.ending(POINTS, summary(4), ChoiceConfig(patience=1))
    accuracy = {"mean": 0.7, "ci_low": 0.6, "ci_high": 0.8}
    numbers = {
        "policies": {"SFT": {"gold": gold, "proxy": 0.1, "kl": None}},
        "differences_to_sft": {"PPO, round 1": {"mean": 0.2, "low": 0.1, "high": 0.3, "p": 0.01}},
        "rounds": [
            {"preferences": 40, "turned_round": 4, "pair_accuracy": accuracy, **end}
            | {"points": [asdict(point) for point in POINTS]}
        ],
    }
    track(numbers, config, say=lambda text: None, wandb=fake_wandb)
    assert (fake_wandb.opened["group"], fake_wandb.opened["name"]) == ("mine", "mine")
    assert fake_wandb.opened["job_type"] == "compare"
    sent = {name: [dict(zip(t.columns, row, strict=True)) for row in t.data]
            for name, t in fake_wandb.run.tables.items()}  # fmt: skip
    assert sent["policies"] == [
        {"policy": "SFT", "gold": 0.5, "gold low": 0.4, "gold high": 0.6, "gold n": 9}
        | {"proxy": 0.1, "kl": None}
    ]
    assert [row["gold"] for row in sent["points"]] == [0.5, 0.7, 0.6]
    assert sent["rounds"][0]["pair accuracy mean"] == 0.7 and sent["rounds"][0]["kept_update"] == 4
    assert fake_wandb.run.summary["final/PPO, round 1/above SFT/low"] == 0.1
    assert fake_wandb.run.summary["final/SFT/gold/mean"] == 0.5


def test_one_process_at_a_time_is_at_work_on_a_pipeline(tmp_path: Path) -> None:
    config = PipelineConfig(name="mine", output=OutputConfig(dir=str(tmp_path)))
    held_by_another = held(config.folder, "pipeline")
    with held_by_another, pytest.raises(CheckpointError, match="another process is at work"):
        run_pipeline(config, resume=True, say=str)
    assert not config.folder.exists()

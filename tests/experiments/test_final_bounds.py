"""Scripted bounds beside the final evaluation of a training run, and what they may cost it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.experiments.bounds import in_words, measure_bounds
from instructrec.experiments.cli import main
from instructrec.experiments.playing import SINGLE_ANSWERS
from instructrec.experiments.report import report
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.seeds import SeedRun, SeedsOutcome
from instructrec.experiments.stats import Interval
from instructrec.experiments.train_seeds import report as report_on_seeds
from instructrec.rewards import make_rewards

TINY = ["--policy.model", "tiny", "--policy.train", "full", "--policy.device", "cpu"]
SFT = ["sft", "--task.name", "parity", "--sft.max_steps", "2", "--eval.limit", "20", *TINY]
SFT += ["--eval.max_new_tokens", "3", "--sft.demonstrations", "8", "--tracking.mode", "disabled"]
PPO = ["train", "tiny_smoke", "--task.name", "parity", "--tracking.mode", "disabled"]


@pytest.mark.parametrize("command", [SFT, pytest.param(PPO, marks=pytest.mark.slow)])
def test_every_table_of_a_trained_run_has_its_bounds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--name", "mine"]) == 0
    told = r"^bounds on the same instructions: oracle 1\.000, random 0\.\d{3}, empty 0\.000$"
    assert re.search(told, capsys.readouterr().out, flags=re.MULTILINE)
    run = RunFolder.open("runs/mine")
    assert run.summary()["bounds"]["totals"]["oracle"]["mean"] == 1.0
    assert "| bound random | 0." in (run.policy / "README.md").read_text()
    assert report("runs/mine", say=[].append)["bounds"] == run.summary()["bounds"]


def test_a_run_without_bounds_says_nothing_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SFT, "--name", "mine", "--eval.bounds", "false"]) == 0
    assert "bound" not in capsys.readouterr().out
    assert "bounds" not in RunFolder.open("runs/mine").summary()


def test_bounds_that_take_too_long_are_left_out_with_a_note() -> None:
    task, reward = make_task("parity", size=2000, split="test"), make_rewards("exact_match")
    settings: dict[str, Any] = {"limit": 80, "episodes": SINGLE_ANSWERS}
    assert len(task) > 80
    late = measure_bounds(task, reward, **settings, most_s=0.0)
    assert not late.totals and late.notes[0].startswith("no bounds oracle, random, empty: scoring")
    in_time = measure_bounds(task, reward, **settings, most_s=1e6)
    assert list(in_time.totals) == ["oracle", "random", "empty"] and not in_time.notes


class Remembering:
    """A reward that is worth more with each batch that it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, completions: list[str], **_: Any) -> list[float]:
        self.seen += 1
        return [float(self.seen) for _ in completions]


def test_bounds_depend_on_nothing_that_a_reward_remembers_and_leave_it_alone() -> None:
    task, reward = make_task("parity", split="test"), make_rewards({"mine": {"use": Remembering}})

    def measured() -> Any:
        return measure_bounds(task, reward, limit=5, episodes=SINGLE_ANSWERS).totals

    fresh = measured()
    assert fresh["oracle"].mean == 1.0
    assert reward.score(["p"], ["a"], {}).total.tolist() == [1.0]
    assert measured() == fresh


def test_what_is_missing_is_said_in_words() -> None:
    assert in_words({}) == []
    note = "no scripted bounds: learned would ask a model."
    assert in_words({"bounds": {"totals": {}, "notes": [note]}}) == [note]


def test_the_table_of_several_seeds_has_bounds_once(tmp_path: Path) -> None:
    totals = {"oracle": {"mean": 1.0}, "empty": {"mean": 0.25}}
    summary = {"eval/total/mean": 0.5, "eval/a/mean": 0.4, "bounds": {"totals": totals}}
    runs = [SeedRun(seed, RunFolder(tmp_path / f"s{seed}"), summary) for seed in (0, 1)]
    score = Interval(0.5, 0.4, 0.6, 10, 10)
    outcome = SeedsOutcome(runs, {"total": score, "a": score, "b": replace(score, mean=0.6)})
    text = report_on_seeds(outcome)
    assert re.findall(r"^bound (\w+) +(\S+) +(\S+)", text, flags=re.MULTILINE) == [
        ("oracle", "1.000", "-"),
        ("empty", "0.250", "-"),
    ]

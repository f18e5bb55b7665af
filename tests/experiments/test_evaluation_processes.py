"""Two processes evaluate as one would: each plays its share, and the rows are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec import processes
from instructrec.envs.tasks.base import make_task
from instructrec.errors import ConfigError, PolicyError
from instructrec.experiments.cli import main
from instructrec.experiments.config import EvaluateConfig
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.evaluation import Evaluation, evaluate
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.runfolder import RunFolder
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.rewards import make_rewards

GREEDY = Sampling(max_new_tokens=6, temperature=0.0)
TwoProcesses = Callable[[Callable[[], Any]], list[Any]]


class Watched:
    """The tiny policy, which counts what it is asked and may fail in one process."""

    def __init__(self, failing: int | None = None) -> None:
        config = PolicyConfig(model="tiny", dtype="float32", device="cpu")
        self.inner = load_policy(config, seed=3)
        self.name = "watched"
        self.asked: list[int] = []
        self.failing = failing

    def respond(self, prompts: Any, columns: Any = None, sampling: Any = None) -> Any:
        self.asked.append(len(prompts))
        if processes.rank() == self.failing and len(self.asked) == 2:
            raise PolicyError("no answer")
        return self.inner.respond(prompts, columns, sampling)

    def weights_hash(self) -> str:
        return self.inner.weights_hash()


def measure(
    out: Path | None = None, policy: Watched | None = None, **options: Any
) -> tuple[Evaluation, list[int]]:
    task, policy = make_task("parity", split="test", size=40), policy or Watched()
    options = {"sampling": GREEDY, "batch_size": 4, "limit": 11, **options}
    reward = make_rewards({"chrf": 1.0, "repetition": 0.5})
    return evaluate(policy, task, reward, out=out, **options), policy.asked


def test_the_metrics_are_bit_for_bit_those_of_one_process(
    tmp_path: Path, in_two_processes: TwoProcesses
) -> None:
    alone, asked = measure(tmp_path / "alone.jsonl", samples=3)
    assert asked == [4] * 8 + [1]
    both = in_two_processes(lambda: measure(tmp_path / "both.jsonl", samples=3))
    assert [asked for _, asked in both] == [[4] * 4, [4] * 4 + [1]]
    for evaluation, _ in both:
        assert json.dumps(evaluation.metrics()) == json.dumps(alone.metrics())
    rows = [{k: v for k, v in row.items() if k != "logprob"} for row in alone.rows]
    written = read_rows(tmp_path / "both.jsonl")
    assert [{k: v for k, v in row.items() if k != "logprob"} for row in written] == rows
    for mine, expected in zip(written, alone.rows, strict=True):
        assert mine["logprob"] == pytest.approx(expected["logprob"], abs=1e-4)
    assert len({row["response"] for row in rows}) > 3  # it is no constant that is compared
    assert (tmp_path / "both.json").read_text() == (tmp_path / "alone.json").read_text()


def test_fewer_responses_than_processes_leave_one_without(in_two_processes: TwoProcesses) -> None:
    both = in_two_processes(lambda: measure(limit=1))
    assert [asked for _, asked in both] == [[], [1]]
    assert both[0][0].rows == both[1][0].rows == measure(limit=1)[0].rows


def test_what_fails_in_one_process_ends_both_and_the_rest_is_evaluated_later(
    tmp_path: Path, in_two_processes: TwoProcesses
) -> None:
    out = tmp_path / "rows.jsonl"
    failed, silent = in_two_processes(lambda: measure(out, Watched(failing=1)))
    assert isinstance(failed, PolicyError) and str(failed) == "no answer (process 1 of 2)"
    assert isinstance(silent, SystemExit) and silent.code == PolicyError.exit_code
    assert len(read_rows(out)) == 8  # of the round before
    both = in_two_processes(lambda: measure(out))
    assert [asked for _, asked in both] == [[1], [2]]
    assert both[0][0].metrics() == both[1][0].metrics() == measure()[0].metrics()


def test_each_process_draws_for_itself(
    tmp_path: Path, in_two_processes: TwoProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draws = {"limit": 1, "samples": 4, "temperature": 1.0, "max_new_tokens": 6}
    config = EvaluateConfig(task="parity", options={"size": 40}, device="cpu", **draws)
    both = in_two_processes(lambda: run_evaluation("tiny", config, say=lambda _: None))
    assert isinstance(both[0], Evaluation), both
    first, *rest = (row["response"] for row in both[0].rows)
    assert rest[1] != first  # the first draws of either process


@pytest.mark.slow
def test_the_command_writes_one_folder_and_speaks_once(
    tmp_path: Path, launcher: Callable[[int], list[dict[str, str]]]
) -> None:
    arguments = ["evaluate", "tiny", "--task", "parity", "--options", "{size: 40}"]
    arguments += ["--device", "cpu", "--limit", "9", "--output.dir", str(tmp_path)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "instructrec.experiments.cli", *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in launcher(2)
    ]
    said = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert "exact_match" in said[0][0] and said[1] == ("", "")
    (folder,) = (RunFolder.open(path) for path in tmp_path.iterdir())
    assert (folder.record()["status"], folder.record()["processes"]) == ("finished", 2)
    assert len(read_rows(folder.path / folder.summary()["eval_file"])) == 9


@pytest.mark.parametrize("policy", ["oracle", "random", "rows.jsonl"])
def test_policies_without_a_model_are_refused_to_several(
    policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", policy]) == ConfigError.exit_code
    assert "runs in one process, but WORLD_SIZE = 2" in capsys.readouterr().err

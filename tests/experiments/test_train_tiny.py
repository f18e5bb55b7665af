"""Whole commands on the tiny model, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from instructrec.errors import RewardError
from instructrec.experiments.cli import main
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.runfolder import RunFolder, read_metrics

pytestmark = pytest.mark.slow


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "instructrec.experiments.cli", *arguments]


def test_the_smoke_recipe_trains_evaluates_and_can_be_evaluated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "tiny_smoke"]) == 0
    folder = RunFolder.open("runs/tiny-smoke-s0")
    assert [row["train/update"] for row in read_metrics(folder.path)] == [1, 2]
    assert len(read_rows(folder.samples_path)) == 16
    assert (folder.policy / "model.safetensors").is_file()
    assert (folder.path / "wandb").is_dir()
    again = ["evaluate", "runs/tiny-smoke-s0", "--limit", "10"]
    assert main(again) == 0 and main([*again, "--overwrite"]) == 0
    assert len(list((folder.path / "eval").glob("*-test-*.jsonl"))) == 1
    assert "exact_match" in capsys.readouterr().out


def test_rejection_sampling_trains_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("letters.py").write_text(
        "def score(completions, **columns):\n    return [len(set(c)) / 9 for c in completions]\n"
    )
    train = ["train", "tiny_smoke", "--algorithm", "raft", "--ppo.num_generations", "4"]
    train += ["--rewards.letters", "letters.py:score"]
    assert main(train) == 0
    assert main([*train, "--ppo.num_updates", "3", "--resume"]) == 0
    folder = RunFolder.open("runs/tiny-smoke-s0")
    assert folder.info().algorithm == "raft"
    rows = read_metrics(folder.path)
    assert [row["train/update"] for row in rows] == [1, 2, 3]
    assert all(0 < row["raft/kept_frac"] < 1 and "ppo/value_loss" not in row for row in rows)
    assert main(["train", "tiny_smoke", "--algorithm", "raft"]) == 2


def test_several_tries_are_chosen_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refine = ["--task.env", "refine", "--task.max_turns", "2", "--name", "refine"]
    assert main(["train", "tiny_smoke", *refine]) == 0
    rows = read_metrics("runs/refine")
    assert [row["rollout/turns"] for row in rows] == [2.0, 2.0]  # it is never right
    folder = RunFolder.open("runs/refine")
    assert (folder.policy / "model.safetensors").is_file()
    assert folder.summary()["eval/turns"] == 2.0
    again = ["evaluate", "runs/refine", "--limit", "4"]
    assert main([*again, "--env", "instruction"]) == 0 and main(again) == 0
    names = [path.name for path in (folder.path / "eval").glob("*-test-*first4-*.jsonl")]
    assert sorted("refine2" in name for name in names) == [False, True]


def test_a_conversation_with_a_users_own_user_is_trained_on_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("people.py").write_text(
        "def curious(messages, columns):\n    return 'Why?' if len(messages) < 4 else None\n"
    )
    chat = ["--task.env", "chat", "--task.env_options", "{user: people.py:curious}"]
    assert main(["train", "tiny_smoke", *chat, "--name", "chat"]) == 0
    assert [row["rollout/turns"] for row in read_metrics("runs/chat")] == [2.0, 2.0]
    folder = RunFolder.open("runs/chat")
    assert folder.summary()["eval/turns"] == 2.0
    assert main(["evaluate", "runs/chat", "--limit", "4"]) == 0
    once = ["--env_options", "{user: [], turn_reward: each}"]
    assert main(["evaluate", "runs/chat", "--limit", "4", *once]) == 0
    (rows,) = [
        read_rows(path)
        for path in (folder.path / "eval").glob("*first4*.jsonl")
        if read_rows(path)[0]["num_turns"] == 1
    ]
    assert len(rows) == 4
    assert main(["train", "tiny_smoke", *chat[:2], "--task.env_options.usr", "x"]) == 2


def test_the_use_of_a_tool_is_shown_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--policy.model", "tiny", "--policy.train", "full", "--eval.limit", "8"]
    tiny += ["--task.env_options.describe", "none"]
    few = ["--sft.demonstrations", "8", "--sft.max_steps", "2", "--sft.eval_every", "1"]
    assert main(["sft", "calculator_sft", *tiny, *few]) == 0
    start = RunFolder.open("runs/calculator-sft-s0")
    assert len(start.summary()["demonstrations"]) == 8
    assert "eval/num_calls" in start.summary()
    tiny[1] = "runs/calculator-sft-s0"
    few = ["--ppo.num_updates", "1", "--ppo.episodes_per_update", "16", "--ppo.eval_every", "0"]
    assert main(["train", "calculator", *tiny, *few]) == 0
    (metrics,) = read_metrics("runs/calculator-s0")
    assert 0 <= metrics["rollout/num_errors"] <= metrics["rollout/num_calls"]
    (file,) = (RunFolder.open("runs/calculator-s0").path / "eval").glob("*-test-*.jsonl")
    assert all({"num_calls", "num_errors"} <= row.keys() for row in read_rows(file))


def test_a_supervised_run_starts_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--policy.model", "tiny", "--policy.train", "full", "--eval.limit", "10"]
    steps = ["--sft.max_steps", "3", "--sft.batch_size", "4", "--sft.eval_every", "1"]
    assert main(["sft", "short_answers_sft", *tiny, *steps]) == 0
    start = RunFolder.open("runs/short-answers-sft-s0")
    rows = read_metrics(start.path)
    assert [row["sft/step"] for row in rows] == [0, 1, 2, 3]
    assert all("sft/val_loss" in row for row in rows) and "sft/loss" in rows[-1]
    ppo = ["--policy.model", str(start.path), "--ppo.num_updates", "1"]
    assert main(["train", "tiny_smoke", *ppo]) == 0
    assert RunFolder.open("runs/tiny-smoke-s0").info().parent == str(start.path)


def test_an_extended_run_equals_a_longer_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A random model never matches exactly; this reward tells its answers apart, so that it learns.
    reward = (
        "def score(completions, **columns):\n    return [len(set(c)) / 9 for c in completions]\n"
    )
    Path("letters.py").write_text(reward)
    train = ["train", "tiny_smoke", "--rewards.letters", "letters.py:score"]
    assert main([*train, "--name", "extended"]) == 0
    assert main([*train, "--name", "extended", "--ppo.num_updates", "3", "--resume"]) == 0
    assert main([*train, "--name", "straight", "--ppo.num_updates", "3"]) == 0

    def weights(name: str, update: int) -> str:
        file = f"runs/{name}/eval/closed_answers-validation-greedy_first10-{update}.json"
        return str(json.loads(Path(file).read_text())["weights_hash"])

    assert weights("extended", 3) == weights("straight", 3) != weights("straight", 2)
    extended, straight = (read_metrics(f"runs/{name}") for name in ("extended", "straight"))
    assert [row["reward/letters/mean"] for row in extended] == [
        row["reward/letters/mean"] for row in straight
    ]


def interrupt(folder: Path, process: subprocess.Popen[str], times: int) -> tuple[int, str]:
    """Waits for the first finished update, sends SIGINT, and waits for the end."""
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    for _ in range(times):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.02)
    _, error = process.communicate(timeout=120)
    return process.returncode, error


@pytest.mark.parametrize(("times", "code"), [(1, 75), (2, 130)])
def test_ctrl_c_leaves_a_folder_that_reads_and_resumes(
    tmp_path: Path, times: int, code: int
) -> None:
    arguments = ["train", "tiny_smoke", "--ppo.num_updates", "400", "--ppo.num_ppo_epochs", "4"]
    process = subprocess.Popen(
        command(*arguments),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "runs" / "tiny-smoke-s0"
    returned, error = interrupt(folder, process, times)
    assert returned == code, error
    assert "interrupted" in error and "Traceback" not in error
    record = RunFolder.open(folder).record()
    assert record["status"] == "interrupted"
    done = len(read_metrics(folder))
    assert 1 <= done < 400
    if times == 1:
        resumed = command(*arguments, "--resume", "--ppo.num_updates", str(done + 1))
        ended = subprocess.run(resumed, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert [row["train/update"] for row in read_metrics(folder)] == list(range(1, done + 2))
        assert RunFolder.open(folder).record()["status"] == "finished"


def test_measuring_the_start_changes_no_draw_and_says_what_training_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train = ["train", "tiny_smoke", "--eval.temperature", "1", "--name"]
    assert main([*train, "plain"]) == 0
    assert "better than before? Not known" in capsys.readouterr().out
    assert main([*train, "measured", "--eval.before", "true"]) == 0
    assert "held-out total 0.000 before, 0.000 after" in capsys.readouterr().out
    plain, measured = (read_rows(Path(f"runs/{n}/samples.jsonl")) for n in ("plain", "measured"))
    assert plain == measured
    (start,) = Path("runs/measured/eval").glob("*-test-*-0.jsonl")
    assert len(read_rows(start)) == 10


def test_a_start_that_cannot_be_measured_ends_the_mirror_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def bad(completions, **columns):\n    raise ValueError('no')\n")
    options = ["--eval.before", "true", "--rewards.bad.use", "mine.py:bad"]
    train = ["train", "tiny_smoke", "--tracking.mode", "offline"]
    assert main([*train, *options]) == RewardError.exit_code
    assert "tracking" not in {thread.name for thread in threading.enumerate()}


def test_a_reward_that_ends_the_program_ends_the_training_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("import sys\ndef leaves(completions, **columns):\n    sys.exit(0)\n")
    train = [
        "train",
        "tiny_smoke",
        "--tracking.mode",
        "disabled",
        "--rewards.mine",
        "mine.py:leaves",
    ]
    assert main(train) == RewardError.exit_code
    assert "mine: raised (SystemExit: 0)" in capsys.readouterr().err

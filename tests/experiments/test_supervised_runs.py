"""Runs that learn from given answers, from the command line to their folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instructrec.experiments.cli import main
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.report import report
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.speeds import in_words

TINY = ["--policy.model", "tiny", "--policy.train", "full", "--policy.device", "cpu"]
SHORT = ["--eval.limit", "8", "--eval.validation_limit", "4", "--eval.max_new_tokens", "3"]
SHORT += ["--tracking.mode", "disabled"]


@pytest.fixture
def preferences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of pairs, and the working folder of runs on them."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"say {i}", "chosen": "aa", "rejected": "zz"} for i in range(60)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_dpo_learns_from_a_file_of_preferences(
    preferences: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ["--dpo.max_steps", "4", "--dpo.learning_rate", "2e-3", "--dpo.eval_every", "2"]
    assert main(["dpo", "--task.name", str(preferences), *TINY, *SHORT, *steps]) == 0
    folder = RunFolder.open("runs/dpo-pairs-s0")
    rows = read_metrics(folder.path)
    assert [row["sft/step"] for row in rows] == [0, 1, 2, 3, 4]
    assert rows[-1]["dpo/val_accuracy"] == 1 and rows[-1]["dpo/loss"] < rows[1]["dpo/loss"]
    assert folder.info().job_type == folder.info().algorithm == "dpo"
    assert set(folder.config()) >= {"dpo"} and not {"sft", "ppo"} & set(folder.config())
    assert len(folder.summary()["demonstrations"]) > 30
    results = report(str(folder.path), say=lambda text: None)
    assert results["course"]["dpo/val_accuracy"]["last"] == 1
    assert set(results["speed"]) == {key for key in rows[-1] if key.startswith("speed/")}
    assert 0 < results["speed"]["speed/limit_frac"] < 1
    assert f"speed: {in_words(results['speed'])}." in capsys.readouterr().out
    assert (folder.policy / "config.json").exists()
    assert main(["evaluate", str(folder.path), "--limit", "2"]) == 0


def test_dpo_needs_pairs_and_a_recipe_of_its_own(
    preferences: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dpo", "--task.name", "parity", *TINY, *SHORT]) == 3
    assert not Path("runs").exists()
    assert "prompt, chosen and rejected" in capsys.readouterr().err
    assert main(["dpo", "short_answers_sft"]) == 2
    assert "trains with algorithm dpo" in capsys.readouterr().err
    assert main(["dpo", "--task.env", "chat"]) == 2
    assert "learn from single answers" in capsys.readouterr().err


def test_epochs_say_how_many_steps_there_are(preferences: Path) -> None:
    few = ["--sft.demonstrations", "10", "--sft.batch_size", "4", "--sft.epochs", "1.5"]
    assert main(["sft", "--task.name", str(preferences), *TINY, *SHORT, *few]) == 0
    folder = RunFolder.open("runs/sft-pairs-s0")
    assert folder.summary()["updates"] == folder.config()["sft"]["max_steps"] == 4
    assert folder.summary()["stopped"] == "finished"
    again = ["--seeds", "0", "--resume"]  # which skips it: it is the same run
    assert main(["sft", "--task.name", str(preferences), *TINY, *SHORT, *few, *again]) == 0


@pytest.mark.slow
def test_old_tasks_are_measured_before_and_after(
    preferences: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = ["--sft.learning_rate", "5e-3", "--sft.max_steps", "40", "--task.name", str(preferences)]
    assert main(["sft", "--name", "old", *old, *TINY, *SHORT]) == 0
    new = preferences.with_name("new.jsonl")
    rows = [{"prompt": f"say {i}", "reference": "zz"} for i in range(60)]
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    on = ["--policy.model", "runs/old", "--eval.before", "true", *TINY[2:], *SHORT, *old[:4]]
    keep = ["--eval.keep_tasks", "[runs/old, parity]"]
    assert main(["sft", "--name", "new", "--task.name", str(new), *on, *keep]) == 0
    kept = RunFolder.open("runs/new").summary()["kept"]
    assert list(kept) == ["runs/old", "parity"]
    assert (kept["runs/old"]["before"], kept["runs/old"]["after"]) == (1, 0)
    assert kept["runs/old"]["verdict"] == "worse" and kept["runs/old"]["high"] < 0
    assert kept["parity"]["n"] == 8 and kept["parity"]["verdict"] == "undecided"
    told = capsys.readouterr().out
    assert "old task runs/old: forgotten in part: 1.000 before, 0.000 after (-1.000" in told
    results = report("runs/new", say=lambda text: None)
    assert any("old task parity: no change that" in line for line in results["verdicts"])


def test_old_tasks_are_checked_before_anything_is_spent(
    preferences: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["sft", "--task.name", str(preferences), *TINY, *SHORT, "--eval.keep_tasks"]
    assert main([*given, "[parity, parity]"]) == 2
    assert "each of them once" in capsys.readouterr().err
    assert main([*given, "[prity]"]) == 2
    assert "Did you mean 'parity'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_head_of_labels_is_evaluated_like_any_policy(
    preferences: Path,
    printed_by: Callable[[Path], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = preferences.with_name("labels.jsonl")
    rows = [{"prompt": f"{'ab'[i % 2]}{i}", "reference": ["even", "odd"][i % 2]} for i in range(90)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--sft.head", "labels", "--sft.learning_rate", "5e-3", "--sft.eval_every", "10"]
    settings += ["--sft.best_by", "eval/exact_match/mean", "--name", "labels"]
    settings += ["--task.name", str(data), *SHORT[2:]]
    assert main(["sft", *settings, *TINY]) == 0
    run = RunFolder.open("runs/labels")
    classes = run.summary()["classes"]
    assert classes["accuracy"] == run.summary()["eval/exact_match/mean"] > 0.9
    assert set(classes["classes"]) == {"even", "odd"}
    assert "precision  recall" in capsys.readouterr().out
    assert any("sft/val_accuracy" in row for row in read_metrics(run.path))
    course = report("runs/labels", say=lambda text: None)["course"]
    assert course["sft/val_accuracy"]["last"] > 0.9
    page = (run.path / "report" / "report.html").read_text()
    assert "By class" in page and "taken for" in page and "<h3>Accuracy</h3>" in page
    assert main(["evaluate", "runs/labels"]) == 0  # whose weights are held against the run's
    assert main(["train", "tiny_smoke", "--policy.model", "runs/labels"]) == 4
    assert "writes no text" in capsys.readouterr().err
    assert main(["export", "runs/labels", "--out", "out"]) == 0
    (first, *_) = read_rows(run.path / run.summary()["eval_file"])
    for folder in (run.policy, Path("out")):
        assert printed_by(folder) == first["response"]
    assert main(["evaluate", "out", "--task", str(data), "--limit", "2"]) == 0
    free = ["--task.name", str(preferences), "--sft.head", "labels", *TINY, *SHORT]
    assert main(["sft", *free]) == 3
    assert "have 1 different answers" in capsys.readouterr().err
    assert main(["sft", "--policy.train", "head"]) == 2

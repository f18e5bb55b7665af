"""Before and after a training, part by part and over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from instructrec.experiments.cli import main
from instructrec.experiments.runfolder import RunFolder

Script = Callable[[str], ModuleType]


def evaluated(policy: str, name: str, *more: str) -> str:
    rewards = ["--rewards.exact_match", "1.0", "--rewards.contains", "0.5"]
    command = ["evaluate", policy, "--task", "closed_answers", "--name", name, *rewards]
    assert main([*command, "--limit", "12", "--corpus_metrics", "[chrf]", *more]) == 0
    return f"runs/{name}"


@pytest.fixture
def sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, str]:
    monkeypatch.chdir(tmp_path)
    return (
        evaluated("empty", "nothing"),
        evaluated("random", "guesses"),
        evaluated("oracle", "answers"),
    )


def test_each_part_is_held_against_itself_before(
    sides: tuple[str, str, str], script_of: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing, guesses, answers = sides
    script = script_of("before_after")
    pairs = [f"{nothing}={answers}", f"{guesses}={answers}"]
    assert script.main([*pairs, "--name", "answers", "--out", "results"]) == 0
    found = json.loads(Path("results/answers.json").read_text())
    guessed = RunFolder.open(guesses).summary()
    part = found["parts"]["exact_match"]
    assert part["before"] == [0.0, pytest.approx(guessed["eval/exact_match/mean"])]
    assert part["after"] == [1.0, 1.0] and part["n"] == 12
    assert part["by_seed"] == [1.0, pytest.approx(1 - guessed["eval/exact_match/mean"])]
    assert part["difference"]["mean"] == pytest.approx(sum(part["by_seed"]) / 2)
    assert found["parts"]["total"]["after"] == [pytest.approx(1.5)] * 2
    assert found["corpus"]["chrf"][0][1] == pytest.approx(1.0)
    page = Path("results/answers.md").read_text()
    assert "| exact_match |" in page and "| chrf |" in page and "2 seeds" in page
    assert page.strip() in capsys.readouterr().out


def test_one_pair_has_an_interval_over_items(
    sides: tuple[str, str, str], script_of: Script
) -> None:
    nothing, _, answers = sides
    script = script_of("before_after")
    file = RunFolder.open(nothing).path / RunFolder.open(nothing).summary()["eval_file"]
    assert script.main([f"{file}={answers}", "--name", "one", "--out", "results"]) == 0
    found = json.loads(Path("results/one.json").read_text())
    assert found["parts"]["exact_match"]["difference"]["mean"] == 1.0
    assert found["corpus"] == {}  # a file of responses has none


def test_pairs_that_do_not_belong_together_are_refused(
    sides: tuple[str, str, str], script_of: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing, _, answers = sides
    script = script_of("before_after")
    fewer = evaluated("empty", "fewer", "--limit", "5")
    for pairs, message in (
        ([f"{fewer}={answers}"], "answered other instructions"),
        ([nothing], "expected BEFORE=AFTER"),
    ):
        assert script.main([*pairs, "--name", "odd", "--out", "results"]) != 0
        assert message in capsys.readouterr().err
    assert not Path("results").exists()

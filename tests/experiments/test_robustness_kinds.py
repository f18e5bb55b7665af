"""Robustness against wordings of one's own: rows of the table, files, metrics, refusals."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructrec import evaluate as evaluate_from_python
from instructrec.envs.tasks.base import make_task
from instructrec.errors import ConfigError, DataError
from instructrec.experiments import robustness
from instructrec.experiments.cli import main
from instructrec.experiments.config import EvaluateConfig
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.evaluation import evaluate
from instructrec.experiments.jsonl import read_json, read_rows
from instructrec.metrics import lookup
from instructrec.policies.config import Sampling
from instructrec.policies.scripted import OraclePolicy
from instructrec.rewards import make_rewards

GREEDY = Sampling(max_new_tokens=4, temperature=0.0)
BROKEN = "def broken(text, rng):\n    return None\n"


def upper(text: str, rng: np.random.Generator) -> str:
    """Capitals everywhere."""
    return text.upper()


def bounds(text: str, rng: np.random.Generator) -> str:
    """Has the name of a file beside the rows."""
    return text


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_of_the_page_runs_and_each_kind_is_a_row(
    root: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs" / "tasks.md").read_text(encoding="utf-8")
    section = page.partition("## Other wordings")[2].partition("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(example.splitlines()) <= 10
    Path("wordings.py").write_text(example, encoding="utf-8")
    (line,) = re.findall(r"\$ instructrec (.*robustness_kinds.*)", section)
    arguments = shlex.split(line.replace("runs/short-answers-s0", "oracle"))
    assert main([*arguments, "--task", "parity", "--limit", "6"]) == 0
    shown = capsys.readouterr().out.partition("less plain")[2]
    assert re.findall(r"^ *(\w+) +1\.000", shown, flags=re.MULTILINE) == ["typos", "asked_twice"]
    (folder,) = place.glob("runs/*")
    numbers = json.loads((folder / "summary.json").read_text())
    assert numbers["eval/robust/asked_twice/changed_frac"] == 1.0
    assert not any(key.startswith("eval/robust/vague") for key in numbers)
    (file,) = folder.glob("eval/*_asked_twice-0.jsonl")
    rows = read_rows(file)
    assert {row["augmentation"] for row in rows} == {"asked_twice"}
    for row in rows:
        first, again = row["prompt"].splitlines()
        assert again in (f"Again: {first}", f"I repeat: {first}")


def test_a_policy_is_asked_again_in_the_words_of_a_function(tmp_path: Path) -> None:
    task, reward = make_task("parity", split="test", size=8), make_rewards("exact_match")

    def measure(given: Any, file: Path) -> Any:
        return evaluate(OraclePolicy(), given, reward, sampling=GREEDY, out=file)

    file = tmp_path / "parity-test-greedy-0.jsonl"
    kinds = (upper, "casing")
    found = robustness.measure_robustness(task, measure(task, file), measure, file, kinds=kinds)
    assert [(each.kind, each.changed) for each in found] == [("upper", 1.0), ("casing", 1.0)]
    rows = read_rows(tmp_path / "parity-test-greedy_upper-0.jsonl")
    assert [row["prompt"] for row in rows] == [task[i].prompt.upper() for i in range(8)]
    numbers = read_json(tmp_path / "parity-test-greedy_robustness-0.json")
    assert numbers["eval/robust/upper/difference"] == 0.0
    assert all(lookup(key) for key in numbers)


def test_the_tiny_model_is_measured_from_python(place: Path) -> None:
    settings = {
        **{"task": "parity", "limit": 4, "max_new_tokens": 3, "device": "cpu", "name": "tiny"},
        "robustness_kinds": [f"{__name__}:upper"],
    }
    said: list[str] = []
    evaluate_from_python("tiny", settings, robust=True, say=said.append)
    assert "upper" in said[-1] and "vague" not in said[-1]
    assert len(list(place.glob("runs/tiny/eval/*.jsonl"))) == 2


def test_a_kind_that_fails_ends_the_evaluation_with_the_instruction(place: Path) -> None:
    Path("mine.py").write_text(BROKEN)
    config = EvaluateConfig(task="parity", limit=2, robustness_kinds=("mine.py:broken",))
    with pytest.raises(DataError, match=r"'broken' \(mine\.py:broken\) made 'None'.* of instr"):
        run_evaluation("oracle", config, robust=True)


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("typo",), "Did you mean 'typos'"),
        (("missing.py:upper",), "no file 'missing.py'"),
        (("typos", "typos"), "give each kind once"),
        ((f"{__name__}:bounds",), "'bounds', which is the name of another file"),
        ((), "robustness_kinds is empty"),
    ],
)
def test_impossible_kinds_are_refused_before_anything_is_measured(
    place: Path, kinds: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_evaluation("oracle", EvaluateConfig(robustness_kinds=kinds), robust=True)
    assert not list(place.iterdir())


def test_kinds_without_the_flag_are_refused() -> None:
    with pytest.raises(ConfigError, match="add --robustness"):
        run_evaluation("oracle", EvaluateConfig(robustness_kinds=("typos",)))

"""The Python functions do what the commands do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import instructrec
from instructrec.errors import ConfigError
from instructrec.experiments.compare import CompareConfig


def silent(_: str) -> None:
    pass


def test_policies_are_evaluated_and_compared_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"task": "parity", "limit": 40, "rewards": {"exact_match": 1.0}}
    for policy in ("oracle", "random"):
        found = instructrec.evaluate(policy, {**settings, "name": policy}, say=silent)
        assert len(found.rows) == 40
    results = instructrec.compare(
        "runs/oracle", Path("runs/random"), config=CompareConfig(out="out"), say=silent
    )
    assert results["verdicts"][0].startswith("oracle is better than random")
    record = json.loads(Path("runs/oracle/run.json").read_text())
    assert record["command"][1:4] == ["evaluate", "oracle", "--task=parity"]


@pytest.mark.slow
def test_a_recipe_is_trained_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"seed": 3, "ppo.num_updates": 1, "tracking.mode": "disabled", "name": None}
    outcome = instructrec.train("tiny_smoke", settings=settings, say=silent)
    assert outcome.folder.path.name.endswith("-s3") and outcome.summary["updates"] == 1


def test_mistakes_are_those_of_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'ppo.learning_rat'.*ppo.learning_rate"):
        instructrec.train("tiny_smoke", settings={"ppo.learning_rat": 1.0})
    with pytest.raises(ConfigError, match="tiny_smoke"):
        instructrec.train("tiny_smok")


@pytest.mark.parametrize("settings", [None, {"seed": 3, "output.dir": "elsewhere"}])
def test_nothing_is_trained_that_nobody_asked_for(
    settings: dict[str, object] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seeds in (None, [0, 1]):
        with pytest.raises(ConfigError, match="says nothing of what to train: expected a recipe"):
            instructrec.train(settings=settings, seeds=seeds)  # type: ignore[call-overload]
    assert list(tmp_path.iterdir()) == []


def test_the_package_loads_them_only_when_asked() -> None:
    code = "import sys, instructrec; assert 'torch' not in sys.modules; instructrec.compare; "
    code += "assert 'torch' not in sys.modules and 'instructrec.experiments.api' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = instructrec.trian

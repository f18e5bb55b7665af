"""The page about running code says what is so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import yaml

from instructrec.rewards import make_rewards
from instructrec.rewards.code_execution import CodeExecution
from instructrec.rewards.sandbox import ENVIRONMENT
from instructrec.rewards.sandbox_policy import allowed_calls
from instructrec.rewards.sandbox_probe import PROBE

PAGE = (Path(__file__).parents[2] / "docs" / "code_execution.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found is not None
    return found[1]


def test_its_code_and_its_config_run(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block("python"), "docs/code_execution.md", "exec"), {})
    (shown,) = re.findall(r"# (\[.*\])$", block("python"), flags=re.MULTILINE)
    assert capsys.readouterr().out.strip() == shown
    rewards = make_rewards(yaml.safe_load(block("yaml"))["rewards"])
    assert [*rewards.parts] == ["works"]


def test_its_tables_name_every_option_and_column() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE))
    options = set(inspect.signature(CodeExecution).parameters)
    columns = set(inspect.signature(CodeExecution.__call__).parameters)
    columns -= {"self", "completions", "columns"}
    assert rows == options | columns


def test_its_numbers_are_those_of_the_code() -> None:
    assert all(f"`{name}`" in PAGE for name in ENVIRONMENT) and len(ENVIRONMENT) == 4
    assert "some 60 system calls" in PAGE and 50 <= len(allowed_calls("x86_64")) <= 70
    (told,) = re.findall(r"a program that tries (\d+) attacks", PAGE)
    assert int(told) == PROBE.count("    trial(")

"""The page on reliability: its catalogue is complete, and its tests and codes exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from instructrec import errors
from instructrec.rl.config import PPOConfig


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "reliability.md").read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_every_fault_and_load_names_tests_that_exist(page: str, root: Path) -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in root.glob("tests/**/*.py"))
    known = set(re.findall(r"^def (test_\w+)", sources, flags=re.MULTILINE))
    rows = {cells(line)[0]: cells(line) for line in page.splitlines() if line.startswith("| F")}
    assert list(rows) == [f"F{number:02}" for number in range(1, 76)]
    loads = {cells(line)[0]: cells(line) for line in page.splitlines() if line.startswith("| L")}
    assert list(loads) == [f"L{number}" for number in range(1, 13)]
    rows |= loads
    for number, (_, fault, happens, tests) in rows.items():
        named = re.findall(r"`(test_\w+)`", tests)
        assert fault and happens and named, number
        assert set(named) <= known, (number, set(named) - known)


def test_every_exit_code_is_that_of_its_class(page: str) -> None:
    listed = dict(re.findall(r"^\| (\d+) \| `(\w+)` \|", page, flags=re.MULTILINE))
    kinds = {
        str(kind.exit_code): name
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, errors.InstructRecError)
        and kind.__bases__[0] is errors.InstructRecError
        and kind is not errors.ProcessError
    }
    assert listed == kinds


def test_its_settings_have_the_defaults_of_the_page(page: str) -> None:
    defaults = PPOConfig()
    settings = re.findall(r"^\| `ppo\.(\w+)` \| ([\d.e]+) \|", page, flags=re.MULTILINE)
    assert len(settings) >= 5
    for name, default in settings:
        assert getattr(defaults, name) == float(default), name
    assert {rule.action for rule in defaults.monitors.rules().values()} == {"warn"}
    assert "| `ppo.monitors.NAME.action` | warn |" in page

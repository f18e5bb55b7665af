"""Parsers and sinks on text without sense: a few values each, the full number in ``make soak``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from benchmarks.fuzz import attempt, problem
from benchmarks.fuzz_targets import Target, targets

NAMES = (
    *("data in JSON lines", "data in CSV", "data in JSON", "rows of a run", "record of a run"),
    *("files of a checkpoint", "manifest of a checkpoint", "settings in YAML", "spec of a reward"),
    *("spec of a sweep", "template", "answer of a sandbox", "grade of a judge"),
    *("scores of a reward", "calls of tools", "arguments of a call", "literal of a call"),
    *("numbers of an answer", "text of a response", "page", "words that are new, in a page"),
    *("terminal", "Markdown", "record", "keys in a text"),
)


def test_every_target_has_a_test(tmp_path: Path) -> None:
    assert tuple(target.name for target in targets(tmp_path)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_text_without_sense_meets_the_documented_errors_alone(tmp_path: Path, name: str) -> None:
    (target,) = (target for target in targets(tmp_path) if target.name == name)
    attempt(target, 25)


def test_an_error_that_is_not_documented_is_told_with_its_value() -> None:
    def divide(number: int) -> float:
        return 1 / number

    careless = Target("division", st.integers(), divide, (ValueError,))
    assert "ZeroDivisionError: division by zero" in problem(careless, 50)
    assert "value=0" in problem(careless, 50)
    careful = Target("division", st.integers(), divide, (ZeroDivisionError,))
    assert problem(careful, 50) == ""

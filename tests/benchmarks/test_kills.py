"""The kill test: it knows every place, and a short set of it passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kill_run import RUNS
from benchmarks.kills import Case, Result, cases, main, table
from instructrec.crash_points import CRASH_POINTS


def test_the_full_set_has_every_place_and_forty_chances_and_kills_in_a_row() -> None:
    names = [case.name for case in cases(list(RUNS), 40, 0, 10.0)]
    assert set(CRASH_POINTS) <= set(names)
    assert sum(name.startswith("after ") for name in names) == 40
    assert sum(name.endswith("twice") for name in names) >= 5
    assert sum(", then " in name for name in names) >= 10
    assert names == [case.name for case in cases(list(RUNS), 40, 0, 10.0)]


def test_the_table_says_what_went_wrong() -> None:
    case = Case("prune.half", "full", lambda runner: 1)
    page = table([Result(case, 1, 3, 3, []), Result(case, 1, 4, 2, ["a | b"])], 60.0, 7)
    assert "2 runs of 5 updates or steps with 2 kills" in page and "--seed 7" in page
    assert "; 1 ended bit for bit" in page
    assert page.splitlines()[-1] == "| prune.half | full | 1 | 4 | 2 | a / b |"


@pytest.mark.slow
@pytest.mark.timeout(900)  # some thirty runs, which take long where others are at work
def test_runs_that_are_killed_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    assert main(["--short", "--out", str(tmp_path / "kills.md")]) == 0
    assert (tmp_path / "kills.md").read_text().count("| equal |") >= 9

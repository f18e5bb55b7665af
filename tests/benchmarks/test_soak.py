"""The load checks, in small, and the table of what they found."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import load_checks
from benchmarks.load_checks import Found
from benchmarks.load_runs import PLAN, SHORT_PLAN, digest, slope
from benchmarks.soak import LOADS, main, markdown, run_apart


def test_every_load_has_a_row_on_the_page_on_reliability(root: Path) -> None:
    page = (root / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert all(f"\n| {name} | " in page for name in LOADS) and len(LOADS) == 12


def test_a_disturbed_run_is_killed_and_loses_server_disk_and_tracker_twice() -> None:
    assert Counter(PLAN) == {"kill": 9, "server": 2, "disk": 2, "tracker": 2}
    assert set(SHORT_PLAN) == set(PLAN)


def test_growth_is_that_from_one_value_to_the_next() -> None:
    assert slope([5.0, 7.0, 9.0, 11.0]) == pytest.approx(2.0)


def test_the_hash_of_a_run_goes_by_its_content_alone() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_the_table_says_what_was_run_of_each_and_what_was_wrong() -> None:
    rows = {
        "L8": {"share": 0.05, "date": "2026-01-02", "numbers": {"updates": 1000}, "faults": []},
        "L12": {
            **{"share": 1.0, "date": "2026-01-03", "faults": ["a | b"]},
            "numbers": {"safeties": 2, "table": "| x |\n"},
        },
    }
    page = markdown(rows)
    assert "| L8 | 0.05 | 2026-01-02 | updates 1,000 | as it should be |" in page
    assert "| L12 | 1 | 2026-01-03 | safeties 2 | a / b |\n\nNot run: L1, L2, L3, " in page
    assert page.endswith("\n\n## L12\n\n| x |\n")


def test_a_check_that_ends_its_process_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.soak.sys.executable", "false")
    assert run_apart("L1", 0.1)["faults"] == ["its process ended with code 1"]


def test_what_is_left_open_is_a_fault() -> None:
    before, found = load_checks.held(), Found()
    with open(__file__, encoding="utf-8"):
        load_checks.flat(found, before, patience_s=0.0)
    assert found.faults == [
        f"descriptors: {before['descriptors']} before, {before['descriptors'] + 1} after"
    ]


def test_commits_read_back_and_never_more_than_four_lie_on_the_disk() -> None:
    found = load_checks.commits(0.04)
    assert found.faults == []
    assert found.numbers["commits"] == 20 and found.numbers["kept"] == 3
    assert 3 < found.numbers["most on the disk, in checkpoints"] <= 4.04


@pytest.mark.slow
def test_long_texts_are_scored_whole_and_cut_in_pages() -> None:
    found = load_checks.long_texts(0.02)
    assert found.faults == [] and found.numbers["characters"] == 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["L1", "L4", "L8"])
def test_a_small_share_of_a_load_is_as_it_should_be(tmp_path: Path, name: str) -> None:
    share = {"L1": "0.2", "L4": "0.03", "L8": "0.05"}[name]
    assert main(["--only", name, "--share", share, "--out", str(tmp_path)]) == 0
    row = json.loads((tmp_path / "soak.json").read_text())[name]
    assert row["faults"] == [] and row["numbers"]
    assert f"| {name} | {share} |" in (tmp_path / "soak.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)  # two runs and six starts, which take long where others are at work
def test_a_run_that_is_disturbed_ends_as_the_one_that_was_not(tmp_path: Path) -> None:
    assert main(["--only", "L10", "--share", "0.02", "--out", str(tmp_path)]) == 0
    numbers = json.loads((tmp_path / "soak.json").read_text())["L10"]["numbers"]
    assert numbers["hash disturbed"] == numbers["hash left alone"]

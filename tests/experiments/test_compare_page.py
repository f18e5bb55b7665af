"""The page of a comparison: its numbers, its drawings, and its note about length."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec.experiments.compare import CompareConfig, compare, results_of
from instructrec.experiments.compare_charts import distribution
from instructrec.experiments.contenders import read_comparison

Write = Callable[..., Path]
RIGHT = {"a": 10, "b": 30, "c": 40}
"""Of 40 instructions, how many a policy has right."""


def rows_of(page: str, title: str) -> list[list[str]]:
    """Cells of the table of a section without their markup, the head first."""
    (content,) = re.findall(rf"<h2>{title}</h2>(.*?)</section>", page, flags=re.DOTALL)
    return [
        [re.sub("<[^>]*>", "", cell) for cell in re.findall("<t[hd][ >].*?(?=</t[hd]>)", row)]
        for row in re.findall("<tr>.*?</tr>", content)
    ]


def compared(tmp_path: Path, *named: str) -> tuple[dict[str, Any], str]:
    config = CompareConfig(out=str(tmp_path / "out"))
    results = compare(named, config, say=lambda text: None)
    return results, (tmp_path / "out" / "compare.html").read_text()


def test_policies_have_their_means_by_seed_their_iqm_and_the_interval_of_other_runs(
    tmp_path: Path, write_run: Write, write_evaluation: Write
) -> None:
    for seed, right in enumerate((20, 24, 28)):
        write_run(tmp_path / f"new-s{seed}", right=right, seed=seed, variant="new")
    new = [str(tmp_path / f"new-s{seed}") for seed in range(3)]
    old = write_evaluation(tmp_path / "old.jsonl", 10)
    results, page = compared(tmp_path, *new, str(old))
    head, *rows = rows_of(page, "Means")
    assert head[:7] == [
        *("policy", "total", "of other runs", "by seed", "IQM of tasks", "tokens", "runs")
    ]
    found = results["parts"]["total"]["policies"]["new"]
    low, high = found["runs"]
    assert rows[0][2:5] == [f"{low:.3f} to {high:.3f}", "0.500, 0.600, 0.700", "0.600"]
    assert found["iqm"] == pytest.approx(0.6)  # of 0.5, 0.6, 0.6, 0.7
    assert rows[1][2:7] == ["-", "0.250", "0.250", "3.0", "1"]


def test_tasks_have_the_numbers_of_every_policy_and_difference(
    tmp_path: Path, write_evaluation: Write
) -> None:
    files = {name: write_evaluation(tmp_path / f"{name}.jsonl", n) for name, n in RIGHT.items()}
    results, page = compared(tmp_path, *map(str, files.values()))
    head, *rows = rows_of(page, "By task")
    assert head == ["task", "instructions", "a", "b", "c", "a - b", "a - c"]
    of_even = results["parts"]["total"]["tasks"]["even"]
    a, less_c = of_even["policies"]["a"], of_even["differences"]["c"]
    assert rows[0][:3] == ["even", "20", f"0.250 {a['low']:.3f} to {a['high']:.3f}"]
    assert rows[0][6] == f"-0.750 {less_c['low']:+.3f} to {less_c['high']:+.3f}"


def test_the_distribution_of_scores_follows_the_data(
    tmp_path: Path, write_evaluation: Write
) -> None:
    files = [write_evaluation(tmp_path / f"{name}.jsonl", n) for name, n in RIGHT.items()]
    comparison = read_comparison(list(map(str, files)))
    drawn = distribution(results_of(comparison, "total"), comparison)
    paths = re.findall('<path d="M([^"]*)" fill="none" stroke="([^"]*)"', drawn)
    assert len({shade for _, shade in paths}) == 3
    for (path, _), right in zip(paths, RIGHT.values(), strict=True):
        points = [tuple(map(float, point.split())) for point in path.split("L")]
        assert points == sorted(points, key=lambda at: (at[0], -at[1]))  # it never falls
        start, end = points[0], points[-1]
        wrong = [down for across, down in points if across == start[0]]
        share = (start[1] - min(wrong)) / (start[1] - end[1])
        assert share == pytest.approx((40 - right) / 40, abs=1e-3)  # what scored least
        assert end[0] > start[0]
    assert [name in drawn for name in ("a</span>", "b</span>", "c</span>")] == [True] * 3


def test_scores_that_are_all_alike_have_no_distribution(
    tmp_path: Path, write_evaluation: Write
) -> None:
    files = [write_evaluation(tmp_path / f"{name}.jsonl", 40) for name in "ab"]
    comparison = read_comparison(list(map(str, files)))
    assert distribution(results_of(comparison, "total"), comparison) == ""


@pytest.mark.parametrize(
    ("a", "b", "told"), [(4, 4, False), (4, 5, False), (4, 6, True), (6, 4, True)]
)
def test_a_note_warns_of_length_where_lengths_differ_much(
    tmp_path: Path, write_evaluation: Write, a: int, b: int, told: bool
) -> None:
    new = write_evaluation(tmp_path / "new.jsonl", 30, tokens=a)
    old = write_evaluation(tmp_path / "old.jsonl", 20, tokens=b)
    results, page = compared(tmp_path, str(new), str(old))
    note = (
        f"responses of new have {a}.0 tokens and those of old {b}.0: make sure that the reward "
        "does not pay for length."
    )
    assert (note in results["warnings"]) is told
    assert ("pay for length" in page) is told

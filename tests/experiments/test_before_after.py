"""What is said of one score before and after training."""

from __future__ import annotations

from typing import Any

import pytest

from instructrec.experiments.before_after import Change, changes, table
from instructrec.experiments.evaluation import Evaluation


@pytest.mark.parametrize(
    ("low", "high", "p", "said"),
    [
        (0.02, 0.10, 0.01, "better: held-out total 0.500 before, 0.560 after"),
        (-0.01, 0.12, 0.2, "+0.120), which may be chance."),
        (0.003, 0.111, 0.055, "+0.111), p = 0.055, which may be chance."),
    ],
)
def test_what_the_interval_and_the_test_say_is_told_where_they_disagree(
    low: float, high: float, p: float, said: str
) -> None:
    assert said in Change("total", 0.5, 0.56, low, high, p, 400).in_words()


def measured(better: int, parts: int) -> Evaluation:
    """Of 60 instructions, the first ``better`` score 1 by every reward, the others 0."""
    names = [f"r{number}" for number in range(parts)]
    rows: list[dict[str, Any]] = []
    for i in range(60):
        scores = {name: float(i < better) for name in names}
        rows.append({"id": f"q{i}", "prompt": f"q{i}", "parts": scores, "total": float(i < better)})
    return Evaluation(rows, {"reward": {}, "weights": dict.fromkeys(names, 1.0), "samples": 1})


def test_several_rewards_are_judged_for_their_number_and_the_total_by_itself() -> None:
    total, one = changes(measured(0, 1), measured(7, 1))
    assert 0.01 < one.p == total.p < 0.05 and one.judged == 1
    assert (total.verdict, one.verdict) == ("better", "better")
    assert "Holm" not in table([total, one])
    same, *several = changes(measured(0, 4), measured(7, 4))
    assert same == total
    assert [change.judged for change in several] == [4] * 4
    assert {change.p for change in several} == {4 * one.p}
    assert {change.verdict for change in several} == {"undecided"}
    assert "verdict (rewards: Holm)" in table([total, *several])

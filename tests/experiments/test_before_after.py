"""What is said of one score before and after training."""

from __future__ import annotations

import pytest

from instructrec.experiments.before_after import Change


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

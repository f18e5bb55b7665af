"""The numbers of a comparison on data whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as t_distribution

from instructrec.experiments.compare_stats import (
    by_task,
    compare_all,
    holm,
    improvement,
    interquartile_mean,
    runs_interval,
)


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interquartile_mean_leaves_a_lucky_run_out() -> None:
    runs = np.array([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 700.0]])
    assert interquartile_mean(runs) == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_improvement_counts_pairs_of_runs_task_by_task() -> None:
    a = np.array([[1.0, 0.0], [3.0, 0.0]])
    b = np.array([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    # First task: 1 against 2, 0, 1 -> 0, 1, 1/2; 3 against them -> 1, 1, 1. Second: all equal.
    assert improvement(a, b) == pytest.approx((4.5 / 6 + 0.5) / 2)
    assert improvement(a, b) + improvement(b, a) == pytest.approx(1.0)


def test_the_aggregates_are_those_of_rliable() -> None:
    a = np.array(
        [
            [0.586, 0.463, 0.442, 0.815],
            [0.598, 0.509, 0.592, 0.076],
            [0.435, 0.291, 0.691, 0.522],
            [0.791, 0.676, 0.355, 0.633],
            [0.458, 0.571, 0.641, 0.462],
        ]
    )
    b = np.array(
        [[0.586, 0.463, 0.442, 0.815], [0.407, 0.355, 0.688, 0.967], [0.514, 0.065, 0.256, 0.681]]
    )
    # What `aggregate_iqm` and `probability_of_improvement` of rliable 1.2.0 return for them.
    assert interquartile_mean(a) == pytest.approx(0.5394, abs=1e-12)
    assert interquartile_mean(b) == pytest.approx(0.5155, abs=1e-12)
    assert improvement(a, b) == pytest.approx(0.5666666666666667, abs=1e-12)


def test_tasks_weigh_the_same_however_many_instructions_they_have() -> None:
    scores = np.array([[1.0, 1.0, 1.0, 0.0]])
    assert by_task(scores, ["a", "a", "a", "b"]).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(("shape", "paired"), [((6, 8), False), ((3, 3), False), ((3, 3), True)])
def test_the_interval_of_other_runs_covers_what_it_should(
    shape: tuple[int, int], paired: bool
) -> None:
    rng = np.random.default_rng(3)
    covered, clusters = 0, [i // 2 for i in range(60)]
    for _ in range(400):
        items = rng.normal(0, 0.5, 60)
        a, b = (
            items + rng.normal(mean, 0.1, (runs, 1)) + rng.normal(0, 0.3, (runs, 60))
            for mean, runs in zip((0.2, 0.0), shape, strict=True)
        )
        low, high = runs_interval(a, b, clusters, paired=paired)
        assert low is not None and high is not None
        covered += low <= 0.2 <= high
    assert 0.92 * 400 <= covered <= 0.99 * 400


def test_parts_of_the_variance_that_nearly_cancel_give_an_interval_with_an_end() -> None:
    # No spread of items, and runs that differ hardly more than what is left over explains.
    runs, rest = np.array([1.05, -1.05, 0.0]), np.array([1.0, -1.0, 0.0])
    low, high = runs_interval(
        np.stack([runs + rest, runs - rest], 1), np.zeros((3, 2)), ["x", "y"], paired=True
    )
    assert low is not None and high is not None
    # MS_s = 2.205, MS_e = 2, 6 scores; one degree of freedom.
    assert high == pytest.approx(12.7062 * ((2.205 - 2) / 6) ** 0.5, rel=1e-4) and low == -high


def test_the_interval_of_other_runs_is_that_of_a_table_worked_out_by_hand() -> None:
    # Two items, three runs; means of runs 0, 1, 5, of items 1.5, 2.5; MS_s = 14, MS_c = 1.5,
    # MS_e = 0.5. Variance 1.5/6 + 13.5/6 = 2.5; freedom 2.5^2 / (0.25^2/1 + (14/6)^2/2 + ...).
    scores = np.array([[0.0, 0.0], [0.0, 2.0], [4.5, 5.5]])
    low, high = runs_interval(scores, np.zeros((3, 2)), ["x", "y"], paired=True)
    assert low is not None and high is not None
    freedom = 2.5**2 / (0.25**2 + (14 / 6) ** 2 / 2 + (0.5 / 6) ** 2 / 2)
    half = float(t_distribution.ppf(0.975, freedom)) * 2.5**0.5
    assert (low, high) == pytest.approx((2 - half, 2 + half))


def test_pairing_makes_intervals_narrower_than_runs_that_have_nothing_to_do_with_each_other() -> (
    None
):
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 0.5, (5, 1))
    b = seeds + rng.normal(0, 0.1, (5, 50))
    a = b + rng.normal(0.1, 0.01, (5, 50))
    clusters = list(range(50))
    scores, labels = {"a": a, "b": b}, [""] * 50
    (paired,) = compare_all(scores, {"a": [*range(5)], "b": [*range(5)]}, clusters, labels)
    (apart,) = compare_all(scores, {"a": [*range(5)], "b": [*range(5, 10)]}, clusters, labels)
    assert paired.runs_low is not None and apart.runs_low is not None
    assert paired.runs_low > 0.09 and apart.runs_low < -0.2
    assert paired.decided and apart.decided_here and not apart.decided


def test_two_runs_say_nothing_of_others() -> None:
    rng = np.random.default_rng(0)
    scores = {name: rng.random((2, 20)) for name in "ab"}
    (pair,) = compare_all(scores, {"a": [0, 1], "b": [0, 1]}, list(range(20)), [""] * 20)
    assert pair.runs_low is None and pair.runs_high is None
    assert pair.decided == pair.decided_here


def test_instructions_of_one_item_are_not_taken_for_more_items_won() -> None:
    won = np.array([1.0] * 14 + [-1.0] * 6)  # of 20 items, 14
    names, seeds = list(range(20)), {"a": [0], "b": [0]}
    (alone,) = compare_all({"a": won[None], "b": np.zeros((1, 20))}, seeds, names, [""] * 20)
    four = np.repeat(won, 4)  # of each item four instructions that go together
    scores, clusters = {"a": four[None], "b": np.zeros((1, 80))}, np.repeat(names, 4).tolist()
    (together,) = compare_all(scores, seeds, clusters, [""] * 80)
    assert alone.win_share is not None and together.win_share is not None
    assert alone.win_share.method == "wilson" and together.wins == 56
    width = alone.win_share.high - alone.win_share.low
    assert together.win_share.high - together.win_share.low == pytest.approx(width, abs=0.05)

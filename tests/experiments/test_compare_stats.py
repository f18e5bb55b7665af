"""The numbers of a comparison on data whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

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

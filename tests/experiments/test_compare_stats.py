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
    unpaired_interval,
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


def test_the_unpaired_interval_covers_what_it_should() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(150):
        items = rng.normal(0, 0.5, 60)
        a = items + rng.normal(0.2, 0.1, (6, 1)) + rng.normal(0, 0.3, (6, 60))
        b = items + rng.normal(0.0, 0.1, (8, 1)) + rng.normal(0, 0.3, (8, 60))
        low, high = unpaired_interval(a, b, list(range(60)), resamples=400)
        covered += low <= 0.2 <= high
    assert covered >= 0.88 * 150  # few seeds make a bootstrap somewhat narrow


def test_pairing_makes_intervals_narrower_than_seeds_drawn_apart() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 0.5, (5, 1))
    b = seeds + rng.normal(0, 0.1, (5, 50))
    a = b + 0.1
    clusters = list(range(50))
    (paired,) = compare_all(
        {"a": a, "b": b}, {"a": [*range(5)], "b": [*range(5)]}, clusters, [""] * 50
    )
    (apart,) = compare_all(
        {"a": a, "b": b}, {"a": [*range(5)], "b": [*range(5, 10)]}, clusters, [""] * 50
    )
    assert paired.high - paired.low < 1e-9 < 0.2 < apart.high - apart.low
    assert paired.decided and not apart.decided

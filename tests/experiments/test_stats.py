from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from instructrec.errors import DataError
from instructrec.experiments.stats import (
    mean_interval,
    paired_difference,
    seeds_interval,
    wilson_interval,
)


def test_wilson_matches_the_formula():
    # centre = (p + z²/2n) / (1 + z²/n), half = z sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n)
    n, p, z = 20, 0.15, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    interval = wilson_interval(3, 20)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))


def test_few_independent_zeros_and_ones_get_wilsons_interval():
    interval = mean_interval([1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    assert interval.method == "wilson"
    assert (interval.low, interval.high) == pytest.approx((0.0179, 0.4042), abs=1e-4)


def test_a_large_sample_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 1000)
    interval = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(1000)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.01)


def test_repeating_every_value_in_its_cluster_does_not_narrow_the_interval():
    values = np.random.default_rng(1).random(60)
    once = mean_interval(values)
    repeated = mean_interval(np.repeat(values, 10), np.repeat(np.arange(60), 10).tolist())
    assert (repeated.n, repeated.n_clusters) == (600, 60)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=1e-9)
    ignored = mean_interval(np.repeat(values, 10))
    assert ignored.high - ignored.low < 0.5 * (once.high - once.low)


def test_large_clusters_count_by_their_values():
    interval = mean_interval([0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"])
    assert interval.mean == 0.25
    assert (interval.low, interval.high) == (0.0, 1.0)


@pytest.mark.parametrize("value", [0.3, 1e-3, -2.0])
@pytest.mark.parametrize("clusters", [None, [i % 7 for i in range(100)]])
def test_equal_values_give_an_interval_of_width_zero(value, clusters):
    interval = mean_interval([value] * 100, clusters)
    assert (interval.mean, interval.low, interval.high) == (value, value, value)
    assert interval.method == "constant"


@pytest.mark.parametrize(("clusters", "tries"), [(None, 100), ([i % 7 for i in range(100)], 7)])
def test_all_right_or_all_wrong_is_no_certainty(clusters, tries):
    wrong, right = mean_interval([0.0] * 100, clusters), mean_interval([1.0] * 100, clusters)
    assert (wrong.mean, wrong.low) == (0.0, 0.0)
    z2 = 1.959964**2
    assert wrong.high == pytest.approx(z2 / (tries + z2), rel=1e-5)  # Wilson's bound at 0 of n
    assert (right.mean, right.high) == (1.0, 1.0)
    assert right.low == pytest.approx(1 - wrong.high)
    assert (wrong.method, wrong.n, wrong.n_clusters) == ("wilson", 100, tries)


def test_clusters_with_the_same_mean_give_width_zero_not_nan():
    interval = mean_interval([0.0, 1.0] * 30, [i // 2 for i in range(60)])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_one_cluster_says_nothing_about_the_spread():
    interval = mean_interval([0.0, 1.0, 1.0], ["a", "a", "a"])
    assert interval.mean == pytest.approx(2 / 3)
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert interval.method == "none"


def test_no_value_has_no_mean():
    interval = mean_interval([])
    assert math.isnan(interval.mean)
    assert interval.n == interval.n_clusters == 0


def test_a_value_that_is_not_finite_is_refused():
    with pytest.raises(DataError, match="1 of 3 values are not finite"):
        mean_interval([0.0, math.nan, 1.0])


def test_labels_must_match_the_values():
    with pytest.raises(DataError, match="2 cluster labels for 3 values"):
        mean_interval([0.0, 1.0, 1.0], ["a", "b"])


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly_the_same():
    values = np.random.default_rng(2).random(40)
    first, again, other = mean_interval(values), mean_interval(values), mean_interval(values, rng=1)
    assert first == again
    assert first != other
    assert other.low == pytest.approx(first.low, abs=0.01)


def test_many_clusters_are_resampled_without_the_jackknife():
    assert mean_interval(np.random.default_rng(3).random(2500), resamples=500).method == (
        "percentile"
    )


def test_the_permutation_p_value_equals_the_enumeration():
    a, b = np.array([3.0, 5.0, 2.0, 8.0, 6.0]), np.array([1.0, 4.5, 3.0, 5.0, 4.0])
    clusters = ["x", "x", "y", "z", "w"]
    sums = np.array([2.5, -1.0, 3.0, 2.0])  # of a - b by cluster
    flips = [abs((sums * s).sum()) for s in itertools.product((1, -1), repeat=4)]
    expected = np.mean(np.array(flips) >= abs(sums.sum()) - 1e-9)
    difference = paired_difference(a, b, clusters)
    assert difference.p == pytest.approx(expected)
    assert difference.mean == pytest.approx(1.3)
    assert (difference.mean_a, difference.mean_b) == pytest.approx((4.8, 3.5))
    assert (difference.n, difference.n_clusters) == (5, 4)


def test_swapping_the_sides_flips_the_sign():
    generator = np.random.default_rng(4)
    a, b = generator.random(80), generator.random(80) + 0.1
    one, two = paired_difference(a, b), paired_difference(b, a)
    assert one.mean == pytest.approx(-two.mean)
    assert one.p == pytest.approx(two.p, abs=0.005)
    assert (one.low, one.high) == pytest.approx((-two.high, -two.low), abs=0.005)


def test_pairing_sees_what_two_separate_intervals_cannot():
    generator = np.random.default_rng(5)
    difficulty = generator.normal(0, 10, 200)
    difference = paired_difference(difficulty + 0.5 + generator.normal(0, 1, 200), difficulty)
    assert difference.low > 0
    assert difference.p < 0.001


def test_equal_sides_have_no_difference_and_p_one():
    difference = paired_difference([0.0] * 30, [0.0] * 30)
    assert (difference.mean, difference.low, difference.high, difference.p) == (0, 0, 0, 1.0)


def test_one_pair_proves_nothing():
    difference = paired_difference([1.0], [0.0])
    assert difference.p == 1.0
    assert math.isnan(difference.low)


def test_sides_of_different_length_are_refused():
    with pytest.raises(DataError, match="2 and 1 values cannot be paired"):
        paired_difference([1.0, 2.0], [1.0])


def test_seeds_that_differ_widen_the_interval():
    generator = np.random.default_rng(6)
    items = generator.random(300)
    alike = np.stack([items] * 5)
    spread = alike + np.array([-0.2, -0.1, 0.0, 0.1, 0.2])[:, None]
    one, two = seeds_interval(alike), seeds_interval(spread)
    assert one.mean == pytest.approx(two.mean)
    assert two.high - two.low > 2 * (one.high - one.low)
    assert two.seed_means == pytest.approx(items.mean() + np.array([-0.2, -0.1, 0.0, 0.1, 0.2]))
    assert (two.n, two.n_seeds, two.n_clusters) == (300, 5, 300)


def test_without_spread_between_seeds_two_levels_equal_one():
    values = np.random.default_rng(7).random(100)
    clusters = [i // 4 for i in range(100)]
    one = mean_interval(values, clusters)
    two = seeds_interval(np.stack([values] * 3), clusters)
    assert (two.low, two.high) == pytest.approx((one.low, one.high), abs=0.01)


def test_differences_that_are_all_0_give_width_zero():
    clusters = [i // 2 for i in range(40)]
    interval = seeds_interval(np.zeros((5, 40)), clusters, differences=True)
    assert (interval.mean, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_seeds_that_are_all_wrong_are_no_certainty():
    interval = seeds_interval(np.zeros((5, 40)), [i // 2 for i in range(40)])
    assert (interval.mean, interval.low, interval.method) == (0.0, 0.0, "wilson")
    assert interval.high == wilson_interval(0, 20).high


def test_one_seed_says_nothing_of_others():
    with pytest.raises(DataError, match="two or more rows"):
        seeds_interval([[1.0, 2.0, 3.0]])


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(8)
    trials, hits = 300, {"clustered": 0, "ignored": 0, "paired": 0}
    for trial in range(trials):
        truth = 0.4
        shares = generator.beta(2 * truth, 2 * (1 - truth), 60)  # items differ a lot
        values = (generator.random((60, 6)) < shares[:, None]).astype(float).ravel()
        clusters = np.repeat(np.arange(60), 6).tolist()
        for name, labels in (("clustered", clusters), ("ignored", None)):
            interval = mean_interval(values, labels, resamples=999, rng=trial)
            hits[name] += interval.low <= truth <= interval.high
        difference = paired_difference(
            values + generator.normal(0.1, 0.5, 360), values, clusters, resamples=999, rng=trial
        )
        hits["paired"] += difference.low <= 0.1 <= difference.high
    # Standard error of a share of 0.95 over 300 trials: 0.013.
    assert 0.91 <= hits["clustered"] / trials <= 0.985
    assert 0.91 <= hits["paired"] / trials <= 0.985
    assert hits["ignored"] / trials < 0.85


@pytest.mark.slow
def test_seed_intervals_cover_the_truth_of_new_seeds():
    generator = np.random.default_rng(9)
    trials, hits = 300, 0
    for _ in range(trials):
        seeds, items = generator.normal(0, 0.05, (8, 1)), generator.normal(0, 0.3, (1, 100))
        matrix = 0.5 + seeds + items + generator.normal(0, 0.2, (8, 100))
        interval = seeds_interval(matrix)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.92 <= hits / trials <= 0.98


@pytest.mark.slow
def test_the_permutation_test_rejects_a_true_null_about_five_times_in_a_hundred():
    generator = np.random.default_rng(10)
    clusters = [i // 5 for i in range(100)]
    rejected = 0
    for trial in range(300):
        items = np.repeat(generator.normal(0, 1, 20), 5)  # shared within a cluster
        a = items + generator.normal(0, 1, 100)
        rejected += (
            paired_difference(a, np.zeros(100), clusters, resamples=499, rng=trial).p <= 0.05
        )
    assert rejected / 300 <= 0.085

"""Statistics of evaluations and comparisons: intervals, paired tests, seeds.

Pure functions over NumPy arrays, on ``scipy.stats``. Responses to one item (a prompt, or all
prompts about one word) are not independent, so whole *clusters* are resampled, never single
responses. Every function takes ``rng`` (a seed or a generator) and gives the same numbers for the
same seed.

Method: Miller 2024, "Adding Error Bars to Evals" (https://arxiv.org/abs/2411.00640); seeds: see
``random_effects``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from instructrec.errors import DataError
from instructrec.experiments.random_effects import crossed_interval
from instructrec.experiments.resampling import Rng, cluster_index, sign_flip_p, sums_bootstrap

_WILSON_MAX = 50
"""Up to this many independent 0/1 values the bootstrap is too optimistic; Wilson's holds."""


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    """Mean over all values; NaN when there is none."""
    low: float
    """Lower end; NaN when fewer than two clusters leave it unknown."""
    high: float
    """Upper end; NaN when fewer than two clusters leave it unknown."""
    n: int
    """Values."""
    n_clusters: int
    """Clusters that were resampled."""
    confidence: float = 0.95
    """Coverage that was asked for, in (0, 1)."""
    method: str = "bca"
    """bca, percentile, wilson, constant (all values equal) or none (too few clusters)."""


@dataclass(frozen=True)
class Difference:
    """Mean of ``a - b`` over pairs, with its interval and a test of "no difference"."""

    mean: float
    """Mean of a - b."""
    low: float
    """Lower end of the interval; NaN when fewer than two clusters leave it unknown."""
    high: float
    """Upper end of the interval."""
    p: float
    """Two-sided p-value of the sign-flip permutation test over clusters, in (0, 1]."""
    mean_a: float
    """Mean of a."""
    mean_b: float
    """Mean of b."""
    n: int
    """Pairs."""
    n_clusters: int
    """Clusters that were resampled."""
    confidence: float = 0.95
    """Coverage that was asked for."""
    method: str = "bca"
    """As in ``Interval``."""


@dataclass(frozen=True)
class SeedInterval:
    """A mean over seeds and items with an interval that speaks of both."""

    mean: float
    """Mean over all seeds and items."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    seed_means: tuple[float, ...]
    """Mean over items of each seed, in the given order."""
    n: int
    """Items (columns)."""
    n_seeds: int
    """Seeds (rows)."""
    n_clusters: int
    """Clusters of items."""
    confidence: float = 0.95
    """Coverage that was asked for."""
    method: str = "crossed"
    """crossed, wilson (all right or all wrong) or constant (all values equal)."""


def mean_interval(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    rng: Rng = 0,
) -> Interval:
    """Mean of N values and its interval by a bootstrap over clusters.

    The interval is BCa (percentile where BCa is undefined or above 2000 clusters). At most 50
    independent values that are all 0 or 1 get Wilson's interval, and so do clusters that are all
    right or all wrong, each taken as one try: a bootstrap would claim to be certain. Other values
    that are all equal give an interval of width 0.

    Args:
        values: (N,) finite numbers.
        clusters: N labels; values of one label are resampled together. None: each for itself.
        confidence: Coverage, in (0, 1).
        resamples: Bootstrap resamples.
        rng: Seed or generator.

    Raises:
        DataError: A value is not finite, or the lengths differ.
    """
    values_N = _finite(values, "values")
    index_N, n_clusters = cluster_index(clusters, len(values_N))
    mean = float(values_N.mean()) if len(values_N) else float("nan")
    binary = bool(np.isin(values_N, (0.0, 1.0)).all())
    if 2 <= len(values_N) == n_clusters <= _WILSON_MAX and binary:
        return wilson_interval(int(values_N.sum()), len(values_N), confidence=confidence)
    low, high, method = _ratio_bootstrap(values_N, index_N, confidence, resamples, rng)
    if method == "constant":
        mean = low  # the mean of equal floats may be an ulp off
        low, high, method = _constant(mean, n_clusters, confidence)
    return Interval(mean, low, high, len(values_N), n_clusters, confidence, method)


def sums_interval(
    rows_NK: ArrayLike,
    score: Callable[[np.ndarray], float],
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1999,
    rng: Rng = 0,
) -> Interval:
    """Score of N rows of counts together, such as corpus BLEU, with a bootstrap over clusters.

    The interval is BCa or percentile as for ``mean_interval``. A score that is the same in every
    resample gets an interval of width 0, or of 0 or 1 Wilson's, each cluster taken as one try.

    Args:
        rows_NK: (N, K) finite counts.
        score: From the sums of some rows, (K,), to their score; it need not be a mean.
        clusters: N labels; rows of one label are resampled together. None: each for itself.
        confidence: Coverage, in (0, 1).
        resamples: Bootstrap resamples.
        rng: Seed or generator.

    Returns:
        The interval; its ``mean`` is the score of all rows.

    Raises:
        DataError: The shape is not (N, K) with N >= 1, or the lengths differ.
    """
    counts_NK = np.asarray(rows_NK, dtype=np.float64)
    if counts_NK.ndim != 2 or not len(counts_NK):
        raise DataError(f"counts of shape {counts_NK.shape}: expected one row for each response.")
    index_N, n_clusters = cluster_index(clusters, len(counts_NK))
    sums_KC = np.stack([np.bincount(index_N, weights=column) for column in counts_NK.T])

    def scores(sums: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(score, 0, sums)

    value = float(score(counts_NK.sum(0)))
    low, high, method = sums_bootstrap(sums_KC, scores, confidence, resamples, rng)
    if low == high == value:
        low, high, method = _constant(value, n_clusters, confidence)
    return Interval(value, low, high, len(counts_NK), n_clusters, confidence, method)


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share: ``successes`` of ``n`` independent tries.

    Raises:
        DataError: ``n`` is 0, or the successes are not within 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(
            f"{successes} successes of {n} tries: expected 0 <= successes <= n, n >= 1."
        )
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    low, high = float(interval.low), float(interval.high)
    return Interval(successes / n, low, high, n, n, confidence, "wilson")


def share_interval(
    flags: Sequence[bool], clusters: Sequence[Hashable], *, confidence: float = 0.95
) -> Interval:
    """Share of the tries that are true: Wilson's interval where each is a cluster by itself.

    Tries of one cluster are not independent, so that whole clusters are resampled where one has
    several, as in ``mean_interval``.

    Args:
        flags: N outcomes, at least one.
        clusters: N labels.
        confidence: Coverage, in (0, 1).

    Raises:
        DataError: There is no try, or the lengths differ.
    """
    _, n_clusters = cluster_index(clusters, len(flags))
    if n_clusters == len(flags):
        return wilson_interval(sum(flags), len(flags), confidence=confidence)
    return mean_interval([float(flag) for flag in flags], clusters, confidence=confidence)


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    rng: Rng = 0,
) -> Difference:
    """Mean of ``a - b`` over N pairs, its cluster bootstrap interval and a permutation p-value.

    The test swaps a and b in whole clusters (flips the signs of their differences): exactly over
    all 2^C swaps when these are no more than ``resamples``, else by ``resamples`` random ones.

    Args:
        a: (N,) finite numbers, for instance the scores of one policy.
        b: (N,) finite numbers of the same pairs in the same order.
        clusters: N labels; pairs of one label stay together. None: each for itself.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Bootstrap resamples, and most permutations.
        rng: Seed or generator.

    Raises:
        DataError: A value is not finite, the lengths differ, or there is no pair.
    """
    a_N, b_N = _finite(a, "a"), _finite(b, "b")
    if len(a_N) != len(b_N) or len(a_N) == 0:
        raise DataError(
            f"{len(a_N)} and {len(b_N)} values cannot be paired: expected the same number of each, "
            "and at least one; match the two evaluations by instruction id first."
        )
    differences_N = a_N - b_N
    index_N, n_clusters = cluster_index(clusters, len(a_N))
    low, high, method = _ratio_bootstrap(differences_N, index_N, confidence, resamples, rng)
    return Difference(
        mean=float(differences_N.mean()),
        low=low,
        high=high,
        p=sign_flip_p(np.bincount(index_N, weights=differences_N), resamples, rng),
        mean_a=float(a_N.mean()),
        mean_b=float(b_N.mean()),
        n=len(a_N),
        n_clusters=n_clusters,
        confidence=confidence,
        method=method,
    )


def seeds_interval(
    matrix: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    differences: bool = False,
    confidence: float = 0.95,
) -> SeedInterval:
    """Mean of a seeds × items matrix, and what another seed on other items would give.

    For a difference between two ways of training give the matrix of differences, row by row for
    the same seed and column by column for the same item. All right or all wrong gives Wilson's
    interval, each cluster taken as one try. Scores within 0 and 1 keep their ends there.

    Args:
        matrix: (S, N) finite numbers; row = seed, column = item.
        clusters: N labels of the columns; columns of one label belong together.
        differences: The numbers are differences: all 0 then means no difference, not all wrong.
        confidence: Coverage, in (0, 1).

    Raises:
        DataError: Fewer than two seeds or two clusters, or a value that is not finite.
    """
    matrix_SN = np.asarray(matrix, dtype=np.float64)
    if matrix_SN.ndim != 2 or matrix_SN.shape[0] < 2 or not np.isfinite(matrix_SN).all():
        raise DataError(
            f"a matrix of shape {matrix_SN.shape} says nothing about seeds: expected finite "
            "numbers, two or more rows (seeds), one column for each item."
        )
    num_seeds, num_items = matrix_SN.shape
    index_N, n_clusters = cluster_index(clusters, num_items)
    if n_clusters < 2:
        raise DataError(f"{n_clusters} cluster of items: expected at least 2.")
    low, high = crossed_interval([matrix_SN], index_N, confidence)
    method = "crossed"
    if np.ptp(matrix_SN) == 0:
        low = high = float(matrix_SN[0, 0])
        method = "constant"
        if not differences:
            low, high, method = _constant(low, n_clusters, confidence)
    elif not differences and matrix_SN.min() >= 0 and matrix_SN.max() <= 1:
        low, high = max(low, 0.0), min(high, 1.0)
    return SeedInterval(
        mean=float(matrix_SN.mean()),
        low=low,
        high=high,
        seed_means=tuple(float(m) for m in matrix_SN.mean(1)),
        n=num_items,
        n_seeds=num_seeds,
        n_clusters=n_clusters,
        confidence=confidence,
        method=method,
    )


# Helpers ------------------------------------------------------------------------------------------


def _finite(values: ArrayLike, what: str) -> np.ndarray:
    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1:
        raise DataError(f"{what} of shape {values_N.shape}: expected one dimension.")
    bad = int((~np.isfinite(values_N)).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(values_N)} {what} are not finite: leave out responses that have no "
            "score, and count them, before averaging."
        )
    return values_N


def _constant(value: float, n_clusters: int, confidence: float) -> tuple[float, float, str]:
    """Interval where all values are equal; of right or wrong answers, Wilson's over clusters."""
    if value not in (0.0, 1.0):
        return value, value, "constant"
    wilson = wilson_interval(int(value) * n_clusters, n_clusters, confidence=confidence)
    return wilson.low, wilson.high, wilson.method


def _ratio_bootstrap(
    values_N: np.ndarray, index_N: np.ndarray, confidence: float, resamples: int, rng: Rng
) -> tuple[float, float, str]:
    """Interval of the mean of all values when clusters are drawn: a ratio of two cluster sums."""
    if len(values_N) and index_N.max() > 0 and np.ptp(values_N) == 0:
        return float(values_N[0]), float(values_N[0]), "constant"
    sums_2C = np.stack([np.bincount(index_N, weights=values_N), np.bincount(index_N)])
    return sums_bootstrap(sums_2C, lambda sums: sums[0] / sums[1], confidence, resamples, rng)

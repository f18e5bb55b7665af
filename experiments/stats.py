"""Statistics of evaluations and comparisons: intervals, paired tests, seeds.

Pure functions over NumPy arrays, on ``scipy.stats``. Responses to one item (a prompt, or all
prompts about one word) are not independent, so whole *clusters* are resampled, never single
responses. Every function takes ``rng`` (a seed or a generator) and gives the same numbers for the
same seed.

Method: Miller 2024, "Adding Error Bars to Evals" (https://arxiv.org/abs/2411.00640); seeds: Agarwal
et al. 2021 (https://arxiv.org/abs/2108.13264); two ways at once: Owen 2007 (pigeonhole bootstrap,
https://arxiv.org/abs/0712.1111).
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from instructrec.errors import DataError

Rng = int | np.random.Generator
_WILSON_MAX = 50
"""Up to this many independent 0/1 values the bootstrap is too optimistic; Wilson's holds."""
_BCA_MAX = 2000
"""Above this many clusters BCa and percentile agree, and the jackknife is not worth it."""
_BATCH_ELEMENTS = 2_000_000


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
    """Clusters of items that were resampled."""
    confidence: float = 0.95
    """Coverage that was asked for."""
    method: str = "percentile"
    """percentile, wilson (all right or all wrong) or constant (all values equal)."""


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
    index_N, n_clusters = _cluster_index(clusters, len(values_N))
    mean = float(values_N.mean()) if len(values_N) else float("nan")
    binary = bool(np.isin(values_N, (0.0, 1.0)).all())
    if 2 <= len(values_N) == n_clusters <= _WILSON_MAX and binary:
        return wilson_interval(int(values_N.sum()), len(values_N), confidence=confidence)
    low, high, method = _ratio_bootstrap(values_N, index_N, confidence, resamples, rng)
    if method == "constant":
        mean = low  # the mean of equal floats may be an ulp off
        low, high, method = _constant(mean, n_clusters, confidence)
    return Interval(mean, low, high, len(values_N), n_clusters, confidence, method)


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
    index_N, n_clusters = _cluster_index(clusters, len(a_N))
    low, high, method = _ratio_bootstrap(differences_N, index_N, confidence, resamples, rng)
    return Difference(
        mean=float(differences_N.mean()),
        low=low,
        high=high,
        p=_sign_flip_p(np.bincount(index_N, weights=differences_N), resamples, rng),
        mean_a=float(a_N.mean()),
        mean_b=float(b_N.mean()),
        n=len(a_N),
        n_clusters=n_clusters,
        confidence=confidence,
        method=method,
    )


def two_level_bootstrap(
    matrix: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    differences: bool = False,
    confidence: float = 0.95,
    resamples: int = 4999,
    rng: Rng = 0,
) -> SeedInterval:
    """Mean of a seeds × items matrix with an interval over both: seeds and item clusters are drawn.

    For a difference between two ways of training give the matrix of differences, row by row for
    the same seed and column by column for the same item: the pairing is then kept in every
    resample. All right or all wrong gives Wilson's interval, each cluster taken as one try.
    With few seeds the percentile interval is somewhat narrow for the spread between
    seeds (by a factor of sqrt((S - 1) / S)); use at least five.

    Args:
        matrix: (S, N) finite numbers; row = seed, column = item.
        clusters: N labels of the columns; columns of one label are drawn together.
        differences: The numbers are differences: all 0 then means no difference, not all wrong.
        confidence: Coverage, in (0, 1).
        resamples: Bootstrap resamples.
        rng: Seed or generator.

    Raises:
        DataError: Fewer than two seeds or two clusters, or a value that is not finite.
    """
    matrix_SN = np.asarray(matrix, dtype=np.float64)
    if matrix_SN.ndim != 2 or matrix_SN.shape[0] < 2 or not np.isfinite(matrix_SN).all():
        raise DataError(
            f"a matrix of shape {matrix_SN.shape} cannot be resampled over seeds: expected finite "
            "numbers, two or more rows (seeds), one column for each item."
        )
    num_seeds, num_items = matrix_SN.shape
    index_N, n_clusters = _cluster_index(clusters, num_items)
    if n_clusters < 2:
        raise DataError(f"{n_clusters} cluster of items: expected at least 2 to resample.")
    low, high, method = _two_way_bootstrap(matrix_SN, index_N, confidence, resamples, rng)
    if method == "constant" and not differences:
        low, high, method = _constant(low, n_clusters, confidence)
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


def _cluster_index(clusters: Sequence[Hashable] | None, n: int) -> tuple[np.ndarray, int]:
    """Returns the number of each value's cluster, (N,) ints, and how many clusters there are."""
    if clusters is None:
        return np.arange(n), n
    if len(clusters) != n:
        raise DataError(f"{len(clusters)} cluster labels for {n} values: expected one for each.")
    numbers: dict[Any, int] = {}
    index_N = np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=int)
    return index_N, len(numbers)


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
    sizes_C = np.bincount(index_N).astype(np.float64)
    if len(sizes_C) < 2:
        return float("nan"), float("nan"), "none"
    if np.ptp(values_N) == 0:
        return float(values_N[0]), float(values_N[0]), "constant"
    sums_C = np.bincount(index_N, weights=values_N)

    def statistic(sums: np.ndarray, sizes: np.ndarray, axis: int = -1) -> np.ndarray:
        return sums.sum(axis) / sizes.sum(axis)

    methods = ("bca", "percentile") if len(sizes_C) <= _BCA_MAX else ("percentile",)
    for method in methods:
        with warnings.catch_warnings():
            # scipy warns of degenerate data where BCa is undefined; percentile answers then.
            warnings.simplefilter("ignore")
            interval = stats.bootstrap(
                (sums_C, sizes_C),
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=resamples,
                batch=max(1, _BATCH_ELEMENTS // len(sizes_C)),
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(rng),
            ).confidence_interval
        if np.isfinite(interval.low) and np.isfinite(interval.high):
            break
    return float(interval.low), float(interval.high), method


def _two_way_bootstrap(
    matrix_SN: np.ndarray, index_N: np.ndarray, confidence: float, resamples: int, rng: Rng
) -> tuple[float, float, str]:
    """Interval of the mean of all entries when rows and clusters of columns are drawn."""
    if np.ptp(matrix_SN) == 0:
        return float(matrix_SN[0, 0]), float(matrix_SN[0, 0]), "constant"
    sizes_C = np.bincount(index_N).astype(np.float64)
    num_seeds, n_clusters = len(matrix_SN), len(sizes_C)
    member_NC = np.zeros((len(index_N), n_clusters))
    member_NC[np.arange(len(index_N)), index_N] = 1.0
    sums_SC = matrix_SN @ member_NC

    def statistic(seeds: np.ndarray, items: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = sums_SC[seeds[..., :, None], items[..., None, :]]
        return drawn.sum((-1, -2)) / (num_seeds * sizes_C[items].sum(-1))

    # Seeds and clusters are two independent samples of numbers, which scipy draws for us.
    interval = stats.bootstrap(
        (np.arange(num_seeds), np.arange(n_clusters)),
        statistic,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH_ELEMENTS // (num_seeds * n_clusters)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(rng),
    ).confidence_interval
    return float(interval.low), float(interval.high), "percentile"


def _sign_flip_p(sums_C: np.ndarray, resamples: int, rng: Rng) -> float:
    """Two-sided p-value of "a and b are exchangeable within clusters"; 1 when nothing differs."""
    if not sums_C.any():
        return 1.0

    def statistic(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return (a - b).sum(axis)

    if len(sums_C) < 2:
        return 1.0  # one cluster: both of its two signs are as far from 0 as what was seen
    return float(
        stats.permutation_test(
            (sums_C, np.zeros_like(sums_C)),
            statistic,
            permutation_type="samples",
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _BATCH_ELEMENTS // len(sums_C)),
            rng=np.random.default_rng(rng),
        ).pvalue
    )

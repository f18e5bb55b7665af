"""Resampling: clusters are numbered, drawn with replacement, or change their sign.

The parts of ``instructrec.experiments.stats``, on ``scipy.stats``. Every function that draws takes
``rng`` (a seed or a generator) and gives the same numbers for the same seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from instructrec.errors import DataError

Rng = int | np.random.Generator
_BCA_MAX = 2000
"""Above this many clusters BCa and percentile agree, and the jackknife is not worth it."""
_BATCH_ELEMENTS = 2_000_000


def cluster_index(clusters: Sequence[Hashable] | None, n: int) -> tuple[np.ndarray, int]:
    """Returns the number of each value's cluster, (N,) ints, and how many clusters there are."""
    if clusters is None:
        return np.arange(n), n
    if len(clusters) != n:
        raise DataError(f"{len(clusters)} cluster labels for {n} values: expected one for each.")
    numbers: dict[Any, int] = {}
    index_N = np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=int)
    return index_N, len(numbers)


def sums_bootstrap(
    sums_KC: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    confidence: float,
    resamples: int,
    rng: Rng,
) -> tuple[float, float, str]:
    """Interval of a score of sums over clusters, when whole clusters are drawn.

    Args:
        sums_KC: K sums of each of C clusters.
        score: From (K, ...) sums over all clusters that were drawn to (...) scores.
        confidence: Coverage, in (0, 1).
        resamples: Bootstrap resamples.
        rng: Seed or generator.

    Returns:
        Lower and upper end and the method: ``bca``, or ``percentile`` where BCa is undefined or
        there are above 2000 clusters, or ``none`` for fewer than two clusters (NaN).
    """
    num_clusters = sums_KC.shape[1]
    if num_clusters < 2:
        return float("nan"), float("nan"), "none"

    def statistic(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        return score(sums_KC[:, drawn].sum(-1))

    methods = ("bca", "percentile") if num_clusters <= _BCA_MAX else ("percentile",)
    for method in methods:
        with warnings.catch_warnings():
            # scipy warns of degenerate data where BCa is undefined; percentile answers then.
            warnings.simplefilter("ignore")
            interval = stats.bootstrap(
                (np.arange(num_clusters),),
                statistic,
                vectorized=True,
                n_resamples=resamples,
                batch=max(1, _BATCH_ELEMENTS // sums_KC.size),
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(rng),
            ).confidence_interval
        if np.isfinite(interval.low) and np.isfinite(interval.high):
            break
    return float(interval.low), float(interval.high), method


def sign_flip_p(sums_C: np.ndarray, resamples: int, rng: Rng) -> float:
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

"""Intervals over seeds and items: what another training run on other items would give.

Runs (seeds) and clusters of items are crossed random effects: run s has its own luck, cluster c its
own difficulty, and each pair a remainder. Sums of squares estimate the variance of each; that of
the grand mean is MS_c / (S C) + max(0, MS_s - MS_e) / (S C), and Satterthwaite's degrees of freedom
say how well it is known, so that three runs give the wide interval that three runs deserve. A
bootstrap over so few runs covers too little (``experiments/results/comparison_proof.md``).

Sources: Searle, Casella, McCulloch 1992, "Variance Components" (crossed random effects);
Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance Components"; ratio of sums
over clusters of different size linearised as in Cochran 1977, "Sampling Techniques", chapter 6.

Shape suffixes: S runs, N items, C clusters of items.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def crossed_interval(
    matrices: Sequence[np.ndarray], index_N: np.ndarray, confidence: float
) -> tuple[float, float]:
    """Interval of the sum of the means of matrices of scores over the same items.

    One matrix: a policy, or differences between runs that belong together. Two, ``a`` and ``-b``:
    the difference of policies whose runs have nothing to do with each other.

    Args:
        matrices: Each (S, N); one of a single row knows nothing of the luck of runs and adds none.
        index_N: Number of each item's cluster, 0 to C - 1, with C of 2 or more.
        confidence: Coverage, in (0, 1).

    Returns:
        Lower and upper end; both the mean where nothing varies.
    """
    sizes_C = np.bincount(index_N).astype(np.float64)
    num_clusters = len(sizes_C)
    effects = [_cluster_effects(matrix, index_N, sizes_C) for matrix in matrices]
    mean = float(sum(matrix.mean() for matrix in matrices))
    items_C = np.sum([effect.mean(0) for effect in effects], axis=0)
    parts = [(items_C.var(ddof=1) / num_clusters, num_clusters - 1)]
    for effect in effects:
        parts += _luck_of_runs(effect)
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return mean, mean
    # Parts of opposite sign can leave next to nothing: fewer than 1 would mean an endless interval.
    freedom = max(1.0, variance**2 / sum(part**2 / df for part, df in parts))
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance))
    return mean - half, mean + half


def _cluster_effects(matrix_SN: np.ndarray, index_N: np.ndarray, sizes_C: np.ndarray) -> np.ndarray:
    """(S, C): how far each cluster moves the mean of a run; its mean over C is the run's own."""
    sums_SC = np.stack([np.bincount(index_N, weights=row) for row in matrix_SN])
    return (sums_SC - matrix_SN.mean() * sizes_C) * (len(sizes_C) / len(index_N))


def _luck_of_runs(effects_SC: np.ndarray) -> list[tuple[float, int]]:
    """Parts of the variance that come from the runs, signed, with their degrees of freedom."""
    num_runs, num_clusters = effects_SC.shape
    if num_runs < 2:
        return []
    rows, columns = effects_SC.mean(1), effects_SC.mean(0)
    rest_SC = effects_SC - rows[:, None] - columns + effects_SC.mean()
    rest_df = (num_runs - 1) * (num_clusters - 1)
    between = num_clusters * float(rows.var(ddof=1))
    rest = float((rest_SC**2).sum()) / rest_df
    if between <= rest:
        return []
    scale = 1.0 / effects_SC.size
    return [(between * scale, num_runs - 1), (-rest * scale, rest_df)]

"""The numbers of a comparison: means, paired differences, wins, and scores over tasks.

Pure functions of score matrices, (seeds, instructions). Sources: paired bootstrap and clusters as
in ``stats``; Holm 1979 for several pairs; interquartile mean and probability of improvement as
Agarwal et al. 2021 define them (https://arxiv.org/abs/2108.13264).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as scipy_stats

from instructrec.experiments.resampling import Rng, cluster_index
from instructrec.experiments.stats import (
    Interval,
    SeedInterval,
    mean_interval,
    paired_difference,
    two_level_bootstrap,
    wilson_interval,
)

SIGNIFICANT = 0.05
"""Level of the tests, after Holm's correction."""
TIE = 1e-9
"""Scores that differ by less are equal."""


@dataclass(frozen=True)
class Pair:
    """One policy against another, on the same instructions."""

    a: str
    """Name of the first."""
    b: str
    """Name of the second."""
    mean: float
    """Mean of a - b."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    method: str
    """What the interval resamples: ``seeds and items`` or ``items``."""
    p: float
    """Two-sided p-value of "no difference": signs flipped in whole clusters of instructions."""
    p_holm: float
    """The same, corrected for the number of pairs."""
    wins: int
    """Instructions on which a is better."""
    ties: int
    """Instructions on which both are equal."""
    losses: int
    """Instructions on which b is better."""
    win_share: Interval | None
    """Wins among wins and losses with Wilson's interval; None without either."""
    improvement: float
    """Probability that a run of a beats one of b on a task, ties half; mean over tasks."""

    @property
    def decided(self) -> bool:
        """Whether interval and test agree that there is a difference."""
        return self.p_holm < SIGNIFICANT and (self.low > 0 or self.high < 0)


def policy_mean(scores_SN: np.ndarray, clusters: Sequence[Hashable]) -> Interval | SeedInterval:
    """Mean of a policy; its interval is over seeds and items from two seeds on."""
    if len(scores_SN) > 1:
        return two_level_bootstrap(scores_SN, clusters)
    return mean_interval(scores_SN[0], clusters)


def compare_all(
    scores: Mapping[str, np.ndarray],
    seeds: Mapping[str, Sequence[int | None]],
    clusters: Sequence[Hashable],
    labels: Sequence[str],
) -> list[Pair]:
    """Compares every two policies.

    Args:
        scores: Policy -> (seeds, N) finite scores; columns are the same instructions.
        seeds: Policy -> its seeds; policies with the same ones are paired by seed.
        clusters: N labels of what is resampled together.
        labels: N names of tasks.
    """
    names = list(scores)
    pairs = [
        _pair(a, b, scores[a], scores[b], seeds[a], seeds[b], clusters, labels)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    ]
    corrected = holm([pair.p for pair in pairs])
    return [Pair(**{**vars(pair), "p_holm": p}) for pair, p in zip(pairs, corrected, strict=True)]


def _pair(
    a: str,
    b: str,
    a_SN: np.ndarray,
    b_TN: np.ndarray,
    a_seeds: Sequence[int | None],
    b_seeds: Sequence[int | None],
    clusters: Sequence[Hashable],
    labels: Sequence[str],
) -> Pair:
    plain = paired_difference(a_SN.mean(0), b_TN.mean(0), clusters)
    low, high, method = plain.low, plain.high, "items"
    if max(len(a_SN), len(b_TN)) > 1:
        method = "seeds and items"
        if list(a_seeds) == list(b_seeds) and None not in a_seeds:
            found = two_level_bootstrap(a_SN - b_TN, clusters, differences=True)
            low, high = found.low, found.high
        else:
            low, high = unpaired_interval(a_SN, b_TN, clusters)
    difference_N = a_SN.mean(0) - b_TN.mean(0)
    wins, losses = int((difference_N > TIE).sum()), int((difference_N < -TIE).sum())
    return Pair(
        a,
        b,
        plain.mean,
        low,
        high,
        method,
        plain.p,
        plain.p,
        wins,
        len(difference_N) - wins - losses,
        losses,
        wilson_interval(wins, wins + losses) if wins + losses else None,
        improvement(by_task(a_SN, labels), by_task(b_TN, labels)),
    )


def unpaired_interval(
    a_SN: np.ndarray,
    b_TN: np.ndarray,
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 4999,
    rng: Rng = 0,
) -> tuple[float, float]:
    """Percentile interval of the difference of means: seeds drawn apart, items together.

    A policy of one run keeps it in every resample.
    """
    index_N, count = cluster_index(clusters, a_SN.shape[1])
    sizes_C = np.bincount(index_N, minlength=count).astype(np.float64)
    sums = [
        np.stack([np.bincount(index_N, weights=row, minlength=count) for row in matrix])
        for matrix in (a_SN, b_TN)
    ]
    generator = np.random.default_rng(rng)
    drawn = np.empty(resamples)
    for i in range(resamples):
        items = generator.integers(count, size=count)
        means = [
            matrix[generator.integers(len(matrix), size=len(matrix))][:, items].mean(0).sum()
            for matrix in sums
        ]
        drawn[i] = (means[0] - means[1]) / sizes_C[items].sum()
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: controls the chance of any false alarm among all tests.

    Source: Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".
    """
    order = np.argsort(p_values)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[int(i)] = highest
    return corrected


def by_task(scores_SN: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Mean score of each run on each task, (seeds, tasks)."""
    found = np.asarray(labels)
    return np.stack([scores_SN[:, found == name].mean(1) for name in dict.fromkeys(labels)], axis=1)


def interquartile_mean(runs_SK: np.ndarray) -> float:
    """Mean of the middle half of all runs on all tasks; robust against a lucky run."""
    return float(scipy_stats.trim_mean(runs_SK, 0.25, axis=None))


def improvement(a_SK: np.ndarray, b_TK: np.ndarray) -> float:
    """Probability that a run of a beats a run of b on a task, ties counting half; mean of tasks."""
    above = (a_SK[:, None] - b_TK[None]) > TIE
    equal = np.abs(a_SK[:, None] - b_TK[None]) <= TIE
    return float((above + 0.5 * equal).mean())

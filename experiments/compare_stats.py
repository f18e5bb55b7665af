"""The numbers of a comparison: means, paired differences, wins, and scores over tasks.

Pure functions of score matrices, (runs, instructions). There are two intervals: of these very runs
on other instructions (paired bootstrap, as in ``stats``), and of other runs, too
(``random_effects``). Holm 1979 for several pairs; interquartile mean and probability of improvement
as Agarwal et al. 2021 define them (https://arxiv.org/abs/2108.13264).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from instructrec.experiments.random_effects import crossed_interval
from instructrec.experiments.resampling import cluster_index
from instructrec.experiments.stats import Interval, paired_difference, share_interval

SIGNIFICANT = 0.05
"""Level of the tests, after Holm's correction."""
FEWEST_RUNS = 3
"""Runs of a policy from which their spread says something about other runs."""
TIE = 1e-9
"""Scores that differ by less are equal."""

Decision = Literal["yes", "these runs", "no"]
"""Whether policies differ: other runs, too; these ones, too few of one policy at least to tell of
others; not decided."""


def is_few(runs: int | None) -> bool:
    """Whether so many runs of a policy tell nothing of others; None: it has no others."""
    return runs is not None and runs < FEWEST_RUNS


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
    """Lower end of the 95 % interval of these very runs on other instructions."""
    high: float
    """Upper end."""
    runs_low: float | None
    """Lower end of the 95 % interval of other runs, too; None where there are fewer than three."""
    runs_high: float | None
    """Upper end."""
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
    """Wins among wins and losses with its interval, clustered by item; None without either."""
    improvement: float
    """Probability that a run of a beats one of b on a task, ties half; mean over tasks."""

    @property
    def decided_here(self) -> bool:
        """Whether interval and test agree that these very runs differ."""
        return self.p_holm < SIGNIFICANT and (self.low > 0 or self.high < 0)

    @property
    def decided(self) -> bool:
        """Whether they differ, and other runs would, too, as far as there are runs to tell."""
        if self.runs_low is None or self.runs_high is None:
            return self.decided_here
        return self.decided_here and (self.runs_low > 0 or self.runs_high < 0)


def compare_all(
    scores: Mapping[str, np.ndarray],
    seeds: Mapping[str, Sequence[int | None]],
    clusters: Sequence[Hashable],
    labels: Sequence[str],
    *,
    resamples: int = 9999,
) -> list[Pair]:
    """Compares every two policies.

    Args:
        scores: Policy -> (seeds, N) finite scores; columns are the same instructions.
        seeds: Policy -> its seeds; policies with the same ones are paired by seed.
        clusters: N labels of what is resampled together.
        labels: N names of tasks.
        resamples: Resamples of the items, and most permutations.
    """
    names = list(scores)
    pairs = [
        _pair(a, b, scores[a], scores[b], seeds[a], seeds[b], clusters, labels, resamples)
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
    resamples: int,
) -> Pair:
    plain = paired_difference(a_SN.mean(0), b_TN.mean(0), clusters, resamples=resamples)
    paired = list(a_seeds) == list(b_seeds) and None not in a_seeds
    runs_low, runs_high = runs_interval(a_SN, b_TN, clusters, paired=paired)
    difference_N = a_SN.mean(0) - b_TN.mean(0)
    wins, losses = int((difference_N > TIE).sum()), int((difference_N < -TIE).sum())
    differing = np.flatnonzero(np.abs(difference_N) > TIE).tolist()
    won, of = [bool(difference_N[i] > 0) for i in differing], [clusters[i] for i in differing]
    return Pair(
        a,
        b,
        plain.mean,
        plain.low,
        plain.high,
        runs_low,
        runs_high,
        plain.p,
        plain.p,
        wins,
        len(difference_N) - wins - losses,
        losses,
        share_interval(won, of) if won else None,
        improvement(by_task(a_SN, labels), by_task(b_TN, labels)),
    )


def runs_interval(
    a_SN: np.ndarray, b_TN: np.ndarray, clusters: Sequence[Hashable], *, paired: bool
) -> tuple[float, float] | tuple[None, None]:
    """Interval of the difference of means for other runs on other instructions.

    Args:
        a_SN: Scores of the first policy's runs.
        b_TN: Those of the second; a policy of one run stays what it is.
        clusters: N labels of what belongs together.
        paired: Whether run i of both had the same seed.

    Returns:
        Lower and upper end; None twice where neither has `FEWEST_RUNS` runs.
    """
    if max(len(a_SN), len(b_TN)) < FEWEST_RUNS:
        return None, None
    matrices = [a_SN - b_TN] if paired else [a_SN, -b_TN]
    return crossed_interval(matrices, cluster_index(clusters, a_SN.shape[1])[0], 0.95)


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

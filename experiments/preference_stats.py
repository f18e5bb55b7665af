"""What a reward model has learned, from its scores of held-out pairs: accuracy, calibration, bias.

Pure numbers; nothing here knows a model. Intervals are clustered by instruction.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from instructrec.experiments.stats import Interval, mean_interval

Floats = NDArray[np.float64]
_BINS = 5


@dataclass(frozen=True)
class Bin:
    """Pairs that belong together."""

    low: float
    """Smallest value that they are put together by."""
    high: float
    """Largest one."""
    n: int
    """Pairs."""
    predicted: float
    """Mean probability that the model gives to the response which it prefers, in [0.5, 1]."""
    accuracy: float
    """Share in which that is the preferred one; a tie counts one half."""


@dataclass(frozen=True)
class LengthBias:
    """How much of the scores is length."""

    longer_wins: Interval
    """Share of the pairs in which people (or the mentor) preferred the longer response."""
    model_prefers_longer: Interval
    """Share of them in which the model does."""
    accuracy_when_longer_wins: float | None
    """Accuracy where the preferred response is longer; None without such pairs."""
    accuracy_when_shorter_wins: float | None
    """Accuracy where it is shorter; far below the other one, the model goes by length."""
    correlation: float | None
    """Pearson's correlation of score and length over all responses; None where one is constant."""
    rank_correlation: float | None
    """Spearman's."""


@dataclass(frozen=True)
class PairReport:
    """What the scores of N held-out pairs say."""

    accuracy: Interval
    """Share of the pairs whose preferred response scores more; a tie counts one half."""
    loss: float
    """Mean of -log σ(chosen - rejected), in nats; ln 2 = 0.693 knows nothing."""
    calibration: list[Bin]
    """By the probability that the model gives to its own preference."""
    calibration_error: float
    """Expected calibration error: mean distance of ``predicted`` and ``accuracy`` over pairs."""
    by_margin: list[Bin]
    """By the pairs' margin, where they have one that differs; few large margins are easy."""
    length: LengthBias
    """How much of the scores is length."""
    score_mean: float
    """Mean score of all responses."""
    score_std: float
    """Their (population) standard deviation."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def pair_report(
    chosen: ArrayLike,
    rejected: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    chosen_length: ArrayLike,
    rejected_length: ArrayLike,
    margins: ArrayLike | None = None,
) -> PairReport:
    """Describes the scores of N pairs.

    Args:
        chosen: (N,) scores of the preferred responses.
        rejected: (N,) scores of the others.
        clusters: N labels; pairs about one instruction have the same.
        chosen_length: (N,) lengths of the preferred responses.
        rejected_length: (N,) lengths of the others.
        margins: (N,) distances that the data states; None without.
    """
    chosen_N, rejected_N = _floats(chosen), _floats(rejected)
    difference_N = chosen_N - rejected_N
    right_N = won(difference_N)
    sure_N = 1.0 / (1.0 + np.exp(-np.abs(difference_N)))
    curve = _calibration(sure_N, right_N)
    gap = sum(b.n * abs(b.predicted - b.accuracy) for b in curve) / len(right_N)
    scores = np.concatenate([chosen_N, rejected_N])
    return PairReport(
        accuracy=mean_interval(right_N, clusters),
        loss=float(np.mean(np.logaddexp(0.0, -difference_N))),
        calibration=curve,
        calibration_error=float(gap),
        by_margin=[] if margins is None else _by_margin(_floats(margins), sure_N, right_N),
        length=_length_bias(
            difference_N, scores, _floats(chosen_length), _floats(rejected_length), clusters
        ),
        score_mean=float(scores.mean()),
        score_std=float(scores.std()),
    )


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def won(difference_N: Floats) -> Floats:
    """1 where the difference is above 0, 0.5 where it is 0, and 0 below."""
    return np.where(difference_N == 0, 0.5, (difference_N > 0).astype(np.float64))


def _calibration(sure_N: Floats, right_N: Floats) -> list[Bin]:
    """Bins of equal width over [0.5, 1]; empty ones are left out."""
    edges = np.linspace(0.5, 1.0, _BINS + 1)
    place_N = np.clip(np.searchsorted(edges, sure_N, side="right") - 1, 0, _BINS - 1)
    return [
        _bin(edges[i], edges[i + 1], sure_N[place_N == i], right_N[place_N == i])
        for i in range(_BINS)
        if (place_N == i).any()
    ]


def _by_margin(margins_N: Floats, sure_N: Floats, right_N: Floats) -> list[Bin]:
    """Up to four bins of about as many pairs each; equal margins stay together."""
    if np.ptp(margins_N) == 0:
        return []
    edges = np.unique(np.quantile(margins_N, [0.25, 0.5, 0.75]))
    place_N = np.searchsorted(edges, margins_N, side="left")
    found = []
    for i in range(len(edges) + 1):
        here_N = place_N == i
        if here_N.any():
            own = margins_N[here_N]
            found.append(_bin(own.min(), own.max(), sure_N[here_N], right_N[here_N]))
    return found


def _bin(low: float, high: float, sure: Floats, right: Floats) -> Bin:
    return Bin(float(low), float(high), len(right), float(sure.mean()), float(right.mean()))


def _length_bias(
    difference_N: Floats,
    scores: Floats,
    chosen_length_N: Floats,
    rejected_length_N: Floats,
    clusters: Sequence[Hashable],
) -> LengthBias:
    longer_N = chosen_length_N - rejected_length_N
    right_N = won(difference_N)
    lengths = np.concatenate([chosen_length_N, rejected_length_N])
    known = len(scores) > 1 and np.ptp(scores) > 0 and np.ptp(lengths) > 0
    return LengthBias(
        longer_wins=mean_interval(won(longer_N), clusters),
        model_prefers_longer=mean_interval(won(difference_N * longer_N), clusters),
        accuracy_when_longer_wins=_mean(right_N[longer_N > 0]),
        accuracy_when_shorter_wins=_mean(right_N[longer_N < 0]),
        correlation=float(stats.pearsonr(scores, lengths).statistic) if known else None,
        rank_correlation=float(stats.spearmanr(scores, lengths).statistic) if known else None,
    )


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None

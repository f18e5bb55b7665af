"""From the cosines of held-out pairs to a calibrated score, and how good it is."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from instructrec.experiments.stats import Interval, mean_interval

Floats = NDArray[np.float64]
_BINS = 5


@dataclass(frozen=True)
class AlignmentReport:
    """What the scores of held-out pairs say; pairs that were calibrated on are not among them."""

    pairs: int
    """Pairs of instruction and output."""
    accuracy: Interval
    """Chance that a pair's cosine is above that of its instruction with a mismatched output."""
    recall_at_1: Interval
    """Share of the instructions whose own output is the most similar of all."""
    calibration: list[tuple[float, float, float]]
    """Bins of the score: share of the weight, mean score, share of matches, at even odds."""
    calibration_error: float
    """Expected calibration error at even odds."""
    match_score: float
    """Mean score of the pairs."""
    mismatch_score: float
    """Mean score of instructions with mismatched outputs."""
    score_std: float
    """Standard deviation of the scores of the pairs."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def calibrate(cosine_NN: Floats, same_NN: NDArray[np.bool_]) -> tuple[float, float]:
    """Fits σ(slope · cosine + intercept) to match or mismatch, at even odds.

    Matches and mismatches get the same weight, and targets a little inside of 0 and 1, without
    which the slope of pairs that can be told apart would have no end (Platt 1999).

    Args:
        cosine_NN: Cosine of each instruction (row) with each output (column).
        same_NN: True where two rows share the instruction or the output, the diagonal included.

    Returns:
        Slope (0 or more: a similarity never counts against a pair) and intercept.
    """
    cosines, targets, weights = _labelled(cosine_NN, same_NN)
    number = len(cosine_NN)
    soft = np.where(targets == 1, (number + 1) / (number + 2), 1 / (number + 2))

    def loss(values: Floats) -> tuple[float, Floats]:
        logits = values[0] * cosines + values[1]
        missing = weights * (1 / (1 + np.exp(-np.clip(logits, -700, 700))) - soft)
        terms = weights * (np.logaddexp(0.0, logits) - soft * logits)
        return float(terms.sum()), np.array([missing @ cosines, missing.sum()])

    found = optimize.minimize(
        loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)]
    )
    return float(found.x[0]), float(found.x[1])


def alignment_report(
    cosine_NN: Floats,
    same_NN: NDArray[np.bool_],
    clusters: Sequence[Hashable],
    slope: float,
    intercept: float,
) -> AlignmentReport:
    """Describes held-out pairs under a calibration that was fitted to others.

    Args:
        cosine_NN: As for `calibrate`.
        same_NN: As for `calibrate`.
        clusters: N labels; pairs of one instruction have the same.
        slope: Factor of the cosine.
        intercept: What is added to it.
    """
    above_N, best_N = against_others(cosine_NN, same_NN)
    known = np.isfinite(above_N)
    cosines, targets, weights = _labelled(cosine_NN, same_NN)
    scores = 1 / (1 + np.exp(-np.clip(slope * cosines + intercept, -700, 700)))
    curve = _curve(scores, targets, weights)
    match = targets == 1
    return AlignmentReport(
        pairs=len(cosine_NN),
        accuracy=mean_interval(
            above_N[known], [c for c, k in zip(clusters, known, strict=True) if k]
        ),
        recall_at_1=mean_interval(best_N.astype(float), clusters),
        calibration=curve,
        calibration_error=sum(share * abs(score - right) for share, score, right in curve),
        match_score=float(scores[match].mean()),
        mismatch_score=float(scores[~match].mean()) if (~match).any() else float("nan"),
        score_std=float(scores[match].std()),
    )


def against_others(
    cosine_NN: Floats, same_NN: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.bool_]]:
    """How the own output of each instruction does against those of others.

    Args:
        cosine_NN: As for `calibrate`.
        same_NN: As for `calibrate`.

    Returns:
        Share of the others' outputs that it is above, (N,) float64, a tie one half, NaN where there
        is no other; and whether it is above all of them, (N,) bool.
    """
    own_N = cosine_NN.diagonal()
    above_NN = (own_N[:, None] > cosine_NN) + 0.5 * (own_N[:, None] == cosine_NN)
    counted_N = (~same_NN).sum(1)
    won_N = np.where(counted_N > 0, (above_NN * ~same_NN).sum(1), np.nan)
    best_N = own_N > np.where(same_NN, -np.inf, cosine_NN).max(1)
    return won_N / np.maximum(counted_N, 1), best_N


def _labelled(cosine_NN: Floats, same_NN: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
    """Cosines with 1 for a match and 0 for a mismatch, and weights of one half for either kind."""
    matches, mismatches = cosine_NN.diagonal(), cosine_NN[~same_NN]
    cosines = np.concatenate([matches, mismatches])
    targets = np.repeat([1.0, 0.0], [len(matches), len(mismatches)])
    sizes = np.repeat([len(matches), max(len(mismatches), 1)], [len(matches), len(mismatches)])
    return cosines, targets, 0.5 / sizes


def _curve(scores: Floats, targets: Floats, weights: Floats) -> list[tuple[float, float, float]]:
    place = np.clip((scores * _BINS).astype(int), 0, _BINS - 1)
    found = []
    for i in range(_BINS):
        here = place == i
        if here.any():
            weight = weights[here]
            found.append(
                (
                    float(weight.sum()),
                    float(np.average(scores[here], weights=weight)),
                    float(np.average(targets[here], weights=weight)),
                )
            )
    return found

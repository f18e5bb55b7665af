"""A comparison by task: means, differences and their intervals on the instructions of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructrec.experiments.stats import Difference, Interval, mean_interval, paired_difference

_RESAMPLES = 1999


def numbers_by_task(
    scores: Mapping[str, np.ndarray], clusters: Sequence[str], labels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Numbers of each task, JSON-able; empty where all instructions are of one task.

    Args:
        scores: Policy -> (runs, N) finite scores; columns are the same instructions.
        clusters: N labels of what is resampled together.
        labels: N names of tasks.

    Returns:
        Task -> ``n`` (instructions), ``policies`` (policy -> mean, low, high) and ``differences``
        (every other policy -> the first one less it: mean, low, high). Intervals are of 95 %, of
        these very runs, and not corrected for the number of tasks.
    """
    if len(set(labels)) < 2:
        return {}
    found, first = np.asarray(labels), next(iter(scores))
    by_task: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(labels):
        places = np.flatnonzero(found == label).tolist()
        own = [clusters[i] for i in places]
        means = {name: matrix.mean(0)[places] for name, matrix in scores.items()}
        by_task[label] = {
            "n": len(places),
            "policies": {
                name: _ends(mean_interval(values, own, resamples=_RESAMPLES))
                for name, values in means.items()
            },
            "differences": {
                name: _ends(paired_difference(means[first], values, own, resamples=_RESAMPLES))
                for name, values in means.items()
                if name != first
            },
        }
    return by_task


def _ends(of: Interval | Difference) -> dict[str, float | None]:
    known = np.isfinite(of.low) and np.isfinite(of.high)
    return {"mean": of.mean, "low": of.low if known else None, "high": of.high if known else None}

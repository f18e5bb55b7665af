"""Scores of an evaluation by group: families of instructions, levels, tasks of a mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from instructrec.experiments.jsonl import Row
from instructrec.experiments.stats import Interval, mean_interval

if TYPE_CHECKING:
    from instructrec.experiments.evaluation import Evaluation


def interval_of(
    rows: Sequence[Row], scores: np.ndarray, clusters: Sequence[str], label: str, value: Any
) -> Interval:
    """Mean of the rows that have a score and, unless ``value`` is None, ``row[label] == value``.

    Args:
        rows: N rows of an evaluation.
        scores: (N,) scores, NaN for none.
        clusters: N labels of clusters.
        label: A key of rows, such as ``family`` or ``task``.
        value: What it is in the rows that count.
    """
    keep = [
        i
        for i, row in enumerate(rows)
        if math.isfinite(scores[i]) and (value is None or row.get(label) == value)
    ]
    return mean_interval(scores[keep], [clusters[i] for i in keep])


def values_of(rows: Sequence[Row], label: str) -> list[Any]:
    """Returns the values of a label in the order of the rows; empty where no row has it."""
    return list(dict.fromkeys(row[label] for row in rows if row.get(label) is not None))


def by_level(evaluation: Evaluation) -> dict[str, Interval]:
    """Returns level of difficulty -> interval of the total, easiest first; empty without levels.

    Levels stand in the column ``level`` of the task or of the data file.
    """
    rows, scores, clusters = evaluation.rows, evaluation.scores(), evaluation.clusters
    numbers = sorted(level for level in values_of(rows, "level") if not isinstance(level, str))
    names = [level for level in values_of(rows, "level") if isinstance(level, str)]
    return {
        str(level): interval_of(rows, scores, clusters, "level", level)
        for level in [*numbers, *names]
    }


def by_task(evaluation: Evaluation) -> dict[str, Interval]:
    """Returns task -> interval of the total, for each task of a mixture; else empty."""
    rows, scores, clusters = evaluation.rows, evaluation.scores(), evaluation.clusters
    return {
        task: interval_of(rows, scores, clusters, "task", task) for task in values_of(rows, "task")
    }


def task_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Returns ``eval/task/<task>/…`` of each task of a mixture; a number not known is absent."""
    metrics: dict[str, float] = {}
    for task, found in by_task(evaluation).items():
        numbers = {"mean": found.mean, "ci_low": found.low, "ci_high": found.high}
        metrics |= {f"eval/task/{task}/{k}": v for k, v in numbers.items() if math.isfinite(v)}
    return metrics

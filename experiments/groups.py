"""Scores of an evaluation by group: families of instructions, levels, tasks of a mixture."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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


def by_family(evaluation: Evaluation) -> dict[str, Interval]:
    """Returns family -> interval of the total; empty without families."""
    rows, scores, clusters = evaluation.rows, evaluation.scores(), evaluation.clusters
    return {
        family: interval_of(rows, scores, clusters, "family", family)
        for family in values_of(rows, "family")
    }


def totals_of(
    after: Evaluation | None,
    before: Evaluation | None,
    label: str,
    intervals_of: Callable[[Evaluation], Mapping[str, Interval]],
) -> dict[str, dict[str, Any]]:
    """Total of each group of instructions beside that of the start, JSON-able.

    Args:
        after: The evaluation; None gives nothing.
        before: An evaluation of the start.
        label: Key of a row that names its group.
        intervals_of: Group -> interval of the total.

    Returns:
        Group -> ``after`` (mean), ``low``, ``high``, ``n`` (instructions with a score), ``before``.
    """
    if after is None:
        return {}
    start = {} if before is None else intervals_of(before)
    scored = {(str(row.get(label)), row["id"]) for row in after.rows if row["total"] is not None}
    sizes = Counter(value for value, _ in scored)
    return {
        name: {"after": of.mean, "low": of.low, "high": of.high, "n": sizes[name]}
        | ({"before": start[name].mean} if name in start else {})
        for name, of in intervals_of(after).items()
        if of.n
    }


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

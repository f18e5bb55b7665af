"""Over-optimisation: where the true reward stops rising while the learned one goes on.

Both are measured on the same validation instructions after some updates. Which update a run keeps
is decided by `choice_of`, what both rewards did by `overoptimised`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrec.errors import DataError

_BEYOND_BUDGET = -1e6
"""Factor of the KL beyond the budget: worse than any score, and the worse the further away."""


@dataclass(frozen=True)
class Point:
    """One evaluated update."""

    update: int
    """Its number; 0 is the start."""
    kl: float
    """KL to the start in nats per response, in the rollout of that update."""
    proxy: float
    """Mean of the learned reward on validation instructions."""
    gold: float
    """Mean of the true one on the same responses."""


def points_of(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The evaluated updates of a run, in order.

    Args:
        rows: Lines of ``metrics.jsonl`` of a run with the rewards ``proxy`` and ``gold``.
    """
    return [
        Point(
            int(row["train/update"]),
            float(row["ppo/kl_ref"]),
            float(row["eval/proxy/mean"]),
            float(row["eval/gold/mean"]),
        )
        for row in rows
        if row.get("eval/proxy/mean") is not None and row.get("eval/gold/mean") is not None
    ]


def overoptimised(points: Sequence[Point], patience: int) -> Point | None:
    """The update at which the true reward stopped rising while the learned one went on.

    That is the first point with the best true reward, if ``patience`` points or more follow it and
    the last ``patience`` of these have, on average, a lower true and a higher learned reward.

    Args:
        points: In the order of the updates.
        patience: Points after the best one that it takes to believe it, at least 1.

    Returns:
        The point, or None where there is none yet.

    Raises:
        DataError: ``patience`` is below 1.
    """
    if patience < 1:
        raise DataError(f"patience = {patience}: expected at least 1.")
    if not points:
        return None
    peak = max(points, key=lambda point: point.gold)  # the first of equals
    later = points[points.index(peak) + 1 :][-patience:]
    if len(later) < patience:
        return None
    gold = sum(point.gold for point in later) / len(later)
    proxy = sum(point.proxy for point in later) / len(later)
    return peak if gold < peak.gold and proxy > peak.proxy else None


def choice_of(reward: str, kl_budget: float | None) -> Callable[[Mapping[str, float]], float]:
    """What makes one update better than another: larger is better.

    Args:
        reward: ``proxy`` or ``gold``, as measured on validation instructions.
        kl_budget: Updates beyond this KL are worse than all others, the more, the further away.
    """

    def score(metrics: Mapping[str, float]) -> float:
        kl = metrics["ppo/kl_ref"]
        if kl_budget is not None and kl > kl_budget:
            return _BEYOND_BUDGET * kl
        return metrics.get(f"eval/{reward}/mean", math.nan)  # where the reward has failed

    return score

"""Bringing rewards of different size to one scale before they are summed for training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Scaling = Literal["none", "clip", "batch", "running", "group"]
"""What is done to the scores of a reward; see ``normalised``."""

SCALINGS: tuple[str, ...] = ("none", "clip", "batch", "running", "group")
"""Every way to normalise."""

RELATIVE: tuple[str, ...] = ("batch", "running", "group")
"""Those in which a score depends on the other scores."""

_SMALLEST_STD = 1e-8
"""Scores that spread less than this are taken for equal."""


@dataclass
class RunningStats:
    """Mean and spread of all scores so far (Welford 1962, merged batch by batch)."""

    count: int = 0
    """Scores seen."""
    mean: float = 0.0
    """Their mean."""
    squares: float = 0.0
    """Sum of their squared distances from the mean."""

    def add(self, values: np.ndarray) -> None:
        """Takes note of finite scores, shape (n,)."""
        if not values.size:
            return
        count, mean = self.count + values.size, float(values.mean())
        distance = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum())
        self.squares += distance**2 * self.count * values.size / count
        self.mean += distance * values.size / count
        self.count = count

    @property
    def std(self) -> float:
        """Standard deviation of the scores seen; 0 for none."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint needs, as JSON."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts a state back."""
        self.count, self.mean = int(state["count"]), float(state["mean"])
        self.squares = float(state["squares"])


def normalised(
    scores_B: np.ndarray,
    how: str,
    *,
    prompts: Sequence[Any],
    stats: RunningStats,
    bounds: tuple[float, float] | None = None,
) -> np.ndarray:
    """Normalises the scores of one reward.

    Args:
        scores_B: (B,) raw scores, NaN where there is none.
        how: ``none``; ``clip`` to ``bounds``; ``batch``: less the mean of this batch, divided by
            its standard deviation; ``group``: the same over the samples of equal prompt;
            ``running``: the same with the mean and spread of all batches so far, this one included.
            Scores that are all equal become 0.
        prompts: B instructions, by which ``group`` tells the groups.
        stats: What ``running`` knows; this batch is added.
        bounds: Of ``clip``.

    Returns:
        (B,) float64, NaN where ``scores_B`` is.
    """
    if how == "clip" and bounds is not None:
        return np.clip(scores_B, *bounds)
    if how == "batch":
        return _standard(scores_B)
    if how == "running":
        stats.add(scores_B[np.isfinite(scores_B)])
        return _scaled(scores_B, stats.mean, stats.std)
    if how == "group":
        result_B = np.full_like(scores_B, math.nan)
        groups: dict[str, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(json.dumps(prompt, sort_keys=True, default=str), []).append(i)
        for rows in groups.values():
            result_B[rows] = _standard(scores_B[rows])
        return result_B
    return scores_B


def _standard(scores: np.ndarray) -> np.ndarray:
    known = scores[np.isfinite(scores)]
    return _scaled(scores, float(known.mean()), float(known.std())) if known.size else scores


def _scaled(scores: np.ndarray, mean: float, std: float) -> np.ndarray:
    scale = 1.0 / std if std > _SMALLEST_STD else 0.0
    return (scores - mean) * scale

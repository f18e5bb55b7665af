"""What a training call keeps track of, and what it gives back."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from instructrec.errors import ConfigError
from instructrec.faults import Fault, note

if TYPE_CHECKING:
    from instructrec.rl.monitors import Alarm
    from instructrec.rl.rollout import Rollout

OnUpdate = Callable[[dict[str, float], list[dict[str, Any]]], None]
"""Receives the metrics of an update and its sample rows."""

OnAlarm = Callable[["Alarm"], None]
"""Receives what a monitor saw, and what was done about it."""

Stopped = Literal["finished", "early_stopping", "pruned", "interrupted"]
"""Why a training call ended; ``pruned`` by whoever compares it with others as it goes on."""

ShouldPrune = Callable[[int, dict[str, float]], bool]
"""Receives the update and metrics of an evaluation; says whether the run is not worth going on."""

Chooses = str | Callable[[Mapping[str, float]], float]
"""What makes one update better than another: a metric, or a function of all of an update's."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training call ended."""

    updates: int
    """Updates that the run has behind it, those before a resume included."""
    best_update: int
    """Update with the best evaluation; the last one when nothing was evaluated."""
    best_score: float | None
    """That evaluation's score, None when nothing was evaluated."""
    stopped: Stopped
    """Why it ended."""


@dataclass
class Progress:
    """Counters of a run that a checkpoint carries."""

    update: int = 0
    best_update: int = 0
    best_score: float | None = None
    evaluations_without_gain: int = 0
    rollouts: str = ""
    """SHA-256 over the tokens and rewards of all rollouts so far, each added to those before."""

    def note_rollout(self, rollout: Rollout) -> None:
        """Takes down what was sampled and what it earned."""
        digest = hashlib.sha256(self.rollouts.encode())
        for part in (rollout.prompt_ids, rollout.response_ids, rollout.turn_rewards):
            digest.update(repr(part).encode())
        self.rollouts = digest.hexdigest()

    def note_score(self, score: float) -> None:
        """Takes down the score of an evaluation of the current update (larger is better)."""
        if self.best_score is None or score > self.best_score:
            self.best_score, self.best_update = score, self.update
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1


@dataclass(frozen=True)
class Hooks:
    """What the trainer calls besides the policy and the environment."""

    on_update: OnUpdate
    evaluate: Callable[[], dict[str, float]] | None
    best_metric: Chooses
    should_stop: Callable[[], bool]
    on_alarm: OnAlarm = lambda _: None
    should_prune: ShouldPrune = lambda update, metrics: False

    def score(self, metrics: dict[str, float]) -> float | None:
        """The number by which the best update is chosen; None where rewards failed to measure it.

        Raises:
            ConfigError: The evaluation does not report it, and nothing failed.
        """
        if not isinstance(self.best_metric, str):
            score: float | None = self.best_metric(metrics)
        else:
            score = metrics.get(self.best_metric)
        if score is not None and math.isfinite(score):
            return score
        if went_unmeasured(metrics, str(self.best_metric)):
            return None
        if isinstance(self.best_metric, str):
            raise ConfigError(
                f"the evaluation reports no {self.best_metric!r}, by which the best update is "
                f"chosen. It reports: {', '.join(sorted(metrics))}."
            )
        return None


def went_unmeasured(metrics: Mapping[str, float], chooses: str) -> bool:
    """Says, and takes down, whether an evaluation lacks a number because rewards failed in it.

    Args:
        metrics: What the evaluation found.
        chooses: The number that is missing.
    """
    failed = [k for k, v in metrics.items() if k.endswith("/error_frac") and v > 0]
    failed = sorted(key.removesuffix("/error_frac") for key in failed if key.startswith("eval/"))
    if failed:
        message = f"{chooses} was not measured: {', '.join(failed)} failed. It chooses nothing here"
        note(Fault("reward", "unmeasured", "evaluation", message))
    return bool(failed)


class Clock:
    """Wall-clock laps of one update, in seconds."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends the lap of that name."""
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self.start

"""What monitors see of an update, and what they remember of those before."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

from instructrec.rl.config import PPOConfig

WINDOW = 5
"""Updates over which the total, the gold reward and times are averaged: one alone is mostly
noise."""
_LAPS = ("time/rollout_s", "time/score_s", "time/advantage_s", "time/update_s")
"""What an update consists of."""
_ROUNDING = 1e-9
"""Share of the mean below which a standard deviation is rounding."""


@dataclass
class Memory:
    """What the monitors remember; part of a checkpoint."""

    first_entropy: float | None = None
    """Entropy of the first update, nats per token."""
    first_length: float | None = None
    """Mean length of the responses of the first update, tokens."""
    updates_without_critic: int = 0
    """Updates in a row in which the mean return, and not the critic, was the baseline."""
    updates_without_spread: int = 0
    """Updates in a row in which all rewards were equal."""
    latest: list[list[float]] = field(default_factory=list)
    """Of the latest updates: mean total, mean gold, standard deviation of the gold scores."""
    best: list[float] | None = None
    """The means of these over the latest updates, when gold was at its highest."""
    waiting: list[float] = field(default_factory=list)
    """Of the latest updates of this process, the share for which they waited for scores."""
    lasting: dict[str, int] = field(default_factory=dict)
    """Updates in a row with the trouble of a monitor; those without trouble are not in it."""

    def note(self, metrics: Mapping[str, float], config: PPOConfig) -> None:
        """Takes down the metrics of an update."""
        if self.first_entropy is None:
            self.first_entropy = metrics["ppo/entropy"]
            self.first_length = metrics["rollout/response_len"]
        idle = config.advantage == "gae" and metrics.get("ppo/critic_used") == 0
        self.updates_without_critic = self.updates_without_critic + 1 if idle else 0
        # Equal rewards: the mean of many equal numbers is off by a rounding, and so is the spread.
        flat = metrics["reward/total/std"] <= _ROUNDING * abs(metrics["reward/total/mean"])
        self.updates_without_spread = self.updates_without_spread + 1 if flat else 0
        self._note_gold(metrics, config.monitors.gold)
        self._note_times(metrics)

    def _note_gold(self, metrics: Mapping[str, float], gold: str) -> None:
        keys = ("reward/total/mean", f"reward/{gold}/mean", f"reward/{gold}/std")
        values = [metrics.get(key, math.nan) for key in keys]
        if not all(map(math.isfinite, values)):
            return
        self.latest = [*self.latest, values][-WINDOW:]
        now = self.recent()
        if now is not None and (self.best is None or now[1] > self.best[1]):
            self.best = now

    def _note_times(self, metrics: Mapping[str, float]) -> None:
        whole = math.fsum(metrics.get(key, 0.0) for key in _LAPS)
        if whole > 0:
            self.waiting = [*self.waiting, metrics.get("time/score_s", 0.0) / whole][-WINDOW:]

    def scoring_share(self) -> float | None:
        """Share of an update for which it waited for scores, median; None if they are too few."""
        return median(self.waiting) if len(self.waiting) == WINDOW else None

    def recent(self) -> list[float] | None:
        """Total, gold and its standard deviation, means of the latest updates; None if too few."""
        if len(self.latest) < WINDOW:
            return None
        return [math.fsum(column) / WINDOW for column in zip(*self.latest, strict=True)]


@dataclass(frozen=True)
class Seen:
    """What one monitor looks at after one update."""

    metrics: Mapping[str, float]
    """The metrics of the update."""
    memory: Memory
    """What is known of those before, this one included."""
    threshold: float
    """Where trouble begins for this monitor."""
    config: PPOConfig
    """The settings of the run."""


Watch = Callable[[Seen], str | None]
"""A monitor: a sentence that says what is wrong and what to do, or None."""

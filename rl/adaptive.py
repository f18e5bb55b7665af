"""Coefficients that follow a target from update to update."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class AdaptiveCoefficient:
    """The weight of a penalty or bonus, fixed or steered towards a target.

    After an update of n episodes ``coef *= 1 ± clip(measured / target - 1, -0.2, 0.2) · n /
    horizon``: plus for a penalty (too much raises it), minus for a bonus (too much lowers it).
    Source: Ziegler et al. 2019, section 2.2, https://arxiv.org/abs/1909.08593.
    """

    coef: float
    """Its value in the next update."""
    target: float | None = None
    """Value that the measured quantity is steered to; None keeps ``coef`` as it is."""
    horizon: float = 1.0
    """Episodes over which it adapts; larger is slower."""
    is_bonus: bool = False
    """Whether the coefficient raises the measured quantity instead of lowering it."""
    most: float = math.inf
    """Largest value: what is measured may stop to respond (a learning rate that falls to 0), and
    the coefficient would then grow without end."""

    def observe(self, measured: float, episodes: int) -> None:
        """Adapts to what was measured on a rollout of that many episodes."""
        if self.target is None:
            return
        error = min(max(measured / self.target - 1.0, -0.2), 0.2)
        sign = -1.0 if self.is_bonus else 1.0
        self.coef *= 1.0 + sign * error * min(episodes / self.horizon, 1.0)
        self.coef = min(self.coef, self.most)

"""Coefficients that change from update to update: towards a target, or by a monitor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from instructrec.rl.config import PPOConfig


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


class Coefficients:
    """What of the settings changes as a policy learns: the weights of KL and bonus, and a factor.

    Args:
        config: Where they start.
    """

    def __init__(self, config: PPOConfig) -> None:
        self.kl = AdaptiveCoefficient(config.kl_coef, config.kl_target, config.kl_horizon)
        """Weight of the KL to the reference."""
        self.entropy = AdaptiveCoefficient(
            config.entropy_coef,
            config.entropy_target,
            is_bonus=True,
            most=config.entropy_coef_max if config.entropy_target else math.inf,
        )
        """Weight of the entropy bonus."""
        self.rate = 1.0
        """Factor of the policy's learning rate."""
        self._learning_rate = config.learning_rate

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the policy."""
        return self._learning_rate * self.rate

    def observe(self, metrics: Mapping[str, float], episodes: int) -> None:
        """Steers the weights of the next update by the metrics of one of that many episodes."""
        if "ppo/kl_ref" in metrics:
            self.kl.observe(metrics["ppo/kl_ref"], episodes)
        self.entropy.observe(metrics["ppo/entropy"], episodes)

    def state_dict(self) -> dict[str, float]:
        """Their values."""
        return {"kl": self.kl.coef, "entropy": self.entropy.coef, "rate": self.rate}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Puts back what ``state_dict`` returned."""
        self.kl.coef, self.entropy.coef = state["kl"], state["entropy"]
        self.rate = state.get("rate", 1.0)  # earlier checkpoints have none

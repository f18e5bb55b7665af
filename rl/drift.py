"""How far the sampler's distribution is from the trainer's, and the weight that corrects it.

A rollout engine may decode in another precision, with other kernels or with stale weights. The
mean probability ratio is blind to that (its expectation is 1 whatever the sampler was), so the
absolute differences of the log-probs are watched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Drift:
    """Size of ``|log π_sampler - log π_trainer|`` over the action tokens (nats)."""

    mean: float = 0.0
    """Mean over tokens."""
    p99: float = 0.0
    """99th percentile over tokens; not known (0) of a sum of two."""
    std: float = 0.0
    """Standard deviation over tokens (of a sample); 0 of fewer than two."""
    tokens: int = 0
    """Tokens behind it."""

    def __add__(self, other: Drift) -> Drift:
        """That of the tokens of both."""
        parts = [part for part in (self, other) if part.tokens]
        if len(parts) < 2:
            return parts[0] if parts else Drift()
        tokens = self.tokens + other.tokens
        mean = (self.tokens * self.mean + other.tokens * other.mean) / tokens
        squares = sum(
            (part.tokens - 1) * part.std**2 + part.tokens * (part.mean - mean) ** 2
            for part in parts
        )
        return Drift(mean, 0.0, math.sqrt(squares / (tokens - 1)), tokens)

    def metrics(self) -> dict[str, float]:
        """It as it is logged."""
        return {"ppo/drift_mean": self.mean, "ppo/drift_p99": self.p99}


def measure_drift(sampler_logprobs: Tensor, trainer_logprobs: Tensor, mask: Tensor) -> Drift:
    """Measures the drift over the tokens where the mask is True (0 when there is none)."""
    difference = (sampler_logprobs - trainer_logprobs)[mask].abs().float()
    if difference.numel() == 0:
        return Drift()
    values = difference.cpu().numpy()  # torch.quantile takes 2^24 values at most
    std = float(difference.std()) if values.size > 1 else 0.0
    return Drift(float(difference.mean()), float(np.quantile(values, 0.99)), std, values.size)


def truncated_importance_weights(
    sampler_logprobs: Tensor, trainer_logprobs: Tensor, cap: float
) -> Tensor:
    """``min(π_trainer / π_sampler, cap)`` for each token.

    Multiplied into the advantages it corrects the expectation over the sampler's tokens. For a
    weight w ≥ 0, ``w · min(ρA, clip(ρ)A) = min(ρ(wA), clip(ρ)(wA))``, so the loss itself is
    unchanged. Source: Espeholt et al. 2018 (truncated importance sampling),
    https://arxiv.org/abs/1802.01561.
    """
    return (trainer_logprobs - sampler_logprobs).exp().clamp(max=cap)

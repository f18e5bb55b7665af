"""How far the sampler's distribution is from the trainer's, and the weight that corrects it.

A rollout engine may decode in another precision, with other kernels or with stale weights. The
mean probability ratio is blind to that (its expectation is 1 whatever the sampler was), so the
absolute differences of the log-probs are watched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Drift:
    """Size of ``|log π_sampler - log π_trainer|`` over the action tokens (nats)."""

    mean: float
    """Mean over tokens."""
    p99: float
    """99th percentile over tokens."""


def measure_drift(sampler_logprobs: Tensor, trainer_logprobs: Tensor, mask: Tensor) -> Drift:
    """Measures the drift over the tokens where the mask is True (0 when there is none)."""
    difference = (sampler_logprobs - trainer_logprobs)[mask].abs().float()
    if difference.numel() == 0:
        return Drift(0.0, 0.0)
    values = difference.cpu().numpy()  # torch.quantile takes 2^24 values at most
    return Drift(float(difference.mean()), float(np.quantile(values, 0.99)))


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

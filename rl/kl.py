"""The Kullback-Leibler divergence to the reference: its estimators and the penalty.

Source: http://joschu.net/blog/kl-approx.html. With x sampled from the policy π and
``d = log π(x) - log ref(x)``: k1 = d (unbiased, may be negative), k2 = d² / 2 (low variance),
k3 = exp(-d) - 1 + d (unbiased and never negative).

Where they may stand differs. k1 in the reward gives the exact gradient of the sequence's KL(π, ref)
in expectation, and k2 as a loss that of the KL in every state, the visits to the states taken as
they are. k3 in the reward does neither (its score-function gradient is that of KL(π, ref) minus
that of KL(ref, π), which nearly cancel), so k3 is for logging alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """``log π - log ref`` for each token (nats)."""
    return logprobs - reference_logprobs


def k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """``d² / 2`` with ``d = log π - log ref`` for each token (nats², never negative)."""
    return 0.5 * (logprobs - reference_logprobs).square()


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """``exp(-d) - 1 + d`` with ``d = log π - log ref`` for each token (nats, never negative)."""
    d = logprobs - reference_logprobs
    return torch.expm1(-d) + d


def token_rewards(
    scores_BT: Tensor, kl_BT: Tensor | None, action_mask_BT: Tensor, kl_coef: float
) -> Tensor:
    """``score_t - kl_coef · k1_t`` on action tokens, 0 elsewhere.

    Args:
        scores_BT: Environment rewards, each on the last action token of its turn.
        kl_BT: k1 per token, or None when no penalty stands in the reward.
        action_mask_BT: bool, True where the policy produced the token.
        kl_coef: Weight of the penalty.
    """
    rewards_BT = scores_BT if kl_BT is None else scores_BT - kl_coef * kl_BT
    return torch.where(action_mask_BT, rewards_BT, 0.0)

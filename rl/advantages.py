"""Advantage estimators: pure functions over padded ``(B, T)`` tensors.

Shape suffixes: B episodes, T response positions (padded on the right). ``action_mask`` is True
where the policy produced the token; tokens that the environment put into the response, and
padding, are False. They are skipped: the value and the trace are carried across them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards_BT: Tensor, values_BT: Tensor, action_mask_BT: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over action tokens.

    ``δ_t = r_t + γ V(s_{t'}) - V(s_t)`` and ``A_t = δ_t + γλ A_{t'}``, where t' is the next action
    token of the same episode; after the last one both V and A are 0 (the episode has ended).
    Source: Schulman et al. 2016, equation 16, https://arxiv.org/abs/1506.02438.

    Args:
        rewards_BT: Reward of each action token; entries where the mask is False are ignored.
        values_BT: V(s_t), the value before the token was chosen.
        action_mask_BT: bool, True where the policy produced the token.
        gamma: Discount per action token.
        lam: Lambda.

    Returns:
        Advantages and returns (``A_t + V(s_t)``), both 0 where the mask is False.
    """
    _check_shapes(rewards_BT, values_BT, action_mask_BT)
    advantages_BT = torch.zeros_like(rewards_BT)
    next_value_B = rewards_BT.new_zeros(rewards_BT.shape[0])
    next_advantage_B = torch.zeros_like(next_value_B)
    for t in reversed(range(rewards_BT.shape[1])):
        is_action_B = action_mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        advantages_BT[:, t] = torch.where(is_action_B, advantage_B, 0.0)
        next_advantage_B = torch.where(is_action_B, advantage_B, next_advantage_B)
        next_value_B = torch.where(is_action_B, values_BT[:, t], next_value_B)
    returns_BT = torch.where(action_mask_BT, advantages_BT + values_BT, 0.0)
    return advantages_BT, returns_BT


def discounted_returns(rewards_BT: Tensor, action_mask_BT: Tensor, gamma: float) -> Tensor:
    """Monte Carlo return ``G_t = r_t + γ G_{t'}`` over action tokens; 0 where the mask is False."""
    zeros_BT = torch.zeros_like(rewards_BT)
    return gae(rewards_BT, zeros_BT, action_mask_BT, gamma, lam=1.0)[0]


def batch_mean_advantages(returns_BT: Tensor, action_mask_BT: Tensor) -> Tensor:
    """Return minus the mean return over the action tokens of the batch; 0 where masked.

    The baseline of REINFORCE when nothing better is known: constant, so it adds no bias beyond
    that of a sample's own share in the mean.
    """
    count = action_mask_BT.sum().clamp(min=1)
    mean = (returns_BT * action_mask_BT).sum() / count
    return torch.where(action_mask_BT, returns_BT - mean, 0.0)


def whiten(
    advantages_BT: Tensor, action_mask_BT: Tensor, *, centre: bool, std_floor: float
) -> Tensor:
    """Scales advantages to about unit size, and on request to mean 0, over the action tokens.

    Args:
        advantages_BT: Advantages.
        action_mask_BT: bool, True where the token counts.
        centre: Subtract the mean first.
        std_floor: Smallest divisor, in reward units. Near a solved task every advantage is small;
            dividing by their own tiny spread would turn noise into full-size updates.

    Returns:
        ``(A - mean) / max(rms, std_floor)``, 0 where the mask is False.
    """
    count = action_mask_BT.sum().clamp(min=1)
    masked_BT = torch.where(action_mask_BT, advantages_BT, 0.0)
    if centre:
        masked_BT = torch.where(action_mask_BT, masked_BT - masked_BT.sum() / count, 0.0)
    rms = (masked_BT.square().sum() / count).sqrt()
    return masked_BT / rms.clamp(min=max(std_floor, 1e-8))


def explained_variance(values_BT: Tensor, returns_BT: Tensor, action_mask_BT: Tensor) -> float:
    """``1 - Var(G - V) / Var(G)`` over the action tokens.

    Returns:
        At most 1 (perfect); 0 is what a constant explains, below 0 is worse than a constant.
        NaN when all returns are equal: there is nothing to explain.
    """
    values, returns = values_BT[action_mask_BT].double(), returns_BT[action_mask_BT].double()
    if returns.numel() < 2:
        return float("nan")
    variance = returns.var()
    if variance < 1e-12:
        return float("nan")
    return float(1 - (returns - values).var() / variance)


def _check_shapes(*tensors: Tensor) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    assert len(shapes) == 1, f"expected tensors of one (B, T) shape, got {sorted(shapes)}"
    assert tensors[0].dim() == 2, f"expected (B, T) tensors, got shape {tuple(tensors[0].shape)}"

"""Advantage estimators: pure functions over padded ``(B, T)`` tensors.

Shape suffixes: B episodes, T response positions (padded on the right), K turns. ``action_mask`` is
True where the policy produced the token; tokens that the environment put into the response, and
padding, are False. They are skipped: the value and the trace are carried across them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    action_mask_BT: Tensor,
    gamma: float,
    lam: float,
    final_values_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over action tokens.

    ``δ_t = r_t + γ V(s_{t'}) - V(s_t)`` and ``A_t = δ_t + γλ A_{t'}``, where t' is the next action
    token of the same episode; after the last one A is 0, and so is V unless ``final_values_B``
    says otherwise.
    Source: Schulman et al. 2016, equation 16, https://arxiv.org/abs/1506.02438.

    Args:
        rewards_BT: Reward of each action token; entries where the mask is False are ignored.
        values_BT: V(s_t), the value before the token was chosen.
        action_mask_BT: bool, True where the policy produced the token.
        gamma: Discount per action token.
        lam: Lambda.
        final_values_B: V of the state behind the last action, for episodes that the environment
            cut although they could have gone on; 0 for those that ended.

    Returns:
        Advantages and returns (``A_t + V(s_t)``), both 0 where the mask is False.
    """
    _check_shapes(rewards_BT, values_BT, action_mask_BT)
    advantages_BT = torch.zeros_like(rewards_BT)
    zeros_B = rewards_BT.new_zeros(rewards_BT.shape[0])
    next_value_B = zeros_B if final_values_B is None else final_values_B
    next_advantage_B = zeros_B
    for t in reversed(range(rewards_BT.shape[1])):
        is_action_B = action_mask_BT[:, t]
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * lam * next_advantage_B
        advantages_BT[:, t] = torch.where(is_action_B, advantage_B, 0.0)
        next_advantage_B = torch.where(is_action_B, advantage_B, next_advantage_B)
        next_value_B = torch.where(is_action_B, values_BT[:, t], next_value_B)
    returns_BT = torch.where(action_mask_BT, advantages_BT + values_BT, 0.0)
    return advantages_BT, returns_BT


def turn_gae(
    rewards_BT: Tensor,
    values_BT: Tensor,
    action_mask_BT: Tensor,
    turn_BT: Tensor,
    gamma: float,
    lam: float,
    final_values_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation whose steps are turns instead of tokens.

    A turn's reward is the sum over its tokens, its value that of its first token; every token of
    the turn gets the turn's advantage and return. Discount and lambda act once per turn, however
    long its text is.

    Args:
        rewards_BT: See ``gae``.
        values_BT: See ``gae``.
        action_mask_BT: See ``gae``.
        turn_BT: int64, turn of each action token, counted from 0.
        gamma: Discount per turn.
        lam: Lambda.
        final_values_B: See ``gae``.
    """
    _check_shapes(rewards_BT, values_BT, action_mask_BT)
    turns = int(turn_BT[action_mask_BT].max()) + 1 if bool(action_mask_BT.any()) else 1
    turn_BT = torch.where(action_mask_BT, turn_BT, 0)
    empty_BK = rewards_BT.new_zeros(rewards_BT.shape[0], turns)
    rewards_BK = empty_BK.scatter_add(1, turn_BT, torch.where(action_mask_BT, rewards_BT, 0.0))
    steps_BT = torch.arange(rewards_BT.shape[1], device=rewards_BT.device).expand_as(turn_BT)
    never = rewards_BT.shape[1]  # beyond every position: the turn has no token
    first_BK = torch.full_like(empty_BK, never, dtype=torch.long).scatter_reduce(
        1, turn_BT, torch.where(action_mask_BT, steps_BT, never), "amin"
    )
    mask_BK = first_BK < never
    values_BK = values_BT.gather(1, first_BK.clamp(max=never - 1)) * mask_BK
    advantages_BK, returns_BK = gae(rewards_BK, values_BK, mask_BK, gamma, lam, final_values_B)
    spread = [
        torch.where(action_mask_BT, step_BK.gather(1, turn_BT), 0.0)
        for step_BK in (advantages_BK, returns_BK)
    ]
    return spread[0], spread[1]


def discounted_returns(
    rewards_BT: Tensor,
    action_mask_BT: Tensor,
    gamma: float,
    final_values_B: Tensor | None = None,
) -> Tensor:
    """Monte Carlo return ``G_t = r_t + γ G_{t'}`` over action tokens; 0 where the mask is False."""
    zeros_BT = torch.zeros_like(rewards_BT)
    return gae(rewards_BT, zeros_BT, action_mask_BT, gamma, 1.0, final_values_B)[0]


def batch_mean_advantages(returns_BT: Tensor, action_mask_BT: Tensor) -> Tensor:
    """Return minus the mean return over the action tokens of the batch; 0 where masked.

    The baseline of REINFORCE when nothing better is known: constant, so it adds no bias beyond
    that of a sample's own share in the mean.
    """
    count = action_mask_BT.sum().clamp(min=1)
    mean = (returns_BT * action_mask_BT).sum() / count
    return torch.where(action_mask_BT, returns_BT - mean, 0.0)


def rloo_advantages(returns_BT: Tensor, action_mask_BT: Tensor, group_B: Tensor) -> Tensor:
    """Return minus the mean return of the other responses to the same prompt.

    The baseline is independent of the response that it is subtracted from, hence without bias.
    Source: Kool et al. 2019; Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740.

    Args:
        returns_BT: Return from each action token on.
        action_mask_BT: bool; episodes without an action token belong to no group.
        group_B: int64 from 0 on; episodes of one number answered the same prompt.

    Returns:
        (B, T); 0 where masked, and for a response that is alone in its group.
    """
    score_B, member_B = _episode_returns(returns_BT, action_mask_BT)
    sum_B, count_B = (_group_sum(x_B, group_B) for x_B in (score_B, member_B))
    baseline_B = (sum_B - score_B) / (count_B - 1).clamp(min=1)
    usable_B1 = (count_B > 1)[:, None]
    return torch.where(action_mask_BT & usable_B1, returns_BT - baseline_B[:, None], 0.0)


def group_advantages(
    returns_BT: Tensor,
    action_mask_BT: Tensor,
    group_B: Tensor,
    eps: float = 1e-4,
    std_floor: float = 0.0,
) -> Tensor:
    """Return minus the group's mean return, divided by the group's standard deviation.

    Source: Shao et al. 2024 (GRPO), https://arxiv.org/abs/2402.03300. The division favours prompts
    on which nearly all or nearly none succeed; ``rloo_advantages`` does without it.

    Args:
        returns_BT: Return from each action token on.
        action_mask_BT: bool; episodes without an action token belong to no group.
        group_B: int64 from 0 on; episodes of one number answered the same prompt.
        eps: Added to the standard deviation (of the group's responses, divided by their number
            less one).
        std_floor: Smallest standard deviation to divide by, in reward units. Where a KL stands in
            the reward, responses with the same score differ by it alone; divided by that tiny
            spread it would weigh as much as the score, whatever its coefficient.

    Returns:
        (B, T); 0 where masked, and for a response that is alone in its group.
    """
    score_B, member_B = _episode_returns(returns_BT, action_mask_BT)
    sum_B, count_B = (_group_sum(x_B, group_B) for x_B in (score_B, member_B))
    mean_B = sum_B / count_B.clamp(min=1)
    squares_B = _group_sum(member_B * (score_B - mean_B).square(), group_B)
    std_B = (squares_B / (count_B - 1).clamp(min=1)).sqrt().clamp(min=std_floor)
    usable_B1 = (count_B > 1)[:, None]
    scaled_BT = (returns_BT - mean_B[:, None]) / (std_B[:, None] + eps)
    return torch.where(action_mask_BT & usable_B1, scaled_BT, 0.0)


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


def is_nearer_than_mean(values_BT: Tensor, returns_BT: Tensor, action_mask_BT: Tensor) -> bool:
    """Whether ``E (G - V)² < Var(G)`` over the action tokens: V beats every constant baseline.

    What a baseline leaves of the returns decides the noise of the gradient. ``explained_variance``
    forgives values that are off by a constant, as those of a head that starts at zero are while the
    returns are not around zero. Never where all returns are equal.
    """
    values, returns = values_BT[action_mask_BT].double(), returns_BT[action_mask_BT].double()
    if returns.numel() < 2:
        return False
    variance = returns.var(correction=0)
    return bool(variance >= 1e-12 and (returns - values).square().mean() < variance)


def _episode_returns(returns_BT: Tensor, action_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return from the first action token on, and 1.0 for episodes that have one (else 0.0)."""
    member_B = action_mask_BT.any(1).to(returns_BT.dtype)
    first_B1 = action_mask_BT.int().argmax(1, keepdim=True)
    return returns_BT.gather(1, first_B1).squeeze(1) * member_B, member_B


def _group_sum(x_B: Tensor, group_B: Tensor) -> Tensor:
    """Sum over each episode's group, at each episode."""
    sums_G = x_B.new_zeros(int(group_B.max()) + 1).index_add(0, group_B, x_B)
    return sums_G[group_B]


def _check_shapes(*tensors: Tensor) -> None:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    assert len(shapes) == 1, f"expected tensors of one (B, T) shape, got {sorted(shapes)}"
    assert tensors[0].dim() == 2, f"expected (B, T) tensors, got shape {tuple(tensors[0].shape)}"

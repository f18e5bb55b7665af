"""Rejection sampling: which responses of a rollout are worth imitating. Pure functions.

Shape suffixes: B episodes, T response positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def episode_scores(scores_BT: Tensor, action_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of an episode's rewards (B,), and bool (B,) where the episode may be trained on."""
    usable_B = action_mask_BT.any(1)
    return torch.where(action_mask_BT, scores_BT, 0.0).sum(1), usable_B


def best_of_group(scores_B: Tensor, usable_B: Tensor, group_B: Tensor) -> Tensor:
    """Weight of each response: those of the best of its group share 1, all others have 0.

    Source: Dong et al. 2023 (RAFT), https://arxiv.org/abs/2304.06767, which keeps the best of K
    responses to each prompt. Two things are decided here. Responses that tie for the best share
    their group's weight: in expectation that is drawing one of them, with less noise. And a group
    whose responses all got the same reward is dropped, whatever that reward is: its best is no
    better than the rest of it, so imitating it would only make the policy surer of what it does.

    Args:
        scores_B: Reward of each response; ignored where not usable.
        usable_B: bool; other responses belong to no group.
        group_B: int64 from 0 on; responses of one number answered the same prompt.

    Returns:
        (B,) of the scores' type, in [0, 1]; the weights of a group sum to 1, or to 0 where it is
        dropped (also when fewer than two of its responses are usable).
    """
    num_groups = int(group_B.max()) + 1
    infinity = torch.full_like(scores_B, float("inf"))
    empty_G = scores_B.new_zeros(num_groups)
    highest_G = empty_G.scatter_reduce(
        0, group_B, torch.where(usable_B, scores_B, -infinity), "amax", include_self=False
    )
    lowest_G = empty_G.scatter_reduce(
        0, group_B, torch.where(usable_B, scores_B, infinity), "amin", include_self=False
    )
    highest_B, lowest_B = highest_G[group_B], lowest_G[group_B]
    best_B = usable_B & (scores_B == highest_B) & (highest_B > lowest_B)
    ties_G = empty_G.index_add(0, group_B, best_B.to(scores_B.dtype))
    return best_B / ties_G[group_B].clamp(min=1)


def flat_share(scores_B: Tensor, usable_B: Tensor, group_B: Tensor) -> float:
    """Share of the groups that ``best_of_group`` drops although they could be compared.

    Groups with fewer than two usable responses are left out; 0 when no group is left.
    """
    weights_B = best_of_group(scores_B, usable_B, group_B)
    sizes_G = torch.zeros(int(group_B.max()) + 1, device=group_B.device)
    kept_G = sizes_G.index_add(0, group_B, weights_B.to(sizes_G.dtype))
    sizes_G = sizes_G.index_add(0, group_B, usable_B.to(sizes_G.dtype))
    comparable_G = sizes_G > 1
    flat = int((comparable_G & (kept_G == 0)).sum())
    return flat / max(int(comparable_G.sum()), 1)

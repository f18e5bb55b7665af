"""Conventions of TRL 1.12's PPOTrainer that are not ours, so that numbers can be compared with it.

TRL puts the score of a response on a dummy step right behind its end token and estimates
advantages over that step too, with V of the state after the end. Nothing in training uses this
module, because the convention is not one that we want:

- nothing is chosen on the dummy step, yet the critic is trained there, and the mean of the value
  loss counts one token more for every response that ended;
- the end token gets ``(1 - λ) V(s_end) + λ score`` where it should get the score: what the critic
  says about a state without a future leaks into the advantage;
- a response that fills all T positions has no room behind it and keeps the score on its last
  token, so the same response gets other advantages when the batch is padded further.

Canonical GAE (``advantages.gae`` with the score on the last token) gives the same advantages on
the response's tokens only at lambda = 1 (and gamma = 1, since the score is discounted once more).

Shape suffixes: B responses, T positions padded on the right.
"""

from __future__ import annotations

import torch
from torch import Tensor


def post_eos_terminal(scores_BT: Tensor, action_mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the score of each response to the position behind its last token.

    With ``kl.token_rewards`` and ``advantages.gae`` on what comes back, the advantages are those
    of TRL 1.12; the KL has to be 0 behind the response, and the values there those of the state
    after its last token.

    Args:
        scores_BT: Environment rewards of single-turn episodes, on the last action token.
        action_mask_BT: bool, True on the first tokens of a row, False behind them.

    Returns:
        Scores (B, T), and the mask with the dummy steps (B, T): what TRL averages the value loss
        over. Rows without room for a dummy step, and rows without a token, are as they were.
    """
    assert scores_BT.shape == action_mask_BT.shape and scores_BT.dim() == 2
    length_B1 = action_mask_BT.sum(1, keepdim=True)
    position_T = torch.arange(action_mask_BT.shape[1], device=action_mask_BT.device)
    assert torch.equal(action_mask_BT, position_T < length_B1), (
        "expected one run of action tokens from position 0 on: TRL 1.12 has no other turns"
    )
    mask_BT = (position_T <= length_B1) & (length_B1 > 0)
    end_B1 = length_B1.clamp(max=action_mask_BT.shape[1] - 1)
    score_B1 = torch.where(action_mask_BT, scores_BT, 0.0).sum(1, keepdim=True)
    return torch.zeros_like(scores_BT).scatter(1, end_B1, score_B1), mask_BT


def whiten_unbiased(advantages_BT: Tensor, action_mask_BT: Tensor) -> Tensor:
    """``(A - mean) / sqrt(var + 1e-8)`` over the action tokens, 0 elsewhere.

    The variance is divided by the tokens less one; ``advantages.whiten`` divides by the tokens and
    has a floor under the divisor. NaN for a single token.
    """
    kept = advantages_BT[action_mask_BT]
    whitened_BT = (advantages_BT - kept.mean()) * torch.rsqrt(kept.var(correction=1) + 1e-8)
    return torch.where(action_mask_BT, whitened_BT, 0.0)

"""How one token is drawn from logits: pure functions on tensors.

Shapes: B rows, V tokens in the vocabulary. Randomness comes in as uniform numbers, one for each
row and step, so that a row's draw depends neither on the rows beside it nor on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from instructrec.policies.config import Sampling

_BLOCK = 256


def pick_tokens(
    logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Draws one token in each row.

    Args:
        logits_BV: Logits of any float type; all maths is float32.
        sampling: Temperature and truncation.
        uniform_B: Numbers in [0, 1), float64; None for greedy decoding.

    Returns:
        Token ids (B,) and their log-probs (B,) in nats under the distribution that was drawn
        from: tempered, truncated and renormalised. Greedy decoding (temperature 0) reports the
        log-prob at temperature 1.
    """
    logits_BV = logits_BV.float()
    if sampling.greedy:
        tokens_B = logits_BV.argmax(-1)
    else:
        if sampling.temperature != 1.0:
            logits_BV = logits_BV / sampling.temperature
        logits_BV = truncate(logits_BV, top_k=sampling.top_k, top_p=sampling.top_p)
    logprobs_BV = logits_BV.log_softmax(-1)
    if not sampling.greedy:
        assert uniform_B is not None, "sampling needs one uniform number for each row"
        tokens_B = inverse_cdf(logprobs_BV.exp(), uniform_B.to(logits_BV.device))
    return tokens_B, logprobs_BV.gather(-1, tokens_B[:, None]).squeeze(-1)


def truncate(logits_BV: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Sets the logits of unlikely tokens to -inf.

    Args:
        logits_BV: Logits after the temperature.
        top_k: Tokens kept; 0 keeps all. Applied first.
        top_p: Keeps the smallest set of likeliest tokens with at least this much probability.
    """
    if 0 < top_k < logits_BV.shape[-1]:
        smallest_kept = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_kept, float("-inf"))
    if top_p < 1.0:
        ordered_BV, order_BV = logits_BV.sort(dim=-1, descending=True)
        probs_BV = ordered_BV.softmax(-1)
        # A token stays when the likelier ones before it have not reached top_p yet.
        drop_BV = (probs_BV.cumsum(-1) - probs_BV) >= top_p
        drop_BV[:, 0] = False  # the likeliest token stays whatever float rounding says
        drop_BV = torch.zeros_like(drop_BV).scatter(-1, order_BV, drop_BV)
        logits_BV = logits_BV.masked_fill(drop_BV, float("-inf"))
    return logits_BV


def inverse_cdf(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Draws from categorical distributions: the first token whose cumulated mass exceeds u.

    Blocks of the vocabulary are summed first, then one block is cumulated in float64: one pass
    over the probabilities, exact to float64, never a token of probability 0.

    Args:
        probs_BV: Probabilities, float32; need not sum to exactly 1.
        uniform_B: Numbers in [0, 1), float64.

    Returns:
        Token ids (B,), int64.
    """
    size = probs_BV.shape[-1]
    padded_BV = torch.nn.functional.pad(probs_BV, (0, -size % _BLOCK))
    blocks_BNK = padded_BV.unflatten(-1, (-1, _BLOCK))
    # float64 from here on, except where the device has none (MPS)
    wide = torch.float32 if probs_BV.device.type == "mps" else torch.float64
    block_B, left_B = _first_above(blocks_BNK.sum(-1).to(wide), uniform_B.to(wide))
    chosen_BK = blocks_BNK[torch.arange(len(block_B), device=block_B.device), block_B].to(wide)
    token_B, _ = _first_above(chosen_BK, left_B)
    return block_B * _BLOCK + token_B


def _first_above(mass_BN: Tensor, u_B: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first cell whose cumulated mass exceeds u x total, and u within that cell."""
    ends_BN = mass_BN.cumsum(-1)
    total_B = ends_BN[:, -1]
    # Just below the total at most, so that rounding cannot run past the last cell with mass.
    target_B = torch.minimum(u_B * total_B, torch.nextafter(total_B, torch.zeros_like(total_B)))
    index_B = (ends_BN <= target_B[:, None]).sum(-1)
    cell_B = mass_BN.gather(-1, index_B[:, None]).squeeze(-1)
    end_B = ends_BN.gather(-1, index_B[:, None]).squeeze(-1)
    inside_B = ((target_B - (end_B - cell_B)) / cell_B).clamp(0.0, 1.0)
    return index_B, inside_B

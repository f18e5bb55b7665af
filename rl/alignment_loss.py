"""The sigmoid loss of aligned pairs: which output belongs to which instruction."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def sigmoid_alignment_loss(
    cosine_BB: Tensor, same_BB: Tensor, scale: Tensor | float, bias: Tensor | float
) -> Tensor:
    """Loss of B pairs, each output compared with each instruction of the batch.

    ``-1/B Σ_ij log σ(z_ij (scale · cosine_ij + bias))`` with z = 1 for the pairs (the diagonal) and
    -1 for everything else. Two rows with the same instruction, or the same output, are no
    mismatch: they are left out. Source: Zhai et al. 2023 (SigLIP), algorithm 1,
    https://arxiv.org/abs/2303.15343.

    Args:
        cosine_BB: Cosine of instruction (row) and output (column), in [-1, 1].
        same_BB: True where two rows have the same instruction or the same output.
        scale: Factor of the cosine, above 0.
        bias: What is added to it.

    Returns:
        A scalar, in nats per instruction.
    """
    pair_BB = torch.eye(len(cosine_BB), dtype=torch.bool, device=cosine_BB.device)
    logit_BB = scale * cosine_BB + bias
    terms_BB = logsigmoid(torch.where(pair_BB, logit_BB, -logit_BB))
    counted_BB = pair_BB | ~same_BB
    return -terms_BB.masked_fill(~counted_BB, 0.0).sum() / len(cosine_BB)


def same_rows(instruction_B: Tensor, output_B: Tensor) -> Tensor:
    """Returns (B, B): whether two rows share the instruction or the output.

    Args:
        instruction_B: Whole numbers, the same for the same instruction.
        output_B: Whole numbers, the same for the same output.
    """
    same_instruction = instruction_B[:, None] == instruction_B
    return same_instruction | (output_B[:, None] == output_B)

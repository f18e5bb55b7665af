"""Logits in float32 whose gradient is computed in the precision around them.

Rounded logits would be the largest part of the difference between sampler and trainer: those of 20
have steps of 0.125 in bfloat16. Their gradients have no such need, no more than those of every
other layer, and two of the three products of the output layer are theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class _Logits(torch.autograd.Function):
    """An output layer without a bias."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(hidden_NH, weight_VH)
        ctx.dtype = dtype
        return linear(hidden_NH, weight_VH)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        hidden_NH, weight_VH = ctx.saved_tensors
        gradient_NV = gradients[0].to(ctx.dtype)
        hidden = weight = None
        if ctx.needs_input_grad[0]:
            hidden = (gradient_NV @ weight_VH.to(ctx.dtype)).to(hidden_NH.dtype)
        if ctx.needs_input_grad[1]:
            weight = (gradient_NV.T @ hidden_NH.to(ctx.dtype)).to(weight_VH.dtype)
        return hidden, weight, None


def float32_logits(head: nn.Module, hidden_NH: Tensor) -> Tensor:
    """Applies an output layer in float32, also under autocast: (N, V).

    Args:
        head: The output layer.
        hidden_NH: The last hidden states, of any floating dtype.
    """
    kind = hidden_NH.device.type
    lowered = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
    with torch.autocast(kind, enabled=False):
        hidden_NH = hidden_NH.float()
        plain = isinstance(head, nn.Linear) and head.bias is None
        if lowered == torch.float32 or not plain or head.weight.dtype != torch.float32:
            return head(hidden_NH)
        logits_NV: Tensor = _Logits.apply(hidden_NH, head.weight, lowered)
        return logits_NV

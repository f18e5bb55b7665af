"""Logits in float32, and what a loss needs of them: log-probs of tokens, and entropies.

Rounded logits would be the largest part of the difference between sampler and trainer: those of 20
have steps of 0.125 in bfloat16. Their gradients have no such need, no more than those of every
other layer, and two of the three products of the output layer are theirs.

A tensor of all logits is the largest that a pass makes, and a log-softmax, its gradient and an
entropy would each need several of that size. Here there is one: it becomes the probabilities, and
these the gradient, a few rows at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

_CACHED = 2**21
"""Bytes of logits that a CPU takes at a time, for each thread: they stay in its own cache."""
_MOST = 2**28
"""The same of a GPU, where few large steps are quick and memory is short."""


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


class _Chosen(torch.autograd.Function):
    """Log-probs of tokens and entropies; the logits are used up."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
        logprobs_N, entropy_N = (logits_NV.new_empty(len(tokens_N)) for _ in range(2))
        keeps = ctx.needs_input_grad[0]
        for rows in _few_rows(logits_NV):
            some_RV, tokens_R1 = logits_NV[rows], tokens_N[rows, None]
            some_RV -= some_RV.amax(-1, keepdim=True)
            exp_RV = some_RV.exp()
            sum_R1 = exp_RV.sum(-1, keepdim=True)
            log_R1 = sum_R1.log()
            logprobs_N[rows] = (some_RV.gather(-1, tokens_R1) - log_R1)[:, 0]
            entropy_N[rows] = (log_R1 - some_RV.mul_(exp_RV).sum(-1, keepdim=True) / sum_R1)[:, 0]
            if keeps:
                torch.div(exp_RV, sum_R1, out=some_RV)
        ctx.mark_non_differentiable(entropy_N)
        ctx.probs_NV, ctx.tokens_N = logits_NV.detach() if keeps else None, tokens_N
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if ctx.probs_NV is None:
            raise RuntimeError("these log-probs were differentiated before: compute them anew.")
        gradient_NV, ctx.probs_NV = ctx.probs_NV, None
        gradient_N1 = gradients[0][:, None]
        gradient_NV *= -gradient_N1
        gradient_NV.scatter_add_(-1, ctx.tokens_N[:, None], gradient_N1)
        return gradient_NV, None


def _few_rows(logits_NV: Tensor) -> list[slice]:
    on_cpu = logits_NV.device.type == "cpu"
    most = _CACHED * torch.get_num_threads() if on_cpu else _MOST
    number = max(1, most // (logits_NV.shape[1] * logits_NV.element_size()))
    return [slice(i, i + number) for i in range(0, len(logits_NV), number)]


def chosen_logprobs(logits_NV: Tensor, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of tokens (N,), and entropies in nats (N,), which have no gradient.

    The gradient of the log-probs can be taken once: it is made in the place of the logits.

    Args:
        logits_NV: Logits, which are used up: they hold something else afterwards.
        tokens_N: A token of each row.
    """
    with torch.autocast(logits_NV.device.type, enabled=False):
        logprobs_N, entropy_N = _Chosen.apply(logits_NV.float(), tokens_N)
    return logprobs_N, entropy_N

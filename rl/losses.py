"""The losses of PPO and of rejection sampling: pure functions of tensors.

All tensors have one shape: ``(N,)`` for packed action tokens or ``(B, T)`` with a mask. Sums are
divided by ``normaliser``, the number of action tokens that one optimizer step stands for. It is
the same number for every micro-batch of the update, so the gradient does not depend on how
episodes of different length were split up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from instructrec.rl.kl import k2

LARGEST_LOG_RATIO = 20.0
"""Nats that a token's log-ratio counts at most, either way: beyond 88 its exponential overflows
float32, and one such token would make the whole loss infinite."""


@dataclass(frozen=True)
class LossBatch:
    """What the loss needs of the rollout; every tensor has the shape of the log-probs."""

    old_logprobs: Tensor
    """log π_old(a|s) of the trainer's own pass before the first step of the update."""
    advantages: Tensor
    """Advantages after whitening and importance weights."""
    old_values: Tensor
    """V_old(s) of the same pass."""
    returns: Tensor
    """Targets of the value function."""
    action_mask: Tensor
    """bool, True where the token counts."""
    ref_logprobs: Tensor | None = None
    """log ref(a|s), needed when the KL penalty is a loss."""


@dataclass(frozen=True)
class LossSettings:
    """Coefficients of the loss."""

    cliprange: float
    """Lower clip of the ratio is 1 - cliprange."""
    cliprange_high: float
    """Upper clip of the ratio is 1 + cliprange_high."""
    cliprange_value: float | None
    """Clip of the value change; None does not clip."""
    vf_coef: float
    """Weight of the value loss."""
    dual_clip: float | None = None
    """Largest ratio that counts against a token of negative advantage; None sets no bound."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    kl_coef: float = 0.0
    """Weight of the KL penalty as a loss (k2)."""


def ppo_loss(
    batch: LossBatch,
    logprobs: Tensor,
    values: Tensor,
    entropy: Tensor,
    settings: LossSettings,
    normaliser: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, value loss, and on request an entropy bonus and a KL loss.

    ``L = -Σ min(ρA, clip(ρ, 1-ε, 1+ε')A) / n + c_v · Σ ½(V - G)² / n`` with
    ``ρ = π(a|s) / π_old(a|s)``, ``- c_e · Σ H(π(·|s)) / n`` and ``+ c_kl · Σ k2 / n``.
    Source: Schulman et al. 2017, equations 7 and 9, https://arxiv.org/abs/1707.06347; the wider
    upper clip is that of https://arxiv.org/abs/2503.14476; the dual clip, ``max(…, cA)`` where A
    is negative, that of Ye et al. 2020, https://arxiv.org/abs/1912.09729.

    Args:
        batch: The rollout's side.
        logprobs: log π(a|s) of the current policy, with gradient.
        values: V(s) of the current critic, with gradient.
        entropy: Entropy of π(·|s) in nats, with gradient where it has a weight.
        settings: Coefficients.
        normaliser: Action tokens behind one optimizer step.

    Returns:
        The scalar loss, and sums over the action tokens for the metrics: ``policy_loss``,
        ``value_loss`` (both already divided by the normaliser), ``clipped``, ``value_clipped``,
        ``approx_kl``, ``entropy`` and ``tokens``.
    """
    mask = batch.action_mask
    log_ratio = _bounded(torch.where(mask, logprobs - batch.old_logprobs, 0.0))
    ratio = log_ratio.exp()
    unclipped, surrogate = _surrogate(ratio, batch.advantages, settings)
    policy_loss = -torch.where(mask, surrogate, 0.0).sum() / normaliser
    squared, value_clipped = _squared_value_error(batch, values, settings.cliprange_value)
    value_loss = 0.5 * torch.where(mask, squared, 0.0).sum() / normaliser
    loss = policy_loss + settings.vf_coef * value_loss
    if settings.entropy_coef:
        loss = loss - settings.entropy_coef * torch.where(mask, entropy, 0.0).sum() / normaliser
    if settings.kl_coef:
        assert batch.ref_logprobs is not None, "a KL loss needs the reference's log-probs"
        penalty = torch.where(mask, k2(logprobs, batch.ref_logprobs), 0.0)
        loss = loss + settings.kl_coef * penalty.sum() / normaliser
    with torch.no_grad():
        stats = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "clipped": ((surrogate != unclipped) & mask).sum(),
            "value_clipped": (value_clipped & mask).sum(),
            "approx_kl": (torch.expm1(log_ratio) - log_ratio).sum(),
            "entropy": torch.where(mask, entropy, 0.0).sum(),
            "tokens": mask.sum(),
        }
    return loss, stats


def nll_loss(
    logprobs: Tensor, weights: Tensor, old_logprobs: Tensor, normaliser: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Negative log-likelihood of weighted tokens: ``L = -Σ w log π(a|s) / n``.

    With weights of 1 and n the number of tokens it is the loss of supervised fine-tuning.
    Source: Dong et al. 2023 (RAFT), https://arxiv.org/abs/2304.06767.

    Args:
        logprobs: (N,) log π(a|s) of the current policy, with gradient.
        weights: (N,) weight of each token, 0 or more.
        old_logprobs: (N,) log-probs before the first step of the update; for the metrics.
        normaliser: Sum of the weights behind one optimizer step.

    Returns:
        The scalar loss, and sums over the tokens for the metrics: ``nll`` (already divided by the
        normaliser), ``approx_kl`` and ``tokens``.
    """
    loss = -(weights * logprobs).sum() / normaliser
    with torch.no_grad():
        log_ratio = _bounded(logprobs - old_logprobs)
        stats = {
            "nll": loss.detach(),
            "approx_kl": (torch.expm1(log_ratio) - log_ratio).sum(),
            "tokens": torch.ones_like(weights).sum(),
        }
    return loss, stats


def _bounded(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def _surrogate(ratio: Tensor, advantages: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """ρA, and the same with the clips where they decide."""
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - settings.cliprange, 1 + settings.cliprange_high) * advantages
    surrogate = torch.min(unclipped, clipped)
    if settings.dual_clip is not None:
        bounded = torch.max(surrogate, settings.dual_clip * advantages)
        surrogate = torch.where(advantages < 0, bounded, surrogate)
    return unclipped, surrogate


def _squared_value_error(
    batch: LossBatch, values: Tensor, cliprange_value: float | None
) -> tuple[Tensor, Tensor]:
    """(V - G)², or the larger of that and its clipped form, and where the clip decided."""
    squared = (values - batch.returns).square()
    if cliprange_value is None:
        return squared, torch.zeros_like(batch.action_mask)
    change = (values - batch.old_values).clamp(-cliprange_value, cliprange_value)
    squared_clipped = (batch.old_values + change - batch.returns).square()
    return torch.max(squared, squared_clipped), squared_clipped > squared

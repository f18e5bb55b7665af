"""The optimizer of policy and critic, its schedule, and the clipping of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from instructrec.rl.config import PPOConfig


def make_optimizer(
    policy: Iterable[nn.Parameter],
    critic: Iterable[nn.Parameter],
    config: PPOConfig,
    device: torch.device,
) -> torch.optim.AdamW:
    """AdamW with one group for the policy and one for the critic."""
    groups: list[dict[str, Any]] = [
        {"params": list(policy), "lr": config.learning_rate},
        {"params": list(critic), "lr": config.critic_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: PPOConfig
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedules over the whole run, of which one training call may be only a part.

    That of the policy begins behind the updates in which only the critic learns.
    """
    total = config.num_updates * config.steps_per_update
    alone = config.critic_warmup_updates * config.steps_per_update

    def factor(start: int) -> Callable[[int], float]:
        return lambda step: learning_rate_factor(
            max(step - start, 0), config.lr_schedule, config.warmup_steps, total - start
        )

    return torch.optim.lr_scheduler.LambdaLR(optimizer, [factor(alone), factor(0)])


def go_to_step(
    scheduler: torch.optim.lr_scheduler.LambdaLR, step: int, rate: float | None = None
) -> None:
    """Puts a schedule, and the learning rates that it has set, where they are after a step.

    Args:
        scheduler: The schedule of every group.
        step: Optimizer steps taken.
        rate: Peak learning rate of the first group; None for the one that it has.
    """
    scheduler.load_state_dict({**scheduler.state_dict(), "last_epoch": step})
    if rate is not None:
        scheduler.base_lrs[0] = rate
    groups = scheduler.optimizer.param_groups
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)


def learning_rate_factor(step: int, schedule: str, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak learning rate at an optimizer step (0 is the first).

    Rises linearly to 1 at the last warm-up step, then is constant, falls linearly to 0 at
    ``total_steps``, or follows half a cosine to 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    if schedule == "linear":
        return 1.0 - progress
    return float(0.5 * (1.0 + torch.cos(torch.tensor(progress * torch.pi)).item()))


def clip_gradients(
    policy: Iterable[nn.Parameter], critic: Iterable[nn.Parameter], max_norm: float, *, joint: bool
) -> torch.Tensor:
    """Scales gradients down to a largest L2 norm; returns the policy's (joint: the) norm.

    A norm that is not finite is returned and nothing scaled: the scale itself would spread one
    such entry over all gradients.

    Args:
        policy: The policy's trained weights.
        critic: The critic's.
        max_norm: Largest norm.
        joint: One norm over both. With a critic of its own the two are clipped apart, or the
            larger gradient of the critic would slow the policy down.
    """
    policy, critic = list(policy), list(critic)
    groups = [[*policy, *critic]] if joint else [policy, critic]
    norms = [nn.utils.get_total_norm([p.grad for p in g if p.grad is not None]) for g in groups]
    for norm in norms:
        if not torch.isfinite(norm):
            return norm
    for group, norm in zip(groups, norms, strict=True):
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norms[0]

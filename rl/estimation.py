"""From token rewards and values to the advantages of an update."""

from __future__ import annotations

import math

import torch

from instructrec.rl.advantages import (
    batch_mean_advantages,
    discounted_returns,
    explained_variance,
    gae,
    whiten,
)
from instructrec.rl.config import PPOConfig
from instructrec.rl.drift import measure_drift, truncated_importance_weights
from instructrec.rl.experience import Experience
from instructrec.rl.kl import k1, token_rewards


def estimate_advantages(experience: Experience, config: PPOConfig) -> dict[str, float]:
    """Fills in returns and advantages; returns the metrics of this step.

    There is no explained variance when all returns are equal: nothing was there to explain.

    While the critic explains nothing of the returns (its explained variance is not above 0), the
    mean return of the batch stands in for it: a useless baseline would only add noise.
    """
    mask_BT = experience.action_mask_BT
    kl_BT = None
    if experience.ref_logprobs_BT is not None:
        kl_BT = k1(experience.old_logprobs_BT, experience.ref_logprobs_BT)
    rewards_BT = token_rewards(experience.scores_BT, kl_BT, mask_BT, config.kl_coef)
    returns_BT = discounted_returns(rewards_BT, mask_BT, config.gamma)
    variance = explained_variance(experience.values_BT, returns_BT, mask_BT)
    critic_used = config.advantage == "gae" and variance > 0
    if critic_used:
        advantages_BT, returns_BT = gae(
            rewards_BT, experience.values_BT, mask_BT, config.gamma, config.lam
        )
    else:
        advantages_BT = batch_mean_advantages(returns_BT, mask_BT)
    if config.whiten_advantages != "none":
        centre = config.whiten_advantages == "whiten"
        advantages_BT = whiten(
            advantages_BT, mask_BT, centre=centre, std_floor=config.advantage_std_floor
        )
    sampler_BT, trainer_BT = experience.sampler_logprobs_BT, experience.old_logprobs_BT
    weights_BT = truncated_importance_weights(sampler_BT, trainer_BT, config.importance_cap)
    experience.returns_BT = returns_BT
    experience.advantages_BT = torch.where(mask_BT, advantages_BT * weights_BT, 0.0)
    drift = measure_drift(sampler_BT, trainer_BT, mask_BT)
    known = {} if math.isnan(variance) else {"ppo/explained_variance": variance}
    return {
        **known,
        "ppo/critic_used": float(critic_used),
        "ppo/drift_mean": drift.mean,
        "ppo/drift_p99": drift.p99,
    }

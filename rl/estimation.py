"""From token rewards and values to the advantages of an update."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from instructrec.rl import advantages as estimators
from instructrec.rl.config import PPOConfig
from instructrec.rl.drift import truncated_importance_weights
from instructrec.rl.experience import Experience
from instructrec.rl.kl import k1, token_rewards
from instructrec.rl.rejection import episode_scores, flat_share


def estimate_advantages(
    experience: Experience, config: PPOConfig, kl_coef: float
) -> dict[str, float]:
    """Fills in returns and advantages; returns the metrics of this step.

    There is no explained variance when all returns are equal: nothing was there to explain.

    While the critic is no nearer to the returns than their mean, the mean return of the batch
    stands in for it: a useless baseline would only add noise. Explained variance alone does not
    tell, as it is blind to values that are off by the same amount everywhere.

    Args:
        experience: A rollout behind the trainer's pass.
        config: Settings.
        kl_coef: Weight of the KL in the reward of this update.
    """
    mask_BT = experience.action_mask_BT
    kl_BT = None
    if experience.ref_logprobs_BT is not None and config.kl_penalty == "reward":
        kl_BT = k1(experience.old_logprobs_BT, experience.ref_logprobs_BT)
    rewards_BT = token_rewards(experience.scores_BT, kl_BT, mask_BT, kl_coef)
    zeros_BT = torch.zeros_like(rewards_BT)
    returns_BT = _generalised(experience, rewards_BT, zeros_BT, config, 1.0)[0]
    variance = estimators.explained_variance(experience.values_BT, returns_BT, mask_BT)
    is_nearer = estimators.is_nearer_than_mean(experience.values_BT, returns_BT, mask_BT)
    critic_used = config.advantage == "gae" and is_nearer
    if not critic_used:  # nor is its word on what an unfinished episode would have earned
        experience.final_values_B = torch.zeros_like(experience.final_values_B)
        returns_BT = _generalised(experience, rewards_BT, zeros_BT, config, 1.0)[0]
    advantages_BT = _advantages(experience, rewards_BT, returns_BT, config, critic_used)
    if config.whiten_advantages != "none":
        centre = config.whiten_advantages == "whiten"
        advantages_BT = estimators.whiten(
            advantages_BT, mask_BT, centre=centre, std_floor=config.advantage_std_floor
        )
    if critic_used:
        values_BT = experience.values_BT
        returns_BT = _generalised(experience, rewards_BT, values_BT, config, config.lam_value)[1]
    sampler_BT, trainer_BT = experience.sampler_logprobs_BT, experience.old_logprobs_BT
    weights_BT = truncated_importance_weights(sampler_BT, trainer_BT, config.importance_cap)
    experience.returns_BT = returns_BT
    experience.advantages_BT = torch.where(mask_BT, advantages_BT * weights_BT, 0.0)
    metrics = {"ppo/critic_used": float(critic_used)}
    if not math.isnan(variance):
        metrics["ppo/explained_variance"] = variance
    if config.num_generations > 1:
        scores = episode_scores(experience.scores_BT, mask_BT)
        metrics["rollout/zero_variance_frac"] = flat_share(*scores, experience.group_B)
    return metrics


def _advantages(
    experience: Experience,
    rewards_BT: Tensor,
    returns_BT: Tensor,
    config: PPOConfig,
    critic_used: bool,
) -> Tensor:
    """The one seam between the estimators."""
    mask_BT, group_B = experience.action_mask_BT, experience.group_B
    if config.advantage == "rloo":
        return estimators.rloo_advantages(returns_BT, mask_BT, group_B)
    if config.advantage == "group":
        floor = config.advantage_std_floor
        return estimators.group_advantages(returns_BT, mask_BT, group_B, std_floor=floor)
    if not critic_used:
        return estimators.batch_mean_advantages(returns_BT, mask_BT)
    values_BT = experience.values_BT
    return _generalised(experience, rewards_BT, values_BT, config, config.lam_policy)[0]


def _generalised(
    experience: Experience, rewards_BT: Tensor, values_BT: Tensor, config: PPOConfig, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns by tokens or by turns, as the settings say."""
    mask_BT, final_B = experience.action_mask_BT, experience.final_values_B
    if config.gae_level == "turn":
        return estimators.turn_gae(
            rewards_BT, values_BT, mask_BT, experience.turn_BT, config.gamma, lam, final_B
        )
    return estimators.gae(rewards_BT, values_BT, mask_BT, config.gamma, lam, final_B)

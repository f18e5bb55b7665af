"""RAFT: rejection-sampling fine-tuning, the plain baseline of PPO at equal rollouts.

The same rollouts, trainer and checkpoints as PPO; an update imitates the best response to each
prompt by its negative log-likelihood. There is no critic, no reference, no ratio and no clip.
Source: Dong et al. 2023, https://arxiv.org/abs/2304.06767.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from instructrec.envs.vector import InstructionVectorEnv
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.critic import Critic, NoCritic
from instructrec.rl.config import PPOConfig, check_raft
from instructrec.rl.learner import PPOLearner
from instructrec.rl.losses import nll_loss
from instructrec.rl.ppo import train_ppo
from instructrec.rl.rejection import best_of_group, episode_scores, flat_share
from instructrec.rl.run_state import TrainingResult


class RaftLearner(PPOLearner):
    """Rejection-sampling fine-tuning, one rollout at a time."""

    def make_critic(self) -> Critic:
        """No critic."""
        return NoCritic()

    def estimate(self) -> dict[str, float]:
        """Chooses what to imitate; without anything, the update takes no step."""
        experience = self.experience
        mask_BT, group_B = experience.action_mask_BT, experience.group_B
        scores_B, usable_B = episode_scores(experience.scores_BT, mask_BT)
        self.weights_B = best_of_group(scores_B, usable_B, group_B)
        self.kept = set(self.weights_B.nonzero().flatten().tolist())
        self.stopped_early = not self.kept
        return {
            "raft/kept_frac": len(self.kept) / len(self.weights_B),
            "rollout/zero_variance_frac": flat_share(scores_B, usable_B, group_B),
        }

    def weighted_tokens(self) -> float:
        """Action tokens that are imitated, those of tied responses by their weight."""
        return float((self.experience.action_mask_BT.sum(1) * self.weights_B).sum())

    def trained_rows(self, micro_batch: Sequence[int]) -> list[int]:
        """The kept responses: the others cost no forward pass."""
        return [row for row in micro_batch if row in self.kept]

    def loss(
        self, rows: list[int], logprobs_N: Tensor, values_N: Tensor, entropy_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log-likelihood of the kept responses."""
        places = self.experience.places(rows)
        old_logprobs_N = self.experience.old_logprobs_BT[places]
        return nll_loss(logprobs_N, self.weights_B[places[0]], old_logprobs_N, self.normaliser)

    def loss_metrics(self) -> dict[str, float]:
        """What is known of a plain likelihood: no values, no clips."""
        metrics = {"ppo/approx_kl": self.stats.approx_kl()}
        if self.kept:
            metrics["raft/loss"] = self.stats.mean("nll")
        return metrics


def train_raft(
    policy: CausalLMPolicy, env: InstructionVectorEnv, config: PPOConfig, **options: Any
) -> TrainingResult:
    """Trains a policy by rejection sampling.

    Args:
        policy: See ``train_ppo``.
        env: See ``train_ppo``.
        config: Settings; ``num_generations`` of 2 or more, and those of PPO alone untouched.
        options: As for ``train_ppo``.

    Raises:
        ConfigError: A setting has no effect here, or there is one response per prompt.
    """
    check_raft(config)
    return train_ppo(policy, env, config, learner=RaftLearner, **options)

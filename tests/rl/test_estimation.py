"""What advantages are made of: the seam between rewards, the KL and the baselines."""

from __future__ import annotations

import pytest
import torch

from instructrec.rl.config import PPOConfig
from instructrec.rl.estimation import estimate_advantages
from instructrec.rl.experience import tensors_of
from instructrec.rl.given import rollout_of


def advantages(config, rewards, divergences):
    """Advantages of answers of one token each, which differ from the reference as given."""
    ones = [[1]] * len(rewards)
    rollout = rollout_of(ones, ones, rewards, num_generations=config.num_generations)
    experience = tensors_of(rollout, torch.device("cpu"))
    experience.ref_logprobs_BT = experience.old_logprobs_BT - torch.tensor(divergences)[:, None]
    experience.sampler_logprobs_BT = experience.old_logprobs_BT
    estimate_advantages(experience, config, config.kl_coef)
    assert experience.advantages_BT is not None
    return experience.advantages_BT.flatten()


@pytest.mark.parametrize("advantage", ["rloo", "group", "batch_mean"])
@pytest.mark.parametrize("whitening", ["none", "scale"])
def test_where_all_is_solved_the_kl_pulls_by_its_coefficient(advantage, whitening):
    """Nor does a tiny KL weigh as much as a wrong answer would."""

    def pull(kl_coef):
        config = PPOConfig(
            episodes_per_update=4,
            num_generations=4,
            advantage=advantage,
            whiten_advantages=whitening,
            kl_coef=kl_coef,
        )
        return advantages(config, [1.0] * 4, [2.0, 0.0, 1.0, 1.0])

    weak, strong = pull(0.005), pull(0.01)
    assert weak[0] < 0 < weak[1]
    assert weak.abs().max() < 0.2
    torch.testing.assert_close(2 * weak, strong, rtol=1e-2, atol=1e-5)

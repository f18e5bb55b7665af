"""What is reported of single episodes."""

from __future__ import annotations

import math

import pytest
import torch

from instructrec.rl.experience import Experience, tensors_of
from instructrec.rl.given import rollout_of
from instructrec.rl.reporting import LossStats, episode_numbers
from instructrec.rl.rollout import Rollout


def rollout(rewards: list[float]) -> Rollout:
    """Episodes of two tokens, the last one of three."""
    count = len(rewards)
    lengths = [2] * (count - 1) + [3]
    return rollout_of([[1]] * count, [[5] * n for n in lengths], rewards)


def experience(rewards: list[float]) -> Experience:
    return tensors_of(rollout(rewards), torch.device("cpu"))


def test_an_episode_has_its_mean_advantage_and_its_kl() -> None:
    seen = experience([1.0, math.nan, 0.0])
    seen.advantages_BT = torch.tensor([[1.0, 2.0, 9.0], [9.0, 9.0, 9.0], [3.0, 0.0, -6.0]])
    seen.old_logprobs_BT = torch.tensor([[-1.0, -2.0, 0.0], [-1.0] * 3, [-1.0, -1.0, -1.0]])
    seen.ref_logprobs_BT = torch.tensor([[-1.5, -3.0, 7.0], [-9.0] * 3, [-1.0, -1.0, -0.5]])
    first, masked, last = episode_numbers(seen)
    assert first == {"advantage": pytest.approx(1.5), "kl_ref": pytest.approx(1.5)}
    assert masked == {"advantage": None, "kl_ref": None}  # without a reward it is not trained on
    assert last == {"advantage": pytest.approx(-1.0), "kl_ref": pytest.approx(-0.5)}


def test_what_an_update_does_not_have_is_absent() -> None:
    assert episode_numbers(experience([1.0, 0.0])) == [{}, {}]


def test_sums_over_micro_batches_are_read_when_they_are_asked_for() -> None:
    stats = LossStats()
    for number in (1, 2):
        stats.add({"loss": torch.tensor(0.5 * number), "tokens": torch.tensor(number)})
    stats.add({"tokens": 4.0})
    assert stats.sums == {"loss": 1.5, "tokens": 7.0} == stats.sums
    stats.add({"loss": torch.zeros((), device="meta")})  # which cannot be read at all


def test_a_loss_is_a_mean_over_the_minibatches() -> None:
    update = LossStats()
    assert update.mean("policy_loss") == 0.0
    for loss, tokens in ((1.0, 3.0), (0.0, 0.0), (2.0, 5.0)):
        minibatch = LossStats()
        minibatch.add({"policy_loss": loss, "tokens": tokens})
        update.add_minibatch(minibatch)
    assert update.mean("policy_loss") == update.metrics()["ppo/policy_loss"] == 1.0

"""Rejection sampling: what is kept, the gradient, learning, resuming, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from instructrec.errors import ConfigError
from instructrec.rl.config import PPOConfig
from instructrec.rl.losses import nll_loss
from instructrec.rl.ppo import train_ppo
from instructrec.rl.raft import RaftLearner, train_raft
from instructrec.rl.rejection import best_of_group, episode_scores, flat_share


def raft(toy, **changes):
    """Settings of a short run."""
    rate = PPOConfig.critic_learning_rate
    plain = dataclasses.replace(toy.fast, num_generations=4, critic_learning_rate=rate)
    return dataclasses.replace(plain, **changes)


def train(toy, config, *, seed=0, policy=None, reward=None, **options):
    policy = policy or toy.policy(seed)
    log = []
    result = train_raft(
        policy,
        toy.env(config, reward or toy.reward),
        config,
        seed=seed,
        on_update=lambda metrics, rows: log.append((metrics, rows)),
        **options,
    )
    return policy, result, log


# What is kept -------------------------------------------------------------------------------------


def test_the_best_of_each_group_is_kept_by_hand():
    scores = torch.tensor([0.1, 0.9, 0.5, 2.0, 2.0, -1.0, 0.7, 0.7, 0.7, -3.0, -2.0, -9.0])
    groups = torch.arange(4).repeat_interleave(3)
    weights = best_of_group(scores, torch.ones(12, dtype=torch.bool), groups)
    assert weights.tolist() == [0, 1, 0, 0.5, 0.5, 0, 0, 0, 0, 0, 1, 0]
    assert flat_share(scores, torch.ones(12, dtype=torch.bool), groups) == 0.25


def test_groups_are_told_by_their_number_and_not_by_their_place():
    scores, groups = torch.tensor([1.0, 5.0, 2.0, 4.0]), torch.tensor([1, 0, 1, 0])
    assert best_of_group(scores, torch.ones(4, dtype=torch.bool), groups).tolist() == [0, 1, 1, 0]


def test_unusable_responses_are_neither_kept_nor_compared_with():
    scores = torch.tensor([9.0, 1.0, 0.0, 9.0, 1.0, 1.0, 5.0, 0.0, 0.0])
    usable = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 0], dtype=torch.bool)
    groups = torch.arange(3).repeat_interleave(3)
    weights = best_of_group(scores, usable, groups)
    assert weights.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert flat_share(scores, usable, groups) == 0.5  # the last one has nothing to compare
    assert flat_share(scores, torch.zeros(9, dtype=torch.bool), groups) == 0.0


def test_the_weights_equal_those_of_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 3, (60,), generator=generator).float()
    usable = torch.rand(60, generator=generator) < 0.8
    groups = torch.randint(0, 12, (60,), generator=generator)
    expected = torch.zeros(60)
    for group in range(12):
        members = [i for i in range(60) if groups[i] == group and usable[i]]
        values = [float(scores[i]) for i in members]
        if len(set(values)) > 1:
            best = [i for i in members if scores[i] == max(values)]
            expected[best] = 1 / len(best)
    assert torch.equal(best_of_group(scores, usable, groups), expected)
    assert 0 < (expected > 0).sum() < 30


def test_the_score_of_an_episode_is_the_sum_over_its_own_tokens():
    scores = torch.tensor([[0.5, 0.0, 1.0], [0.0, 7.0, 0.0]])
    mask = torch.tensor([[True, True, True], [False, False, False]])
    totals, usable = episode_scores(scores, mask)
    assert totals.tolist() == [1.5, 0.0] and usable.tolist() == [True, False]


# The gradient -------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    weights, old = torch.tensor([1.0, 0.5, 0.5]), torch.tensor([-1.0, -2.0, -4.0])
    loss, stats = nll_loss(logprobs, weights, old, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx((1 + 1 + 1.5) / 2)
    assert logprobs.grad.tolist() == [-0.5, -0.25, -0.25]
    assert float(stats["approx_kl"]) == pytest.approx(math.e - 2)
    assert float(stats["tokens"]) == 3.0


@pytest.mark.parametrize("micro_batch_size", [32, 8, 1])
def test_the_first_step_is_that_of_supervised_fine_tuning_on_the_kept_responses(
    toy, micro_batch_size
):
    """One whole-rollout step; the reward has no ties, so that every weight is 1."""

    def distinct(completions, **columns):
        return [float(i) for i, _ in enumerate(completions)]

    def gradients_of(model):
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    seen = {}

    class Watcher(RaftLearner):
        def may_step(self):
            seen.update(gradients_of(self.policy.model))
            return super().may_step()

    config = raft(
        toy,
        num_updates=1,
        num_mini_batches=1,
        num_ppo_epochs=1,
        micro_batch_size=micro_batch_size,
        max_grad_norm=1e9,
        temperature=1.0,
    )
    log, learners = [], []

    def build(*args, **kwargs):
        learners.append(Watcher(*args, **kwargs))
        return learners[-1]

    train_ppo(
        toy.policy(),
        toy.env(config, distinct),
        config,
        seed=0,
        on_update=lambda metrics, rows: log.append(metrics),
        learner=build,
    )
    learner = learners[0]
    kept = sorted(learner.kept)
    assert kept == list(range(3, 32, 4))

    fresh = toy.policy().model
    total, tokens = torch.zeros(()), 0
    for row in kept:
        ids = learner.experience.sequences[row][None]
        length = learner.experience.prompt_lengths[row]
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < length, -100)
        total = total + fresh(input_ids=ids, labels=labels).loss * (ids.shape[1] - length)
        tokens += ids.shape[1] - length
    (total / tokens).backward()
    expected = gradients_of(fresh)
    assert set(expected) == set(seen)
    for name, gradient in expected.items():
        assert torch.allclose(seen[name], gradient, atol=1e-6), name
    assert log[0]["raft/loss"] == pytest.approx(total.item() / tokens, rel=1e-5)
    assert log[0]["raft/kept_frac"] == 0.25


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns_the_toy_task(toy, seed):
    config = raft(toy, num_updates=20, episodes_per_update=64, lr_schedule="linear")
    _, _, log = train(toy, config, seed=seed)
    rewards = [metrics["reward/total/mean"] for metrics, _ in log]
    assert sum(rewards[:2]) / 2 < 0.25
    assert sum(rewards[-3:]) / 3 > 0.6, rewards
    names = set(log[0][0])
    assert {"raft/loss", "raft/kept_frac", "rollout/zero_variance_frac"} <= names
    assert not names & {"ppo/value_loss", "ppo/clip_frac", "ppo/critic_used", "ppo/kl_ref"}


def test_a_resumed_run_equals_an_uninterrupted_one(toy, tmp_path):
    config = raft(toy, num_updates=4)
    whole, _, log = train(toy, config)
    stopped = iter([False, True])
    train(toy, config, checkpoint_dir=tmp_path, should_stop=lambda: next(stopped))
    rest, _, tail = train(toy, config, resume_from=tmp_path / "update-000002")
    assert whole.weights_hash() == rest.weights_hash() != toy.policy().weights_hash()
    assert toy.without_times(log)[2:] == toy.without_times(tail)


def test_nothing_kept_moves_nothing_and_says_so_once(toy):
    def same(completions, **columns):
        return [0.5] * len(completions)

    alarms = []
    config = raft(toy, num_updates=3, weight_decay=0.1)
    policy, result, log = train(toy, config, reward=same, on_alarm=alarms.append)
    assert result.updates == 3 and policy.weights_hash() == toy.policy().weights_hash()
    for metrics, _ in log:
        assert metrics["raft/kept_frac"] == 0.0 and metrics["ppo/skipped_frac"] == 1.0
        assert "raft/loss" not in metrics
        assert all(math.isfinite(value) for value in metrics.values())
    assert [alarm.name for alarm in alarms].count("nothing_kept") == 1


def test_a_minibatch_without_a_kept_response_takes_no_step(toy):
    def one_good(completions, **columns):
        return [float(i == 0) for i, _ in enumerate(completions)]

    config = raft(toy, num_updates=1, num_mini_batches=4, num_ppo_epochs=1)
    _, _, log = train(toy, config, reward=one_good)
    assert log[0][0]["ppo/skipped_frac"] == 0.75
    assert log[0][0]["raft/kept_frac"] == 1 / 32


def test_target_kl_ends_an_update(toy):
    config = raft(toy, num_updates=2, learning_rate=0.05, warmup_steps=0, target_kl=0.01)
    _, _, log = train(toy, config)
    assert all(0 < metrics["ppo/skipped_frac"] < 1 for metrics, _ in log)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "ppo.num_generations = 1: expected 2 or more with algorithm"),
        ({"kl_coef": 0.1}, "ppo.kl_coef = 0.1: expected 0 with algorithm = 'raft'"),
        ({"entropy_coef": 0.01}, "ppo.entropy_coef given, but algorithm = 'raft'"),
        ({"advantage": "rloo", "cliprange": 0.1}, "ppo.advantage, ppo.cliprange given"),
        ({"critic": "separate"}, "ppo.critic given"),
    ],
)
def test_settings_without_effect_are_refused(toy, settings, message):
    with pytest.raises(ConfigError, match=message):
        train(toy, raft(toy, **settings))

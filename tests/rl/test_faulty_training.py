"""Training beside rewards that misbehave, and on responses that say nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import random

import numpy as np
import pytest
import torch

from instructrec.errors import ConfigError, RewardError
from instructrec.rl import PPOLearner, rollout_of
from instructrec.rl.config import PPOConfig


def small(toy, **changes):
    """A run of few episodes."""
    return dataclasses.replace(
        toy.fast, episodes_per_update=8, micro_batch_size=4, **{"num_updates": 1, **changes}
    )


def test_a_reward_that_seeds_every_generator_changes_no_training(toy, monkeypatch):
    monkeypatch.setenv("LEFT_BEHIND", "no")
    config = small(toy, num_updates=2)

    def greedy(completions, **columns):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        os.environ["LEFT_BEHIND"] = "yes"
        completions_before = list(completions)
        completions.clear()
        return toy.reward(completions_before)

    plain, _, expected = toy.train(config)
    eaten, _, log = toy.train(config, reward={"early_letters": greedy})
    assert eaten.weights_hash() == plain.weights_hash()
    for (ours, _), (theirs, _) in zip(log, expected, strict=True):
        assert ours["reward/total/mean"] == theirs["reward/total/mean"]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "value", [math.inf, *(pytest.param(v, marks=SLOW) for v in (-math.inf, math.nan))]
)
def test_a_score_that_is_no_number_changes_the_weights_as_a_missing_one_does(toy, value):
    config = small(toy, max_error_frac=0.5)

    def scores(bad):
        def reward(completions, **columns):
            return [bad if i == 3 else s for i, s in enumerate(toy.reward(completions))]

        return reward

    hashes, means = set(), set()
    for bad in (value, None):
        policy, _, log = toy.train(config, reward=scores(bad))
        hashes.add(policy.weights_hash())
        means.add(log[0][0]["reward/total/mean"])
    assert len(hashes) == 1 and len(means) == 1 and math.isfinite(*means)


def test_what_was_paid_is_what_was_learned_from_and_written_down(toy):
    drawn = random.Random(7)

    def dice(completions, **columns):
        return [drawn.random() for _ in completions]

    config = small(toy)
    _, _, log = toy.train(config, reward=dice)
    metrics, rows = log[0]
    assert metrics["reward/total/mean"] == pytest.approx(np.mean([row["total"] for row in rows]))


def test_responses_that_end_at_once_are_valid_samples(toy):
    """The end token alone: one action, no text, no 0/0, and it is learned from."""
    policy = toy.policy()
    prompts = policy.encode([f"write {i}" for i in range(32)])
    end = [[policy.eos_token_ids[0]] for _ in prompts]
    before = policy.weights_hash()
    rewards = [float(i % 2) for i in range(32)]
    stats = PPOLearner(policy, toy.fast).update(rollout_of(prompts, end, rewards))
    assert all(math.isfinite(value) for value in stats.values())
    assert policy.weights_hash() != before


@pytest.mark.parametrize(
    "advantage", ["group", *(pytest.param(a, marks=SLOW) for a in ("gae", "rloo", "batch_mean"))]
)
def test_equal_rewards_move_a_policy_by_nothing_that_is_not_finite(toy, advantage):
    config = small(toy, num_generations=4, advantage=advantage)
    policy, _, log = toy.train(config, reward=lambda completions, **columns: [1.0] * 8)
    assert all(math.isfinite(value) for value in log[0][0].values())
    assert all(torch.isfinite(p).all() for p in policy.model.parameters())
    if advantage != "gae":
        assert log[0][0]["ppo/policy_loss"] == pytest.approx(0.0, abs=1e-6)


def test_a_rollout_of_which_every_response_was_cut_says_what_to_do(toy):
    config = dataclasses.replace(toy.fast, on_length="mask", response_length=1)
    with pytest.raises(RewardError, match=r"all 32 responses .*on_length = 'mask'"):
        toy.train(config, reward=lambda completions, **columns: [1.0] * 32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"episodes_per_update": 10, "num_mini_batches": 4}, "a multiple of ppo.num_mini_batches"),
        ({"num_mini_batches": 0}, "ppo.num_mini_batches = 0: expected at least 1"),
        ({"micro_batch_size": 0}, "ppo.micro_batch_size = 0: expected a divisor"),
        ({"micro_batch_size": 7}, "ppo.micro_batch_size = 7: expected a divisor"),
        ({"episodes_per_update": 8, "num_generations": 3}, "a multiple of ppo.num_generations"),
        ({"advantage": "group"}, "compares responses to the same instruction"),
        ({"advantage": "rloo"}, "compares responses to the same instruction"),
        ({"max_bad_steps": 0}, "ppo.max_bad_steps = 0: expected at least 1"),
    ],
)
def test_sizes_that_do_not_come_out_even_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PPOConfig(**settings)

"""Clipping, schedules, and coefficients that follow a target."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from instructrec.rl.adaptive import AdaptiveCoefficient
from instructrec.rl.config import PPOConfig
from instructrec.rl.optim import clip_gradients

CONFIG = PPOConfig(num_updates=4, lr_schedule="linear", warmup_steps=0, weight_decay=0.1)


def test_a_critic_of_its_own_does_not_throttle_the_policy():
    policy, critic = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    for joint, expected in ((True, 0.6 / 100), (False, 0.6)):
        policy.grad, critic.grad = torch.tensor([0.6, 0.0]), torch.tensor([100.0, 0.0])
        norm = clip_gradients([policy], [critic], 1.0, joint=joint)
        assert policy.grad[0].item() == pytest.approx(expected, rel=1e-3)
        assert critic.grad.norm().item() == pytest.approx(1.0, rel=1e-3)
        assert norm.item() == pytest.approx(100.0 if joint else 0.6, rel=1e-3)


def test_a_critic_gradient_that_is_not_finite_is_reported():
    policy, critic = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    policy.grad, critic.grad = torch.ones(2), torch.tensor([float("nan"), 0.0])
    assert not torch.isfinite(clip_gradients([policy], [critic], 1.0, joint=False))


def test_an_adaptive_penalty_rises_when_there_is_too_much_of_it_and_a_bonus_falls():
    penalty = AdaptiveCoefficient(1.0, target=2.0, horizon=100)
    penalty.observe(2.1, episodes=50)
    assert penalty.coef == pytest.approx(1 + 0.05 * 0.5)
    penalty.observe(99.0, episodes=50)  # clipped to 20 %
    assert penalty.coef == pytest.approx(1.025 * 1.1)
    bonus = AdaptiveCoefficient(1.0, target=2.0, is_bonus=True)
    bonus.observe(2.1, episodes=50)
    assert bonus.coef == pytest.approx(0.95)
    bonus.observe(0.0, episodes=50)
    assert bonus.coef == pytest.approx(0.95 * 1.2)


def test_a_bonus_that_nothing_responds_to_stays_bounded():
    bonus = AdaptiveCoefficient(0.05, target=2.0, is_bonus=True, most=0.1)
    for _ in range(30):
        bonus.observe(0.1, episodes=50)
    assert bonus.coef == 0.1
    bonus.observe(9.0, episodes=50)
    assert bonus.coef == pytest.approx(0.08)


def test_a_coefficient_without_target_stays():
    fixed = AdaptiveCoefficient(0.5)
    fixed.observe(100.0, episodes=1000)
    assert fixed.coef == 0.5

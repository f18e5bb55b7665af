"""Settings of the algorithms that are refused, from Python as from the command line."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from instructrec.errors import ConfigError
from instructrec.rl.config import DPOConfig, PPOConfig, SFTConfig
from instructrec.rl.optim import make_optimizer

CHOICES = [
    (kind, name)
    for kind in (PPOConfig, SFTConfig, DPOConfig)
    for name, hint in get_type_hints(kind).items()
    if get_origin(hint) is Literal
]


@pytest.mark.parametrize(("kind", "name"), CHOICES, ids=[name for _, name in CHOICES])
def test_a_choice_of_another_name_is_refused_with_the_known_ones(kind, name):
    known = get_args(get_type_hints(kind)[name])
    with pytest.raises(ConfigError, match=rf"\.{name} '{known[0]}x'\. Did you mean '{known[0]}'"):
        kind(**{name: f"{known[0]}x"})


def test_every_field_with_choices_is_among_these():
    names = {name for _, name in CHOICES}
    assert names >= {"lr_schedule", "on_length", "advantage", "kl_penalty", "critic", "head"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cliprange_value": 0.0}, r"cliprange_value = 0\.0: expected more than 0"),
        ({"cliprange_value": -0.2}, r"cliprange_value = -0\.2: expected more than 0"),
        (
            {"missing_eos_penalty": -1.0, "on_length": "penalty"},
            r"missing_eos_penalty = -1\.0: expected 0 or more",
        ),
        ({"critic_learning_rate": 0.0}, r"critic_learning_rate = 0\.0: expected more than 0"),
        ({"critic_warmup_updates": 16}, "the policy would never learn"),
        ({"critic_warmup_updates": 3, "num_updates": 2}, "the policy would never learn"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        PPOConfig(**settings)


def test_the_floor_under_a_divisor_is_refused_where_nothing_is_divided():
    unscaled = {"whiten_advantages": "none", "advantage_std_floor": 0.1}
    with pytest.raises(ConfigError, match=r"advantage_std_floor = 0\.1 has no effect"):
        PPOConfig(**unscaled)
    assert PPOConfig(**unscaled, advantage="group", num_generations=4).advantage_std_floor == 0.1


def test_the_policy_learns_in_one_update_at_least():
    assert PPOConfig(critic_warmup_updates=15).critic_warmup_updates == 15


def test_a_whole_critic_learns_at_the_rate_of_the_policy_and_a_head_at_its_own():
    def rates(**settings):
        config = PPOConfig(learning_rate=3e-6, **settings)
        weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = make_optimizer(weights[:1], weights[1:], config, torch.device("cpu"))
        return [group["lr"] for group in optimizer.param_groups]

    assert rates() == [3e-6, 1e-3]
    assert rates(critic="separate") == [3e-6, 3e-6]
    assert rates(critic="separate", critic_learning_rate=1e-5) == [3e-6, 1e-5]
    assert dataclasses.replace(PPOConfig(critic="separate"), critic="shared").critic_rate == 1e-3

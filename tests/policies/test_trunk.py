"""The trainer's pass: what it saves changes neither states nor gradients."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from instructrec.errors import PolicyError
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig
from instructrec.policies.training_parts import train_last_layers
from instructrec.policies.trunk import CutStates, Trunk

SETTINGS = [
    {},
    {"train": "last_layers", "num_layers": 1},
    {"train": "lora", "lora": LoraSettings(r=4)},
]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 20, 21, 0, 0], [5, 6, 7, 9, 30, 31, 0]])
LENGTHS = [7, 5, 6]
SHARED = 3


def make_trunk(settings):
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu", **settings))
    return Trunk(policy.model)


def own_states(hidden, skip):
    """States of the real tokens behind the shared ones, one row after the other."""
    rows = [row[: length - SHARED] for row, length in zip(hidden[:, skip:], LENGTHS, strict=True)]
    return torch.cat(rows)


def gradients(trunk, states):
    trunk.model.zero_grad()
    weights = torch.linspace(-1, 1, states.numel()).reshape(states.shape)
    (states * weights).sum().backward()
    return {n: p.grad.clone() for n, p in trunk.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", SETTINGS, ids=["full", "last_layers", "lora"])
def test_sharing_the_first_columns_changes_neither_states_nor_gradients(settings):
    trunk = make_trunk(settings)
    assert trunk.can_share
    plain, _ = trunk.full(IDS)
    shared, _ = trunk.full(IDS, shared=SHARED)
    assert shared.shape[1] == IDS.shape[1] - SHARED
    expected, actual = own_states(plain, SHARED), own_states(shared, 0)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    expected, actual = gradients(trunk, expected), gradients(trunk, actual)
    assert expected.keys() == actual.keys() and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [0, SHARED])
def test_the_layers_above_the_cut_give_the_states_of_all_layers(shared):
    trunk = make_trunk(SETTINGS[1])
    assert trunk.num_frozen == 1
    with torch.no_grad():
        final, cut = trunk.full(IDS, shared=shared)
    torch.testing.assert_close(trunk.upper(cut), final)
    plain, _ = trunk.full(IDS)
    expected = gradients(trunk, own_states(plain, SHARED))
    actual = gradients(trunk, own_states(trunk.upper(cut), SHARED - shared))
    assert expected.keys() == actual.keys() and expected
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-4, rtol=1e-4)


def test_the_layers_above_the_cut_see_as_far_as_they_do_in_the_model():
    """Also beyond the window of those of its layers that have one."""
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=len(kinds),
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=16,
        layer_types=kinds,
    )
    model = Qwen2ForCausalLM(config).eval()
    train_last_layers(model.requires_grad_(False), 3)
    trunk = Trunk(model)
    assert trunk.num_frozen == 1
    with torch.no_grad():
        final, cut = trunk.full(torch.arange(2 * 40).reshape(2, 40) % 64)
        torch.testing.assert_close(trunk.upper(cut), final)
    assert model.config.layer_types == kinds


def test_shared_columns_are_cut_from_one_row():
    trunk = make_trunk(SETTINGS[1])
    _, cut = trunk.full(IDS, shared=SHARED)
    assert isinstance(cut, CutStates)
    assert cut.shared_1PH.shape[:2] == (1, SHARED)
    assert cut.own_BSH.shape[:2] == (3, IDS.shape[1] - SHARED)


def test_rows_are_not_shared_where_attention_takes_no_boolean_mask():
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    policy.model.config._attn_implementation = "eager"
    assert not Trunk(policy.model).can_share


def test_weights_that_are_no_numbers_are_named():
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    with torch.no_grad():
        policy.model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(PolicyError, match=r"logits .* are not finite"):
        Trunk(policy.model)

"""The least time of an update, against numbers worked out apart, and what a run logs of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from instructrec.policies.flops import Layers, ModelCost
from instructrec.policies.rates import Rates
from instructrec.rl.speed import Lengths, Need, Recipe, needs

SMOLLM2 = ModelCost(
    lower=Layers(0, 0, 0),
    upper=Layers(30, 106_168_320, 106_168_320),
    head=Layers(1, 28_311_552, 28_311_552),
    num_weights=134_515_008,
    num_trained=134_515_008,
    query_width=576,
    cache_width=384,
    shapes=(),
)
"""SmolLM2-135M: 30 layers of width 576 with 9 query and 3 key heads of 64, MLP 1536."""
ROLLOUT = Lengths((64,) * 64, (128,) * 64)


def flops(
    recipe: Recipe, cost: ModelCost = SMOLLM2, rollout: Lengths = ROLLOUT
) -> dict[str, float]:
    """TFLOPs of each phase."""
    found = needs(cost, rollout, recipe, decode_bytes=2)
    return {name: need.flops / 1e12 for name, need in found.items()}


def test_the_phases_of_a_known_model_cost_what_the_formula_gives() -> None:
    """64 prompts of 64 tokens and responses of 128, worked out by a separate script."""
    found = flops(Recipe(epochs=4, steps=16, separate_critic=True, old_logprobs=False))
    assert found["decode"] == pytest.approx(2.28, abs=0.01)
    assert found["reference"] == pytest.approx(3.16, abs=0.01)
    assert found["values"] == pytest.approx(2.69, abs=0.01)
    assert found["update"] == pytest.approx(4 * (9.47 + 8.07), abs=0.05)
    assert found["prefill"] == pytest.approx(0.88, abs=0.01)
    assert flops(Recipe(epochs=1, steps=4))["update"] == pytest.approx(9.47, abs=0.01)


def test_decoding_reads_all_weights_for_every_token_and_the_cache() -> None:
    found = needs(SMOLLM2, ROLLOUT, Recipe(1, 4), decode_bytes=2)
    weights = 128 * 2 * (106_168_320 + 28_311_552)
    cache = 64 * sum(range(65, 193)) * 30 * 384 * 2
    assert found["decode"].bytes == weights + cache
    assert found["optimizer"].bytes == 4 * 28 * 134_515_008


def test_what_is_shared_frozen_or_left_out_costs_less() -> None:
    plain = Recipe(epochs=2, steps=4)
    whole = flops(plain)
    assert flops(replace(plain, reference=False))["reference"] == 0
    assert flops(replace(plain, trained_share=0.25))["update"] == whole["update"] / 4
    assert flops(replace(plain, trains_policy=False))["update"] == pytest.approx(
        whole["update"] / 3
    )
    assert flops(replace(plain, generations=4))["prefill"] == pytest.approx(whole["prefill"] / 4)
    shared = flops(plain, rollout=replace(ROLLOUT, shared=32))
    assert shared["prefill"] < 0.6 * whole["prefill"] and shared["update"] < whole["update"]
    half = replace(
        SMOLLM2,
        lower=Layers(15, 53_084_160, 0),
        upper=Layers(15, 53_084_160, 53_084_160),
        head=Layers(1, 28_311_552, 0),
    )
    frozen = flops(plain, half)
    assert frozen["update"] < 0.6 * whole["update"] and frozen["values"] == whole["values"]
    assert frozen["reference"] < whole["reference"]
    assert flops(replace(plain, reuses_lower=False), half)["reference"] == whole["reference"]


def test_the_limit_is_the_larger_of_two_times() -> None:
    rates = Rates(flops_per_s=100.0, bytes_per_s=10.0)
    assert Need(200.0, 5.0).seconds(rates) == 2.0
    assert Need(200.0, 50.0).seconds(rates) == 5.0


def test_every_update_logs_its_speed(toy) -> None:
    _, _, log = toy.train(replace(toy.fast, num_updates=2))
    for metrics, _ in log:
        seconds = sum(metrics[f"time/{name}_s"] for name in ("rollout", "score", "advantage"))
        seconds += metrics["time/update_s"]
        assert metrics["speed/episodes_per_s"] == pytest.approx(32 / seconds)
        assert metrics["speed/tokens_per_s"] > metrics["rollout/tokens"] / seconds
        assert 0 < metrics["speed/update_limit_frac"] < 1.5
        assert 0 < metrics["speed/limit_frac"] < 1

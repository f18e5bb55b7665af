from __future__ import annotations

from typing import Any

import pytest
import torch

from instructrec.policies.causal_lm import CausalLMPolicy, load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig, Sampling
from instructrec.policies.trunk import Trunk

PROMPTS = ["count to ten please", "hi there", "count to two", "hi there", "a longer question?"]
SAMPLING = Sampling(7, 1.0)


def tiny(**settings: Any) -> CausalLMPolicy:
    return load_policy(PolicyConfig(model="tiny", device="cpu", **settings), seed=1)


@torch.no_grad()
def check_states(policy: CausalLMPolicy, layer: int, tolerance: float) -> None:
    """Holds the kept states against a plain pass over each sequence alone."""
    trunk = Trunk(policy.model)
    assert trunk.num_frozen == layer
    with policy.keeping_states(layer):
        responses = policy.respond(PROMPTS, sampling=SAMPLING)
    assert len(responses.states) == len(PROMPTS)
    for i, states in enumerate(responses.states):
        ids = responses.prompt_ids[i] + responses.response_ids[i]
        with policy.autocast():
            final_1LH, cut = trunk.full(torch.tensor([ids]))
        torch.testing.assert_close(states.final_TH, final_1LH[0, :-1], atol=tolerance, rtol=0)
        if layer:
            assert cut is not None and states.entering_TH is not None
            entering_TH = cut.own_BSH[0, :-1]
            torch.testing.assert_close(states.entering_TH, entering_TH, atol=tolerance, rtol=0)
        else:
            assert states.entering_TH is None


@pytest.mark.parametrize("num_layers", [1, 2])
def test_states_of_decoding_are_those_of_a_plain_pass(num_layers: int) -> None:
    policy = tiny(dtype="float32", train="last_layers", num_layers=num_layers)
    check_states(policy, Trunk(policy.model).num_frozen, 1e-5)


def test_without_frozen_layers_only_last_states_are_kept() -> None:
    check_states(tiny(dtype="float32", train="full"), 0, 1e-5)


def test_the_copy_in_bfloat16_keeps_states_close_to_the_trainers() -> None:
    check_states(tiny(dtype="bfloat16", train="last_layers", num_layers=1), 1, 0.1)


def test_adapters_count_in_the_kept_states() -> None:
    policy = tiny(dtype="float32", train="lora", lora=LoraSettings(r=2))
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05)
    check_states(policy, 0, 1e-5)


def test_small_batches_keep_the_same_states() -> None:
    policy = tiny(dtype="float32", train="last_layers", num_layers=1)
    decoder: Any = policy.decoder
    with policy.keeping_states(1):
        start = policy.generator_state()
        whole = policy.respond(PROMPTS, sampling=SAMPLING)
        policy.set_generator_state(start)
        decoder.rows_at_once = 2
        decoder._memory_bytes = 1
        pieces = policy.respond(PROMPTS, sampling=SAMPLING)
    assert whole.response_ids == pieces.response_ids
    for a, b in zip(whole.states, pieces.states, strict=True):
        torch.testing.assert_close(a.final_TH, b.final_TH, atol=1e-5, rtol=0)
        torch.testing.assert_close(a.entering_TH, b.entering_TH, atol=1e-5, rtol=0)


def test_kept_states_count_in_the_memory_of_a_batch() -> None:
    decoder: Any = tiny(dtype="float32").decoder
    # Float32, and all but the logits twice: 2 layers x 64 numbers of cache, 64 numbers of a state.
    decoder._memory_bytes = 6 * (20 * 2 * 4 * 2 * 64 + 4 * 4 * 259)

    def batches() -> list[int]:
        return [len(batch) for batch in decoder._batches([[1] * 13] * 6, max_new_tokens=7)]

    assert batches() == [6]
    with decoder.keeping_states(0):
        assert batches() == [4, 2]
    with decoder.keeping_states(1):
        assert batches() == [3, 3]


def test_states_are_kept_within_the_block_only() -> None:
    policy = tiny(dtype="float32")
    with policy.keeping_states(0):
        pass
    assert policy.respond(PROMPTS, sampling=SAMPLING).states == []
    decoder: Any = policy.decoder
    assert decoder._forward.probe is None
    assert not decoder._forward._base._forward_hooks

"""FLOPs counted on the matrices, against torch's own counter; the machine's rates."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from instructrec.policies.causal_lm import CausalLMPolicy, load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.policies.flops import ModelCost, model_cost, reader_cost
from instructrec.policies.rates import measure_rates, wait_for
from instructrec.policies.training_parts import train_last_layers
from instructrec.policies.trunk import Trunk

IDS = torch.arange(12).reshape(2, 6)


def tiny(train: str, layers: int | None = 1) -> tuple[CausalLMPolicy, Trunk, ModelCost]:
    config = PolicyConfig(
        model="tiny",
        dtype="float32",
        device="cpu",
        train=train,  # type: ignore[arg-type]
        num_layers=layers,
    )
    policy = load_policy(config)
    trunk = Trunk(policy.model)
    return policy, trunk, model_cost(trunk)


def without_attention(cost: ModelCost) -> ModelCost:
    """torch's counter knows no FLOPs for the attention kernel of a CPU."""
    return replace(cost, query_width=0)


def counted(trunk: Trunk, *, upper: bool) -> tuple[int, int]:
    """FLOPs of a forward and a backward pass with logits at every position."""
    with torch.no_grad():
        _, cut = trunk.full(IDS)
    with FlopCounterMode(display=False) as forward:
        hidden = trunk.upper(cut) if upper and cut is not None else trunk.full(IDS)[0]
        loss = trunk.token_logprobs(hidden.flatten(0, 1), IDS.flatten(), 1.0)[0].sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def test_weights_of_the_tiny_model_are_counted_by_hand() -> None:
    _, _, cost = tiny("full")
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128
    assert (cost.lower.weights, cost.upper.weights) == (0, 2 * layer)
    assert cost.upper.trained == cost.upper.weights and cost.num_layers == 2
    assert cost.head.weights == 259 * 64 and cost.query_width == 64 and cost.cache_width == 64
    assert sum(a * b * count for a, b, count in cost.shapes) == cost.matrix_weights


@pytest.mark.parametrize("train", ["full", "last_layers"])
def test_both_passes_cost_what_torch_counts(train: str) -> None:
    _, trunk, cost = tiny(train)
    bare, tokens = without_attention(cost), IDS.numel()
    forward, backward = counted(trunk, upper=True)
    assert bare.forward(tokens, 0, tokens, upper=True) == forward
    assert bare.backward(tokens, 0, tokens) == backward
    if train == "last_layers":
        assert bare.forward(tokens, 0, tokens) == counted(trunk, upper=False)[0] > forward


def gpt2(layers: int | None) -> tuple[Trunk, ModelCost]:
    """Three layers of GPT-2: fused projections, tied embeddings, positions at the bottom."""
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 97, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0))
    if layers is not None:
        model.requires_grad_(False)
        train_last_layers(model, layers)
    trunk = Trunk(model)
    return trunk, model_cost(trunk)


GPT2_LAYER = 32 * (3 * 32) + 32 * 32 + 2 * 32 * (4 * 32)
"""Queries, keys and values in one matrix; their projection; and the two of the feed-forward."""


@pytest.mark.parametrize("trained", [1, 2, None])
def test_the_backward_pass_of_gpt_2_ends_at_its_first_trained_layer(trained: int | None) -> None:
    trunk, cost = gpt2(trained)
    reached, head, tokens, pairs = trained or 3, 97 * 32, 12, 42
    assert trunk.num_frozen == 0 and cost.upper.num == 3  # passes start at the token ids
    # Two products of 32 numbers over the pairs, forward, and twice that backward, in each layer.
    forward = 3 * (2 * tokens * GPT2_LAYER + 4 * 32 * pairs) + 2 * tokens * head
    assert cost.forward(tokens, pairs, tokens) == forward
    of_inputs = reached * (2 * tokens * GPT2_LAYER + 8 * 32 * pairs) + 2 * tokens * head
    of_weights = reached * 2 * tokens * GPT2_LAYER
    if trained is None:
        of_weights += 2 * tokens * head  # tied to the embeddings, which train
    assert cost.backward(tokens, pairs, tokens) == of_inputs + of_weights
    assert cost.num_weights == 97 * 32 + 16 * 32 + 3 * (GPT2_LAYER + 9 * 32 + 4 * 32) + 64
    bare = without_attention(cost)
    assert counted(trunk, upper=False) == (
        bare.forward(tokens, 0, tokens),
        bare.backward(tokens, 0, tokens),
    )


def test_adapters_train_little_and_cost_a_little_more() -> None:
    _, _, full = tiny("full")
    _, _, lora = tiny("lora", layers=None)
    assert 0 < lora.num_trained < 0.5 * lora.num_weights
    assert lora.upper.weights == full.upper.weights + lora.upper.trained
    assert lora.head.trained == 0
    assert lora.backward(10, 55, 5) < full.backward(10, 55, 5)
    _, _, half = tiny("lora")  # the last layer alone: the first one runs without a gradient
    assert half.lower.trained == 0 and half.num_trained == lora.num_trained / 2
    assert half.backward(10, 55, 5) < lora.backward(10, 55, 5)


def test_attention_is_two_products_over_the_pairs() -> None:
    _, _, cost = tiny("full")
    # Scores and their product with the values: two products of head size, in 4 heads of 16.
    assert cost.forward(0, 21, 0) == 21 * 2 * (2 * 4 * 16) * 2
    assert cost.backward(0, 21, 0) == 2 * cost.forward(0, 21, 0)


def test_the_rates_are_measured_quickly_and_leave_the_random_state_alone() -> None:
    state = torch.random.get_rng_state()
    start = time.perf_counter()
    rates = measure_rates(
        [(64, 64, 4), (259, 64, 1)], tokens=64, dtype=torch.float32, device=torch.device("cpu")
    )
    assert time.perf_counter() - start < 30  # well under a second on a machine with nothing to do
    assert rates.flops_per_s > 1e6 and rates.bytes_per_s > 1e6
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_model_that_only_reads_is_counted_without_its_output_layer() -> None:
    policy, trunk, _ = tiny("last_layers")
    cost = reader_cost(policy.model)
    assert cost is not None and cost.head.weights == 0
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        trunk.full(IDS)
    assert without_attention(cost).forward(IDS.numel(), 0, 0) == forward.get_total_flops()
    policy.model.requires_grad_(False)  # as where a head alone trains
    frozen = reader_cost(policy.model)
    assert frozen is not None and frozen.forward(12, 42, 0) == cost.forward(12, 42, 0)
    assert frozen.backward(12, 42, 0) == 0


def test_a_model_whose_tokens_see_what_comes_is_not_counted() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertModel(BertConfig(vocab_size=9, intermediate_size=64, **sizes))
    assert reader_cost(encoder) is None


def test_an_apple_gpu_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(1))
    wait_for(torch.device("mps"))
    wait_for(torch.device("cpu"))
    assert waited == [1]

"""Packed layers of the copy that decodes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.policies.decode_copy import DecodeCopy
from instructrec.policies.packed import PackedLinear, can_pack

DTYPES = [torch.float32, torch.bfloat16]
IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    """A precision in which this machine packs."""
    if not can_pack(request.param):
        pytest.skip(f"this machine does not pack {request.param}")
    return request.param


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_packed_layer_is_the_layer_in_its_precision(dtype, bias):
    torch.manual_seed(0)
    linear = nn.Linear(24, 10, bias=bias)
    packed = PackedLinear(linear, dtype)
    inputs = torch.randn(2, 3, 24)
    expected = nn.Linear.forward(nn.Linear.to(linear, dtype), inputs.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = packed(inputs)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected)
    other = nn.Linear(24, 10, bias=bias).to(dtype)
    packed.load(**dict(other.named_parameters()))
    torch.testing.assert_close(packed(inputs), other(inputs.to(dtype)))


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_the_copy_follows_every_weight_that_trains(tied):
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    model = policy.model
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    copy = DecodeCopy(model, torch.bfloat16)
    packed = [m for m in copy.model.modules() if isinstance(m, PackedLinear)]
    assert bool(packed) == can_pack(torch.bfloat16)

    def logits(net):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = net.base_model(input_ids=IDS).last_hidden_state
        return net.get_output_embeddings()(hidden.float())

    before = logits(copy.model)
    torch.testing.assert_close(before, logits(model), atol=0.05, rtol=0.05)
    for weight in model.parameters():
        weight.add_(0.05 * torch.randn_like(weight))
    torch.testing.assert_close(logits(copy.model), before, atol=0, rtol=0)
    copy.sync()
    assert (logits(copy.model) - before).abs().max() > 0.5
    torch.testing.assert_close(logits(copy.model), logits(model), atol=0.05, rtol=0.05)


@torch.no_grad()
def test_adapters_are_merged_into_the_copy_and_the_policy_keeps_its_own():
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu", train="lora"))
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.2)
    before = {name: weight.clone() for name, weight in policy.model.named_parameters()}
    copy = DecodeCopy(policy.model, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged = policy.model(input_ids=IDS).logits.float()
        hidden = copy.model.base_model(input_ids=IDS).last_hidden_state
        bare = policy.model.get_base_model()
        with policy.model.disable_adapter():
            plain = bare(input_ids=IDS).logits.float()
    found = copy.model.get_output_embeddings()(hidden.float())
    torch.testing.assert_close(found, merged, atol=0.08, rtol=0.08)
    assert (found - plain).abs().max() > 0.5
    for name, weight in policy.model.named_parameters():
        torch.testing.assert_close(weight, before[name], atol=0, rtol=0)
        assert weight.requires_grad == ("lora_" in name)


@pytest.mark.parametrize("train", ["full", "last_layers", "lora"])
def test_the_copy_shares_what_never_changes_and_nothing_that_does(train):
    config = PolicyConfig(model="tiny", dtype="float32", device="cpu", train=train, num_layers=1)
    model = load_policy(config).model
    own = {p.data_ptr(): p.requires_grad for p in model.parameters()}
    kept = list(DecodeCopy(model, torch.bfloat16).model.parameters())
    shared = [p for p in kept if p.data_ptr() in own]
    assert all(not own[p.data_ptr()] for p in shared)
    assert bool(shared) == (train != "full")
    frozen = [p for p in kept if p.dtype == torch.float32]
    assert train != "lora" or len(shared) == len(frozen)

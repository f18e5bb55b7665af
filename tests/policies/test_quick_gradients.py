"""What makes the trainer's passes quick on a CPU changes no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from instructrec.policies.attention import quick_attention
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.policies.critic import make_critic
from instructrec.policies.embedding import look_up, quick_embedding
from instructrec.policies.logits import float32_logits
from instructrec.policies.trunk import Trunk

IDS = torch.tensor([[5, 6, 7, 8, 9, 9, 2], [5, 6, 2, 20, 21, 5, 2]])


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_a_look_up_gives_the_rows_and_the_gradient_of_the_embedding(padding_idx):
    torch.manual_seed(0)
    theirs = nn.Embedding(30, 4, padding_idx)
    ours = nn.Embedding(30, 4, padding_idx, _weight=theirs.weight.detach().clone())
    direction = torch.randn(2, 7, 4)
    for embedding, rows in ((theirs, theirs(IDS)), (ours, look_up(ours, IDS))):
        # Tied: the same weight is an output layer, whose gradient comes first.
        ((rows * direction).sum() + (rows.detach() @ embedding.weight.T).tanh().sum()).backward()
    assert torch.equal(look_up(ours, IDS), theirs(IDS))
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    (look_up(ours, IDS) * direction).sum().backward()
    (theirs(IDS) * direction).sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)  # they add up
    first = nn.Embedding(30, 4, padding_idx, _weight=theirs.weight.detach().clone())
    theirs.zero_grad()
    (theirs(IDS) * direction).sum().backward()
    (look_up(first, IDS) * direction).sum().backward()  # before any other gradient
    torch.testing.assert_close(first.weight.grad, theirs.weight.grad)


def test_only_a_plain_embedding_that_trains_is_looked_up_quickly():
    base = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu")).model.base_model
    assert quick_embedding(base) is base.get_input_embeddings()
    base.get_input_embeddings().requires_grad_(False)
    assert quick_embedding(base) is None
    base.requires_grad_(True)
    base.get_input_embeddings().max_norm = 1.0
    assert quick_embedding(base) is None
    base.get_input_embeddings().max_norm = None

    class Scaled(nn.Embedding):
        """As Gemma's, for instance."""

    base.get_input_embeddings().__class__ = Scaled
    assert quick_embedding(base) is None


@pytest.mark.parametrize("shared", [0, 2])
def test_a_trunk_that_trains_its_embedding_has_the_gradients_of_the_model(shared):
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    model, trunk = policy.model, Trunk(policy.model)
    direction = torch.randn(IDS.shape[0], IDS.shape[1], trunk.hidden_size)
    found = []
    for states in (
        model.base_model(input_ids=IDS).last_hidden_state[:, shared:],
        trunk.full(IDS, shared)[0],
    ):
        model.zero_grad()
        (states * direction[:, shared:]).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any("embed" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-4)


def test_a_model_that_looks_its_ids_up_twice_keeps_its_own_embedding():
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    base = policy.model.base_model
    own = base.forward

    def adds_something_for_ids(input_ids=None, inputs_embeds=None, **options):
        more = 0.0
        if input_ids is not None:
            inputs_embeds = base.get_input_embeddings()(input_ids)
            more = 0.5 * inputs_embeds
        output = own(inputs_embeds=inputs_embeds, **options)
        output.last_hidden_state = output.last_hidden_state + more
        return output

    base.forward = adds_something_for_ids
    assert quick_embedding(base) is None
    states, _ = Trunk(policy.model).full(IDS)
    torch.testing.assert_close(states, base(input_ids=IDS).last_hidden_state)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_runs_in_float32_under_autocast_on_a_cpu(masked):
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, 3, 5, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    mask = torch.ones(5, 5).tril().log() if masked else None
    attend = torch.nn.functional.scaled_dot_product_attention
    expected = attend(query.float(), key.float(), value.float(), attn_mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16), quick_attention(query.device):
        actual = attend(query, key, value, attn_mask=mask)
        product = query @ key.transpose(-1, -2)
    assert torch.equal(actual, expected) and actual.dtype == torch.float32
    assert product.dtype == torch.bfloat16
    with quick_attention(query.device):  # nothing is lowered, nothing is raised
        assert attend(query, key, value).dtype == torch.bfloat16


def test_logits_are_float32_and_their_gradient_is_that_of_autocast():
    torch.manual_seed(0)
    head = nn.Linear(16, 40, bias=False)
    hidden = torch.randn(6, 16, requires_grad=True)
    direction = torch.randn(6, 40)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        hidden.grad = head.weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = float32_logits(head, hidden)
        (logits * direction).sum().backward()
        found[dtype] = logits.detach(), hidden.grad, head.weight.grad
    (exact, *gradients), (lowered, *rounded) = found[torch.float32], found[torch.bfloat16]
    assert torch.equal(exact, head(hidden)) and torch.equal(lowered, exact)
    for mine, expected in zip(rounded, gradients, strict=True):
        assert mine.dtype == torch.float32 and not torch.equal(mine, expected)
        torch.testing.assert_close(mine, expected, atol=0.1, rtol=0.02)


def test_a_frozen_output_layer_gets_no_gradient():
    head = nn.Linear(16, 40, bias=False).requires_grad_(False)
    hidden = torch.randn(6, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        float32_logits(head, hidden).sum().backward()
    assert head.weight.grad is None and hidden.grad is not None


def test_a_critic_of_its_own_has_the_gradient_of_its_transformer():
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    critic = make_critic(policy, "separate", detach=True)
    critic.head.linear.weight.data.fill_(0.1)
    row, position = torch.tensor([0, 1, 1]), torch.tensor([3, 5, 6])
    found = []
    for values in (
        critic.head(critic.backbone(input_ids=IDS).last_hidden_state[row, position]),
        critic(None, IDS, row, position),
    ):
        critic.zero_grad()
        (values * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
        found.append({n: p.grad for n, p in critic.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and any("embed" in name for name in found[0])
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-4)

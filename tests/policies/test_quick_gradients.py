"""What makes the trainer's passes quick on a CPU changes no gradient."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from instructrec.policies import logits as logits_module
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.policies.cpu_passes import quick_passes
from instructrec.policies.critic import make_critic
from instructrec.policies.embedding import look_up, quick_embedding
from instructrec.policies.logits import chosen_logprobs, float32_logits
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
    with torch.autocast("cpu", dtype=torch.bfloat16), quick_passes(query.device):
        actual = attend(query, key, value, attn_mask=mask)
        product = query @ key.transpose(-1, -2)
    assert torch.equal(actual, expected) and actual.dtype == torch.float32
    assert product.dtype == torch.bfloat16
    with quick_passes(query.device):  # nothing is lowered, nothing is raised
        assert attend(query, key, value).dtype == torch.bfloat16


class Casts(TorchDispatchMode):
    """Counts the casts of tensors of a shape to bfloat16."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = torch.Size(shape), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        lowers = "_to_copy" in str(func) and (kwargs or {}).get("dtype") == torch.bfloat16
        self.count += lowers and args[0].shape == self.shape
        return func(*args, **(kwargs or {}))


def test_what_several_linear_layers_read_is_cast_once_and_gives_their_gradients():
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16, bias=False) for _ in range(3)]
    x = torch.randn(5, 16)
    found = []
    for quick in (False, True):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            context = quick_passes(given.device) if quick else nullcontext()
            read = given * 1.0  # autocast keeps what it cast of leaves, as weights are
            with context, Casts((5, 16)) as casts:
                outputs = [layer(read) for layer in layers]
                with torch.no_grad():
                    outputs.append(layers[0](read))  # not the cast that has a gradient
            sum(output.float().pow(2).sum() for output in outputs[:3]).backward()
        found.append((outputs, given.grad, casts.count))
    (theirs, expected, many), (ours, gradient, few) = found
    assert (many, few) == (4, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not ours[3].requires_grad and ours[0].dtype == torch.bfloat16
    torch.testing.assert_close(gradient, expected, atol=0.05, rtol=0.02)


def test_a_tensor_that_changed_is_cast_anew():
    layer, x = nn.Linear(4, 4, bias=False), torch.ones(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad(), quick_passes(x.device):
        first = layer(x)
        x.mul_(2.0)
        assert torch.equal(layer(x), 2 * first)
    with torch.inference_mode():
        y = torch.ones(2, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16), quick_passes(y.device):
            assert torch.equal(layer(y), first)


@pytest.mark.parametrize("rows", [1, 7])
def test_chosen_logprobs_and_their_gradient_are_those_of_a_log_softmax(rows, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(logits_module, "_CACHED", 3 * 40 * 4)  # three rows at a time
    logits = 10 * torch.randn(rows, 40)
    tokens, direction = torch.randint(40, (rows,)), torch.randn(rows)
    found = []
    for chosen in (False, True):
        given = logits.clone().requires_grad_()
        if chosen:
            logprobs, entropy = chosen_logprobs(given * 1.0, tokens)
        else:
            whole = given.log_softmax(-1)
            logprobs = whole.gather(-1, tokens[:, None])[:, 0]
            entropy = -(whole.exp() * whole).sum(-1)
        (logprobs * direction).sum().backward()
        found.append((logprobs, entropy, given.grad))
    assert not found[1][1].requires_grad
    for mine, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_logprobs_of_any_output_layer_have_its_gradients(bias, adapter):
    torch.manual_seed(0)
    model = nn.ModuleDict({"head": nn.Linear(16, 40, bias=bias)})
    if adapter:
        config = LoraConfig(target_modules=["head"], r=2, init_lora_weights=False)
        model = inject_adapter_in_model(config, model)
    hidden, tokens, direction = torch.randn(6, 16), torch.arange(6), torch.randn(6)
    found = []
    for chosen in (False, True):
        model.zero_grad()
        given = hidden.clone().requires_grad_()
        logits = float32_logits(model["head"], given)
        if chosen:
            logprobs, _ = chosen_logprobs(logits, tokens)  # in the tensor that the layer made
        else:
            logprobs = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        (logprobs * direction).sum().backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        found.append([logprobs, given.grad, *grads])
    for mine, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)


def test_chosen_logprobs_cannot_be_differentiated_twice():
    logits = torch.randn(3, 5, requires_grad=True)
    loss = chosen_logprobs(logits * 1.0, torch.tensor([0, 1, 2]))[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="before"):
        loss.backward()


def test_logits_that_are_not_finite_give_logprobs_that_are_not():
    logits = torch.zeros(2, 5)
    logits[0, 3] = float("nan")
    logprobs, entropy = chosen_logprobs(logits, torch.tensor([0, 1]))
    assert logprobs.isnan().tolist() == entropy.isnan().tolist() == [True, False]


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

"""RMS norms in fewer steps give the results and gradients of transformers' own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.policies.norms import quick_norms
from instructrec.policies.trunk import Trunk


def pair(size: int = 24) -> tuple[nn.Module, nn.Module]:
    """transformers' norm, and the same made quick."""
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(size, eps=1e-3)
    theirs.weight.data.normal_()
    ours = copy.deepcopy(theirs)
    assert quick_norms(ours) == 1
    return theirs, ours


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 7, 24)])
def test_a_quick_norm_has_the_output_and_the_gradients_of_the_plain_one(trains, shape):
    theirs, ours = pair()
    x = torch.randn(shape) * 3
    x[..., :1] = 0.0
    direction, found = torch.randn(shape), []
    for norm in (theirs, ours):
        norm.weight.requires_grad_(trains)
        given = x.clone().requires_grad_()
        output = norm(given)
        (output * direction).sum().backward()
        with torch.no_grad():
            assert torch.equal(norm(given), output)
        found.append((output.detach(), given.grad, norm.weight.grad))
    for mine, expected in zip(found[1], found[0], strict=True):
        assert (mine is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_a_quick_norm_is_that_of_its_formula():
    _, ours = pair(6)
    x = torch.randn(3, 6, requires_grad=True)
    step = 1e-2
    direction = torch.randn(3, 6)
    (ours(x) * direction).sum().backward()
    for place in ((0, 0), (2, 5)):
        moved = [
            x.detach()
            .clone()
            .index_put_([*map(torch.tensor, place)], x.detach()[place] + way * step)
            for way in (1, -1)
        ]
        up, down = ((ours(each) * direction).sum() for each in moved)
        assert ((up - down) / (2 * step)).item() == pytest.approx(x.grad[place].item(), abs=2e-3)


def test_zeros_and_other_precisions_are_normed_as_before():
    theirs, ours = pair()
    zeros = torch.zeros(2, 24, requires_grad=True)
    ours(zeros).sum().backward()
    assert zeros.grad.isfinite().all() and torch.equal(ours(zeros), torch.zeros(2, 24))
    lowered = torch.randn(2, 24, dtype=torch.bfloat16)
    found, expected = ours(lowered), theirs(lowered)
    assert torch.equal(found, expected) and found.dtype == expected.dtype


def test_a_norm_that_moves_to_another_device_is_normed_by_its_own():
    class CountingRMSNorm(LlamaRMSNorm):
        calls = 0

        def forward(self, hidden_states):
            self.calls += 1
            return super().forward(hidden_states)

    norm = CountingRMSNorm(8)
    assert quick_norms(norm) == 1
    tried = norm.calls
    norm(torch.ones(2, 8))
    assert norm.calls == tried
    norm.to("meta")(torch.ones(2, 8, device="meta"))
    assert norm.calls == tried + 1


def test_a_norm_of_another_formula_stays_as_it_is():
    norm = GemmaRMSNorm(8)  # multiplies by 1 + weight, and calls its constant otherwise
    norm.variance_epsilon = norm.eps
    shifted = LlamaRMSNorm(8)
    shifted.bias = nn.Parameter(torch.zeros(8))  # 0 now, and another formula later
    assert quick_norms(nn.Sequential(norm, shifted, nn.LayerNorm(8))) == 0
    assert "forward" not in vars(norm)


def test_a_copy_of_a_quick_norm_has_weights_of_its_own():
    _, ours = pair()
    other = copy.deepcopy(ours)
    other.weight.data.zero_()
    x = torch.randn(2, 24)
    assert not other(x).any() and ours(x).any()
    torch.testing.assert_close(pickle.loads(pickle.dumps(ours))(x), ours(x))
    assert quick_norms(ours) == 0 and ours.state_dict().keys() == {"weight"}


@torch.no_grad()
def test_the_norms_of_a_policy_are_quick_from_the_start_and_answer_as_before():
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    norms = [m for m in policy.model.modules() if type(m).__name__.endswith("RMSNorm")]
    assert norms and all("forward" in vars(norm) for norm in norms)
    assert quick_norms(policy.model) == 0
    ids = torch.arange(20).reshape(2, 10)
    found = policy.model(input_ids=ids).logits
    again = Trunk(policy.model).lm_head(Trunk(policy.model).full(ids)[0])
    assert torch.equal(found, again)  # a learner changes no bit of an evaluation
    for norm in norms:
        del norm.forward
    torch.testing.assert_close(policy.model(input_ids=ids).logits, found, atol=1e-5, rtol=1e-5)

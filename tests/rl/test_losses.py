from __future__ import annotations

import math

import pytest
import torch

from instructrec.rl.losses import LossBatch, LossSettings, ppo_loss

SETTINGS = LossSettings(cliprange=0.2, cliprange_high=0.3, cliprange_value=None, vf_coef=0.5)


def batch(**changes):
    values = {
        "old_logprobs": torch.zeros(1),
        "advantages": torch.ones(1),
        "old_values": torch.zeros(1),
        "returns": torch.zeros(1),
    }
    values |= {name: torch.tensor(value) for name, value in changes.items()}
    mask = values.pop("action_mask", torch.ones_like(values["advantages"], dtype=torch.bool))
    return LossBatch(**values, action_mask=mask)


def loss_of(batch, logprobs, values=None, settings=SETTINGS, normaliser=1.0):
    logprobs = torch.as_tensor(logprobs)
    values = torch.zeros_like(logprobs) if values is None else torch.as_tensor(values)
    return ppo_loss(batch, logprobs, values, torch.zeros_like(logprobs), settings, normaliser)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 1.0, -1.0),
        (1.2, 1.0, -1.2),
        (1.5, 1.0, -1.3),  # clipped above: no more reason to go on
        (0.5, 1.0, -0.5),
        (0.5, -1.0, 0.8),  # clipped below
        (1.5, -1.0, 1.5),  # a bad token that became likelier is never clipped
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, expected):
    loss, stats = loss_of(batch(advantages=[advantage]), [math.log(ratio)])
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert stats["clipped"].item() == (expected != pytest.approx(-ratio * advantage))


def test_value_loss_by_hand():
    data = batch(advantages=[0.0], old_values=[1.0], returns=[3.0])
    loss, stats = loss_of(data, [0.0], values=[1.5])
    assert stats["value_loss"].item() == pytest.approx(0.5 * 1.5**2)
    assert loss.item() == pytest.approx(0.5 * 0.5 * 1.5**2)


def test_value_clipping_takes_the_larger_error_by_hand():
    data = batch(advantages=[0.0], old_values=[1.0], returns=[3.0])
    settings = LossSettings(0.2, 0.3, cliprange_value=0.2, vf_coef=1.0)
    _, stats = loss_of(data, [0.0], values=[2.5], settings=settings)
    assert stats["value_loss"].item() == pytest.approx(0.5 * (3.0 - 1.2) ** 2)
    assert stats["value_clipped"].item() == 1


def test_statistics_are_sums_over_action_tokens():
    data = batch(
        old_logprobs=[0.0, 0.0],
        advantages=[1.0, 1.0],
        old_values=[0.0, 0.0],
        returns=[0.0, 0.0],
        action_mask=[True, False],
    )
    ratio = 1.1
    _, stats = loss_of(data, [math.log(ratio), 5.0])
    assert stats["tokens"].item() == 1
    assert stats["approx_kl"].item() == pytest.approx(ratio - 1 - math.log(ratio), rel=1e-4)


def test_masked_tokens_change_neither_loss_nor_gradient():
    logprobs = torch.tensor([[-0.3, -0.9], [-0.2, -2.0]], requires_grad=True)
    mask = [[True, True], [True, False]]
    shared = {"old_logprobs": [[-0.4, -0.7], [-0.2, 9.0]], "old_values": [[0.0, 0.0], [0.0, 9.0]]}
    results = []
    for junk in (0.0, 1e3):
        data = batch(
            advantages=[[1.0, -1.0], [2.0, junk]],
            returns=[[1.0, 0.0], [0.5, junk]],
            action_mask=mask,
            **shared,
        )
        loss, _ = loss_of(data, logprobs, values=torch.zeros(2, 2), normaliser=3.0)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        results.append((loss.item(), gradient))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][1][1, 1] == 0


def test_gradient_does_not_depend_on_how_a_minibatch_is_split():
    generator = torch.Generator().manual_seed(2)
    lengths = [1, 7, 3, 5]
    tokens = sum(lengths)
    weights = torch.randn(tokens, generator=generator, requires_grad=True)
    columns = {
        name: torch.randn(tokens, generator=generator)
        for name in ("old_logprobs", "advantages", "old_values", "returns")
    }

    def gradient(pieces):
        total = torch.zeros(())
        for piece in pieces:
            data = LossBatch(
                **{name: column[piece] for name, column in columns.items()},
                action_mask=torch.ones(len(piece), dtype=torch.bool),
            )
            loss, _ = loss_of(data, weights[piece], weights[piece] * 2, normaliser=float(tokens))
            total = total + loss
        return torch.autograd.grad(total, weights)[0]

    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    episodes = [list(range(s, s + n)) for s, n in zip(starts, lengths, strict=True)]
    whole = gradient([list(range(tokens))])
    assert torch.allclose(gradient(episodes), whole, atol=1e-7)
    assert torch.allclose(gradient([episodes[0] + episodes[3], episodes[1] + episodes[2]]), whole)


def test_dual_clip_bounds_what_one_bad_token_can_do():
    settings = LossSettings(0.2, 0.3, cliprange_value=None, vf_coef=0.0, dual_clip=3.0)
    for ratio, advantage, expected in ((9.0, -1.0, 3.0), (2.0, -1.0, 2.0), (9.0, 1.0, -1.3)):
        loss, _ = loss_of(batch(advantages=[advantage]), [math.log(ratio)], settings=settings)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_entropy_bonus_by_hand():
    settings = LossSettings(0.2, 0.3, cliprange_value=None, vf_coef=0.0, entropy_coef=0.1)
    logits = torch.tensor([[0.0, 1.0]], requires_grad=True)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    data = batch(advantages=[0.0])
    loss, _ = ppo_loss(data, torch.zeros(1), torch.zeros(1), entropy, settings, normaliser=2.0)
    assert loss.item() == pytest.approx(-0.1 * entropy.item() / 2)
    loss.backward()
    assert logits.grad[0, 1] > 0 > logits.grad[0, 0]  # descent makes the likelier token less likely


def test_k2_as_a_loss_has_the_exact_gradient_of_the_divergence():
    settings = LossSettings(0.2, 0.3, cliprange_value=None, vf_coef=0.0, kl_coef=1.0)
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([0.1, 0.4, -0.5], dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    probabilities = logprobs.exp().detach()
    (expected,) = torch.autograd.grad(
        (logprobs.exp() * (logprobs - reference)).sum(), logits, retain_graph=True
    )
    total = torch.zeros(3, dtype=torch.float64)
    for token in range(3):  # the expectation over sampled tokens, by enumeration
        data = LossBatch(
            old_logprobs=logprobs[token : token + 1].detach(),
            advantages=torch.zeros(1),
            old_values=torch.zeros(1),
            returns=torch.zeros(1),
            action_mask=torch.ones(1, dtype=torch.bool),
            ref_logprobs=reference[token : token + 1],
        )
        picked = logprobs[token : token + 1]
        loss, _ = ppo_loss(data, picked, torch.zeros(1), torch.zeros(1), settings, normaliser=1.0)
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        total += probabilities[token] * gradient
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=1e-10)

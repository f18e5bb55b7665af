from __future__ import annotations

import math

import pytest
import torch

from instructrec.rl.drift import measure_drift, truncated_importance_weights
from instructrec.rl.kl import k1, k3, token_rewards


def exact_kl_and_gradients():
    """KL(π, ref) over a 5-token vocabulary, its exact gradient, and those of k1 and k3 rewards."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).mul(0.3)
    reference = (logits.detach() + reference).log_softmax(-1)
    logprobs = logits.log_softmax(-1)
    probs = logprobs.exp()
    (kl_gradient,) = torch.autograd.grad(
        (probs * (logprobs - reference)).sum(), logits, retain_graph=True
    )
    gradients = {}
    for name, estimator in (("k1", k1), ("k3", k3)):
        penalty = estimator(logprobs, reference).detach()
        # the expected score-function gradient: sum over all tokens, weighted by their probability
        expected = (probs.detach() * penalty * logprobs).sum()
        (gradients[name],) = torch.autograd.grad(expected, logits, retain_graph=True)
    mean_k1 = (probs * k1(logprobs, reference)).sum()
    mean_k3 = (probs * k3(logprobs, reference)).sum()
    kl = (probs * (logprobs - reference)).sum()
    return kl_gradient, gradients, kl, mean_k1, mean_k3


def test_k1_and_k3_are_unbiased_estimates_of_the_divergence():
    _, _, kl, mean_k1, mean_k3 = exact_kl_and_gradients()
    assert kl > 0.01
    assert torch.allclose(mean_k1, kl)
    assert torch.allclose(mean_k3, kl)


def test_k1_in_the_reward_has_the_gradient_of_the_divergence_and_k3_has_not():
    exact, by_reward, *_ = exact_kl_and_gradients()
    assert torch.allclose(by_reward["k1"], exact, atol=1e-12)
    assert torch.nn.functional.cosine_similarity(by_reward["k3"], exact, dim=0) < 0.5


def test_k3_is_never_negative_and_zero_for_equal_log_probs():
    d = torch.linspace(-3, 3, 101)
    assert (k3(d, torch.zeros_like(d)) >= 0).all()
    assert k3(torch.tensor(-1.5), torch.tensor(-1.5)) == 0


def test_token_rewards_put_the_penalty_on_every_action_token():
    scores = torch.tensor([[0.0, 1.0, 5.0]])
    kl = torch.tensor([[0.5, -0.25, 9.0]])
    mask = torch.tensor([[True, True, False]])
    assert token_rewards(scores, kl, mask, 0.1).tolist() == [
        [pytest.approx(-0.05), pytest.approx(1.025), 0.0]
    ]
    assert token_rewards(scores, None, mask, 0.1).tolist() == [[0.0, 1.0, 0.0]]


def test_drift_sees_a_forgotten_temperature_to_which_the_mean_ratio_is_blind():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 50, generator=generator).mul(2)
    sampler, trainer = (logits / 0.7).log_softmax(-1), logits.log_softmax(-1)
    tokens = torch.multinomial(sampler.exp(), 1, generator=generator)
    sampler_logprobs = sampler.gather(1, tokens).squeeze(1)
    trainer_logprobs = trainer.gather(1, tokens).squeeze(1)
    drift = measure_drift(sampler_logprobs, trainer_logprobs, torch.ones(400, dtype=torch.bool))
    assert (trainer_logprobs - sampler_logprobs).exp().mean() == pytest.approx(1.0, abs=0.1)
    assert drift.mean > 0.2
    assert drift.p99 > drift.mean


def test_the_99th_percentile_of_the_drift_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 50, 101, 1234):
        drift = torch.rand(size, generator=generator)
        measured = measure_drift(drift, torch.zeros(size), torch.ones(size, dtype=torch.bool))
        assert measured.p99 == pytest.approx(float(torch.quantile(drift, 0.99)), abs=1e-6)


@pytest.mark.slow
def test_a_rollout_may_have_more_tokens_than_torchs_quantile_takes():
    size = 2**24 + 2
    drift = torch.zeros(size)
    drift[: size // 50] = 1.0
    measured = measure_drift(drift, torch.zeros(size), torch.ones(size, dtype=torch.bool))
    assert measured.p99 == 1.0 and measured.mean == pytest.approx(0.02, abs=1e-3)


def test_drift_counts_only_masked_tokens():
    sampler, trainer = torch.tensor([-1.0, -9.0]), torch.tensor([-1.5, -1.0])
    drift = measure_drift(sampler, trainer, torch.tensor([True, False]))
    assert drift.mean == pytest.approx(0.5)
    nothing = measure_drift(sampler, trainer, torch.tensor([False, False]))
    assert (nothing.mean, nothing.p99) == (0.0, 0.0)


def test_importance_weights_are_probability_ratios_up_to_the_cap():
    sampler, trainer = torch.tensor([-1.0, -5.0]), torch.tensor([-1.5, -1.0])
    weights = truncated_importance_weights(sampler, trainer, cap=2.0)
    assert weights.tolist() == [pytest.approx(math.exp(-0.5)), 2.0]

"""One response token by token: the numbers are those of the sampler, and of gradients by hand."""

from __future__ import annotations

import math

import pytest
import torch

from instructrec.errors import PolicyError
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.critic import make_critic
from instructrec.rl.explaining import advantages_of, read_response


@pytest.fixture
def policy():
    config = PolicyConfig("tiny@1", dtype="float32", device="cpu")
    return load_policy(config, sampling=Sampling(12, 0.7))


def test_log_probs_are_those_of_the_sampler(policy) -> None:
    found = policy.respond(["Hello"])
    prompt_ids, response_ids = found.prompt_ids[0], found.response_ids[0]
    reading = read_response(policy, prompt_ids, response_ids, temperature=0.7, alternatives=4)
    assert reading.logprobs == pytest.approx(found.logprobs[0], abs=1e-5)
    assert reading.values is None and len(reading.entropy) == len(response_ids)
    for token, logprob, top in zip(response_ids, reading.logprobs, reading.top, strict=True):
        shares = [share for _, share in top]
        assert len(top) == 4 and shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-6
        assert dict(top).get(token, math.exp(logprob)) == pytest.approx(math.exp(logprob), abs=1e-5)


def test_values_are_the_critics(policy) -> None:
    critic = make_critic(policy, "shared", detach=True)
    prompt_ids, response_ids = policy.encode(["Hello"])[0], [65, 66, 67]
    assert read_response(policy, prompt_ids, response_ids, critic=critic).values == [0.0, 0.0, 0.0]
    torch.nn.init.constant_(critic.head.linear.bias, 0.5)
    assert read_response(policy, prompt_ids, response_ids, critic=critic).values == [0.5] * 3


def test_advantages_by_hand() -> None:
    ours, reference, values = [-1.0, -2.0], [-1.5, -1.0], [0.2, 0.6]
    # Rewards with the KL: -0.1 * 0.5 = -0.05, then 1 - 0.1 * -1 = 1.1.
    deltas = [-0.05 + 0.9 * 0.6 - 0.2, 1.1 - 0.6]
    expected = [deltas[0] + 0.9 * 0.8 * deltas[1], deltas[1]]
    found = advantages_of(ours, reference, values, 1.0, kl_coef=0.1, gamma=0.9, lam=0.8)
    assert found == pytest.approx(expected, abs=1e-6)
    plain = advantages_of(ours, None, None, 1.0, kl_coef=0.1, gamma=1.0, lam=1.0)
    assert plain == pytest.approx([1.0, 1.0])


def test_what_does_not_fit_is_refused(policy) -> None:
    with pytest.raises(PolicyError, match="one of each at least"):
        read_response(policy, [65], [])
    with pytest.raises(PolicyError, match=f"{policy.max_length} together"):
        read_response(policy, [65] * policy.max_length, [66])

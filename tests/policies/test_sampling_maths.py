from __future__ import annotations

import math

import pytest
import torch

from instructrec.policies.config import Sampling
from instructrec.policies.sampling import inverse_cdf, pick_tokens, truncate

LOGITS = torch.tensor([[0.6, 0.3, 0.1]]).log()


def uniform(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("u", "token"), [(0.0, 0), (0.59, 0), (0.61, 1), (0.89, 1), (0.91, 2), (1 - 1e-16, 2)]
)
def test_the_first_token_whose_cumulated_mass_exceeds_u_is_drawn(u: float, token: int) -> None:
    tokens, logprobs = pick_tokens(LOGITS, Sampling(), uniform(u))
    assert tokens.tolist() == [token]
    assert logprobs.item() == pytest.approx(math.log([0.6, 0.3, 0.1][token]), abs=1e-6)


def test_blocks_draw_what_one_long_sum_draws() -> None:
    generator = torch.Generator().manual_seed(3)
    probs = torch.randn(64, 1000, generator=generator).mul(3).softmax(-1)
    u = torch.rand(64, dtype=torch.float64, generator=generator)
    naive = (probs.double().cumsum(-1) <= (u * probs.double().sum(-1))[:, None]).sum(-1)
    assert inverse_cdf(probs, u).tolist() == naive.tolist()


def test_a_token_without_probability_is_never_drawn() -> None:
    probs = torch.zeros(4, 600)
    probs[:, 300] = 0.25
    probs[:, 599] = 0.75
    drawn = inverse_cdf(probs, uniform(0.0, 0.24, 0.26, 1 - 1e-16))
    assert drawn.tolist() == [300, 300, 599, 599]


def test_draws_follow_the_distribution() -> None:
    n = 100_000
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    tokens, _ = pick_tokens(LOGITS.expand(n, -1), Sampling(temperature=0.5), u)
    weights = torch.tensor([0.36, 0.09, 0.01])
    expected = weights / weights.sum()
    assert torch.allclose(tokens.bincount() / n, expected, atol=1e-4)


def test_logprobs_are_those_of_the_tempered_distribution() -> None:
    _, logprobs = pick_tokens(LOGITS, Sampling(temperature=0.5), uniform(0.9))
    assert logprobs.item() == pytest.approx(math.log(0.09 / 0.46), abs=1e-6)


def test_greedy_takes_the_likeliest_and_reports_temperature_one() -> None:
    tokens, logprobs = pick_tokens(LOGITS, Sampling(temperature=0.0), None)
    assert tokens.tolist() == [0]
    assert logprobs.item() == pytest.approx(math.log(0.6), abs=1e-6)


def test_top_k_renormalises_over_the_tokens_kept() -> None:
    tokens, logprobs = pick_tokens(LOGITS, Sampling(top_k=2), uniform(0.99))
    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(math.log(0.3 / 0.9), abs=1e-6)


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, 1), (0.7, 2), (0.89, 2), (0.95, 3), (1.0, 3)])
def test_top_p_keeps_the_smallest_set_with_enough_mass(top_p: float, kept: int) -> None:
    shuffled = LOGITS[:, [2, 0, 1]]
    assert int(truncate(shuffled, top_p=top_p).isfinite().sum()) == kept
    assert truncate(shuffled, top_p=top_p)[0, 1].isfinite()  # the likeliest always stays


def test_the_sampling_of_bfloat16_logits_is_done_in_float32() -> None:
    _, logprobs = pick_tokens(LOGITS.bfloat16(), Sampling(), uniform(0.0))
    assert logprobs.dtype == torch.float32

"""When a rollout is not learned from: a mean drift beyond the limit, and not by chance."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from instructrec.errors import NumericsError
from instructrec.rl.drift import Drift, measure_drift
from instructrec.rl.drift_gate import ENOUGH, DriftGate

LIMIT = 0.3


def drift_of(*values: float) -> Drift:
    size = len(values)
    return measure_drift(torch.tensor(values), torch.zeros(size), torch.ones(size).bool())


def judged(gate: DriftGate, drift: Drift) -> bool:
    """One update."""
    gate.begin()
    allowed = gate.allows(drift)
    gate.end(drift)
    assert (gate.refused is None) == allowed
    return allowed


def test_from_enough_tokens_on_the_mean_itself_is_judged() -> None:
    above = [0.0] * ENOUGH
    above[0] = ENOUGH * 0.31  # spread excuses nothing here
    assert not judged(DriftGate(LIMIT), drift_of(*above))
    assert judged(DriftGate(LIMIT), drift_of(*above[:1], *above[2:]))  # one token fewer
    assert judged(DriftGate(LIMIT), drift_of(*[0.29] * ENOUGH))


def test_one_unlikely_token_among_few_is_no_broken_sampler() -> None:
    assert drift_of(1.5, 0.01, 0.02).mean > LIMIT
    assert judged(DriftGate(LIMIT), drift_of(1.5, 0.01, 0.02))
    assert judged(DriftGate(LIMIT), drift_of(1.5))


def test_few_tokens_that_agree_on_it_are_refused_at_once() -> None:
    gate = DriftGate(LIMIT)
    assert not judged(gate, drift_of(0.5, 0.52, 0.48))
    for remedy in ("policy.dtype = 'float32'", "the decoder", "raise ppo.max_drift only if"):
        assert remedy in gate.diagnosis
    assert "0.500 nats per token (over 3 tokens), more than ppo.max_drift = 0.3" in gate.diagnosis


@pytest.mark.parametrize("tokens", [1, 5, ENOUGH])
def test_what_is_no_number_is_refused(tokens: int) -> None:
    assert not judged(DriftGate(LIMIT), drift_of(math.nan, *[0.0] * (tokens - 1)))
    assert not judged(DriftGate(LIMIT), drift_of(math.inf, *[0.0] * (tokens - 1)))


def test_small_rollouts_are_added_up_until_chance_explains_them_no_more() -> None:
    """Two tokens of three as drawn, one far off, again and again: a mean of 0.5."""
    gate, allowed = DriftGate(LIMIT), 0
    while judged(gate, drift_of(1.5, 0.0, 0.0)):
        allowed += 1
    assert 1 < allowed < ENOUGH / 3
    assert judged(gate, drift_of(1.5, 0.0, 0.0))  # a loop of one's own that goes on begins anew


def test_an_odd_rollout_is_refused_whatever_came_before() -> None:
    gate = DriftGate(LIMIT)
    for _ in range(60):
        assert judged(gate, drift_of(0.01, 0.0, 0.02))
    assert not judged(gate, drift_of(4.0, 4.5, 5.0))


def test_healthy_small_rollouts_are_never_added_up_to_a_refusal() -> None:
    gate = DriftGate(LIMIT)
    for i in range(300):
        assert judged(gate, drift_of(0.01, 0.02, 1.0 if i % 10 == 0 else 0.0))


def test_an_update_that_asks_again_counts_once() -> None:
    gate = DriftGate(LIMIT)
    gate.begin()
    for _ in range(500):
        assert gate.allows(drift_of(1.5, 0.0, 0.0))
    gate.end(drift_of(1.5, 0.0, 0.0))
    assert gate.state_dict()["tokens"] == 3


def test_a_sum_of_drifts_is_that_of_all_tokens() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    together, whole = drift_of(*values[:1]) + drift_of(*values[1:]), drift_of(*values)
    assert (together.mean, together.std) == pytest.approx((whole.mean, whole.std), abs=1e-6)
    assert together.tokens == 50 and Drift() + whole == whole == whole + Drift()


def test_what_was_added_up_outlives_a_checkpoint() -> None:
    whole, broken = DriftGate(LIMIT), DriftGate(LIMIT)
    for _ in range(3):
        assert judged(whole, drift_of(1.5, 0.0, 0.0)) and judged(broken, drift_of(1.5, 0.0, 0.0))
    resumed = DriftGate(LIMIT)
    resumed.load_state_dict(broken.state_dict())
    assert resumed.state_dict() == whole.state_dict() and whole.state_dict()["tokens"] == 9
    resumed.load_state_dict(None)  # of an older version
    assert resumed.state_dict()["tokens"] == 0


@pytest.mark.parametrize("reuse", [True, False])
def test_a_run_of_tiny_rollouts_survives_one_odd_token_and_stops_at_many(toy, reuse) -> None:
    policy = toy.policy()
    decoder, odd_updates = policy.decoder, {1}
    calls = []

    class Odd:
        """Misreports the first token of some rollouts."""

        sync = decoder.sync
        keeping_states = decoder.keeping_states

        def generate(self, *given):
            calls.append(1)
            off = 2.0 if len(calls) in odd_updates else 0.0
            items = decoder.generate(*given)
            first = [items[0].logprobs[0] - off, *items[0].logprobs[1:]]
            return [items[0]._replace(logprobs=first), *items[1:]]

    policy.decoder = Odd()
    config = dataclasses.replace(
        toy.fast,
        **{"episodes_per_update": 4, "num_mini_batches": 1, "micro_batch_size": 4},
        **{"response_length": 1, "num_updates": 3, "reuse_decoding": reuse},
    )
    _, _, log = toy.train(config, policy=policy)
    assert log[0][0]["ppo/drift_mean"] > LIMIT and log[0][0]["ppo/skipped_frac"] == 0
    calls.clear()
    odd_updates.update(range(100))
    with pytest.raises(NumericsError, match=r"ppo.max_drift = 0.3"):
        toy.train(dataclasses.replace(config, num_updates=60), policy=policy)
    assert len(calls) > 1

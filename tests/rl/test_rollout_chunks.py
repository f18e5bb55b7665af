"""A rollout in chunks: scored while the next one is decoded, and otherwise the same."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from instructrec.envs.refine import RefineVectorEnv
from instructrec.errors import ConfigError, DataError
from instructrec.policies.base import Responses, StopReason
from instructrec.policies.config import Sampling
from instructrec.rewards import make_rewards
from instructrec.rl.config import PPOConfig
from instructrec.rl.rollout import collect
from instructrec.rl.turns import play

SIZE = 6


class Counting:
    """Numbers its answers, those of all turns."""

    name = "counting"
    max_length = 1000

    def __init__(self, before=lambda number: None):
        self.before = before
        self.sizes = []

    def respond(self, prompts, columns=None, sampling=None):
        return self.respond_ids([[i] for i in range(len(prompts))], sampling)

    def respond_ids(self, prompt_ids, sampling=None):
        self.before(len(self.sizes))
        first = sum(self.sizes)
        self.sizes.append(len(prompt_ids))
        return Responses(
            texts=[str(first + i) for i in range(len(prompt_ids))],
            prompt_ids=prompt_ids,
            response_ids=[[10 + first + i] for i in range(len(prompt_ids))],
            logprobs=[[-0.5]] * len(prompt_ids),
            stop_reasons=[StopReason.EOS] * len(prompt_ids),
        )

    def follow_up(self, response_ids, message):
        return [90]


def value(completions, **columns):
    """The number that a response is, below 1."""
    return [float(text) / 100 for text in completions]


def settings(**changes):
    return PPOConfig(episodes_per_update=SIZE, num_mini_batches=1, response_length=3, **changes)


def collected(toy, reward=value, policy=None, **changes):
    config = settings(**changes)
    return collect(policy or Counting(), toy.env(config, reward), [0, 0, 1, 1, 2, 2], config)


@pytest.mark.parametrize("chunks", [2, 4, 99])
def test_a_rollout_in_chunks_is_the_same_rollout(toy, chunks):
    policy = Counting()
    whole = collected(toy)
    cut = collected(toy, policy=policy, rollout_chunks=chunks)
    assert len(policy.sizes) == min(chunks, SIZE) and sum(policy.sizes) == SIZE
    assert cut.texts == whole.texts and cut.turn_rewards == whole.turn_rewards
    assert cut.totals.tolist() == whole.totals.tolist() == [i / 100 for i in range(SIZE)]
    assert cut.instruction_ids == whole.instruction_ids and cut.groups == whole.groups


def test_a_chunk_is_scored_while_the_next_one_is_decoded(toy):
    scoring, decoded = threading.Event(), threading.Event()

    def before(number):
        if number == 1:  # the second chunk is being decoded
            assert scoring.wait(20)
            decoded.set()

    def patient(completions, **columns):
        scoring.set()
        assert decoded.wait(20)
        return value(completions)

    rollout = collected(toy, patient, Counting(before), rollout_chunks=2)
    assert rollout.totals.tolist() == [i / 100 for i in range(SIZE)]


@pytest.mark.parametrize("how", ["batch", "running", "group"])
def test_rewards_are_normalised_over_all_chunks(toy, how):
    def returns(chunks):
        reward = make_rewards({"value": {"use": value, "normalise": how}}).at_update(1)
        return collected(toy, reward, num_generations=2, rollout_chunks=chunks).returns

    assert returns(4) == pytest.approx(returns(1))
    assert np.std(returns(1)) > 0


def test_several_turns_are_played_chunk_by_chunk():
    def halves(completions, **columns):
        return [float(int(text) >= 8) for text in completions]

    def played(chunks, policy):
        env = RefineVectorEnv(SIZE, task="parity", reward=halves, autoreset_mode="DISABLED")
        env.reset(seed=0)
        return play(policy, env, Sampling(max_new_tokens=3), chunks)

    policy = Counting()
    episodes, rewards, waited = played(2, policy)
    assert policy.sizes == [3, 3, 3, 3, 1, 1]  # answers 0 to 7 have to be given again
    whole, expected, _ = played(1, Counting())
    assert [e.ids for e in episodes] == [e.ids for e in whole]
    assert rewards.total.tolist() == expected.total.tolist()
    assert 0 <= waited < 20


def test_an_error_of_the_environment_ends_the_rollout(toy):
    def wrong(completions, **columns):
        raise DataError("the data cannot be used")

    with pytest.raises(DataError, match="the data cannot be used"):
        collected(
            toy, make_rewards({"wrong": {"use": wrong, "on_error": "raise"}}), rollout_chunks=3
        )


def test_rewards_that_are_compared_need_an_environment_that_pays_by_them():
    reward = make_rewards({"value": {"use": value, "normalise": "batch"}}).at_update(1)
    env = RefineVectorEnv(SIZE, task="parity", reward=reward, autoreset_mode="DISABLED")
    with pytest.raises(
        ConfigError, match=r"'batch' with ppo.rollout_chunks = 2 and RefineVectorEnv"
    ):
        collect(Counting(), env, range(SIZE), settings(rollout_chunks=2))


def test_training_in_chunks_learns(toy):
    config = dataclasses.replace(toy.fast, num_updates=25, rollout_chunks=3)
    _, _, log = toy.train(config)
    rewards = [metrics["reward/total/mean"] for metrics, _ in log]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.5
    assert all(metrics["time/score_s"] >= 0 for metrics, _ in log)

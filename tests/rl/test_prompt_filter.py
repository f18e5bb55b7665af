"""The prompt filter: what it passes over, that it forgets nothing, and that it resumes."""

from __future__ import annotations

from collections import Counter

import pytest

from instructrec.errors import ConfigError
from instructrec.rl.config import PPOConfig
from instructrec.rl.prompt_filter import DECAY, PRIOR, PromptFilter, Spread
from instructrec.rl.rollout import instruction_order

NAN = float("nan")


def parity_filter(seed: int = 0, floor: float = 0.1) -> PromptFilter:
    """Judges 100 instructions by whether their index is even or odd."""
    return PromptFilter(lambda index: ("even", "odd")[index % 2], 100, seed, floor)


def teach(prompts: PromptFilter, even: list[float], odd: list[float]) -> None:
    """Pays the even and the odd instructions in turn, 40 times over."""
    for _ in range(40):
        for reward in even:
            prompts.observe([0], [reward])
        for reward in odd:
            prompts.observe([1], [reward])


def test_without_rewards_the_order_is_that_of_every_run():
    prompts = parity_filter(seed=3)
    assert prompts.choose(30) + prompts.choose(30) == instruction_order(100, 3, 0, 60)
    assert prompts.passed_over == 0.0


@pytest.mark.parametrize("known", [0.0, 1.0])
def test_what_is_solved_or_hopeless_is_played_as_often_as_the_floor_says(known):
    prompts = parity_filter(floor=0.25)
    teach(prompts, even=[known, known], odd=[0.0, 1.0])
    drawn = Counter(index % 2 for _ in range(20) for index in prompts.choose(50))
    assert drawn[0] / drawn[1] == pytest.approx(0.25, abs=0.05)
    assert prompts.passed_over == pytest.approx(1 - 1.25 / 2, abs=0.15)


def test_every_instruction_is_played_in_the_end():
    prompts = parity_filter()
    teach(prompts, even=[1.0], odd=[0.0, 1.0])
    assert set(prompts.choose(6000)) == set(range(100))


def test_the_weight_of_right_and_wrong_answers_is_their_learnability():
    half, often = Spread(), Spread()
    for i in range(4000):
        half.add(float(i % 2))
        often.add(float(i % 10 > 0))
    assert half.variance(Spread()) == pytest.approx(0.25, abs=0.01)
    assert often.variance(Spread()) == pytest.approx(0.09, abs=0.02)


def test_one_reward_proves_nothing_yet():
    everything, once = Spread(), Spread()
    for i in range(200):
        everything.add(float(i % 2))
    once.add(1.0)
    mean = (1.0 + PRIOR * everything.total / everything.count) / (1 + PRIOR)
    assert once.variance(everything) == pytest.approx(mean * (1 - mean), abs=0.01)
    assert once.variance(everything) > 0.8 * 0.25


def test_earlier_rewards_fade():
    spread = Spread()
    for reward in (1.0, 0.0, 0.5):
        spread.add(reward)
    assert spread.total == pytest.approx(DECAY**2 * 1.0 + 0.5)
    assert spread.squares == pytest.approx(DECAY**2 * 1.0 + 0.25)
    assert spread.count == pytest.approx(DECAY**2 + DECAY + 1)


@pytest.mark.parametrize("reward", [1.0, 0.3, 0.7])
def test_where_nothing_varies_nothing_is_passed_over(reward):
    prompts = parity_filter()
    teach(prompts, even=[reward], odd=[reward])
    prompts.choose(50)
    assert prompts.passed_over == 0.0


def test_an_episode_without_a_reward_says_nothing():
    prompts = parity_filter()
    prompts.observe([0, 1], [NAN, 1.0])
    assert list(prompts.state_dict()["keys"]) == ["odd"]


def test_generations_of_an_instruction_stay_together():
    chosen = parity_filter().choose(12, num_generations=3)
    assert len(chosen) == 12
    assert all(len(set(chosen[i : i + 3])) == 1 for i in range(0, 12, 3))


def test_a_restored_filter_goes_on_with_the_same_instructions():
    whole = parity_filter(seed=5)
    teach(whole, even=[1.0], odd=[0.0, 1.0])
    whole.choose(64)
    restored = parity_filter(seed=5)
    restored.load_state_dict(whole.state_dict())
    assert restored.choose(64) == whole.choose(64)


@pytest.mark.parametrize("floor", [0.0, 1.5, -0.1])
def test_a_floor_outside_its_range_is_refused(floor):
    with pytest.raises(ConfigError, match="prompt_filter_floor"):
        PPOConfig(prompt_filter="id", prompt_filter_floor=floor)

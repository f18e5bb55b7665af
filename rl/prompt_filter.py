"""Which instructions are worth an episode: those whose rewards differ.

An instruction that is answered rightly every time teaches as little as one that never is: without
a spread of rewards there is no advantage. The filter keeps a running mean and mean square of the
rewards of each instruction, or of all that share a value of a column (a family, a level), and
passes instructions over the more often the less their rewards vary. None is passed over for good,
so what was forgotten comes back.

For rewards of 0 and 1 the weight is p (1 - p), the *learnability* of Rutherford et al. 2024
(https://arxiv.org/abs/2408.15099), where p is the share of right answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from instructrec.envs.tasks.base import Task
from instructrec.rl.config import PPOConfig
from instructrec.rl.curriculum import Curriculum, make_curriculum
from instructrec.rl.rollout import instruction_order

DECAY = 0.97
"""What an earlier reward counts beside the next one of the same key: the policy changes."""
PRIOR = 2.0
"""Rewards that every key is credited with before its own: the latest ones of all instructions."""
_ROUNDING = 1e-9
"""Share of the mean square below which a variance is rounding."""
_COIN = 1
"""Keeps the coins apart from the permutations that come from the same seed."""


class Spread:
    """Running mean and mean square of rewards."""

    def __init__(self, count: float = 0.0, total: float = 0.0, squares: float = 0.0) -> None:
        self.count, self.total, self.squares = count, total, squares

    def add(self, reward: float) -> None:
        """Takes in one reward; earlier ones fade."""
        self.count = self.count * DECAY + 1.0
        self.total = self.total * DECAY + reward
        self.squares = self.squares * DECAY + reward * reward

    def variance(self, prior: Spread) -> float:
        """Variance of the rewards together with ``PRIOR`` of the prior's."""
        known = PRIOR / prior.count if prior.count else 0.0
        count = self.count + known * prior.count
        if not count:
            return 0.0
        mean = (self.total + known * prior.total) / count
        squares = (self.squares + known * prior.squares) / count
        variance = squares - mean * mean
        return variance if variance > _ROUNDING * squares else 0.0


class PromptFilter:
    """Walks through the instructions in their order and leaves out those that teach little.

    What it does is a function of the seed and of the rewards that it was told, so a resumed run
    goes on with the same instructions.

    Args:
        key_of: What the instruction of an index is counted under.
        num_instructions: Size of the task.
        seed: Seed of the order and of the coins.
        floor: Least chance of an instruction to be played, in (0, 1].
    """

    def __init__(
        self, key_of: Callable[[int], str], num_instructions: int, seed: int, floor: float
    ) -> None:
        self.key_of, self.size, self.seed, self.floor = key_of, num_instructions, seed, floor
        self.position = 0
        """How far the walk through the epochs has come."""
        self.passed_over = 0.0
        """Share of the instructions passed over in the last choice."""
        self._all = Spread()
        self._by_key: dict[str, Spread] = {}

    def choose(self, num_episodes: int, num_generations: int = 1) -> list[int]:
        """Instruction of each of the next episodes, equal ones in a row.

        Args:
            num_episodes: How many episodes; a multiple of ``num_generations``.
            num_generations: Episodes of each instruction.
        """
        count = num_episodes // num_generations
        weights = self._weights()
        chosen: list[int] = []
        start = self.position
        while len(chosen) < count:
            for index in instruction_order(
                self.size, self.seed, self.position, self.position + count - len(chosen)
            ):
                coin = np.random.default_rng([self.seed, self.position, _COIN]).random()
                self.position += 1
                if coin < weights.get(self.key_of(index), 1.0):
                    chosen.append(index)
        self.passed_over = 1 - count / (self.position - start)
        return [index for index in chosen for _ in range(num_generations)]

    def observe(self, indices: Sequence[int], rewards: Sequence[float]) -> None:
        """Learns what instructions earned; a reward of NaN says nothing.

        Args:
            indices: Index of each episode's instruction.
            rewards: What each episode earned.
        """
        for index, reward in zip(indices, rewards, strict=True):
            if math.isfinite(reward):
                self._all.add(reward)
                self._by_key.setdefault(self.key_of(index), Spread()).add(reward)

    def metrics(self) -> dict[str, float]:
        """What the last choice looked like."""
        return {"rollout/passed_over_frac": self.passed_over}

    def _weights(self) -> dict[str, float]:
        """Chance of each known key to be played: its variance beside the largest one."""
        variances = {key: spread.variance(self._all) for key, spread in self._by_key.items()}
        largest = max(variances.values(), default=0.0)
        if not largest:
            return {}
        return {key: max(value / largest, self.floor) for key, value in variances.items()}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, as JSON."""
        known = {key: list(vars(spread).values()) for key, spread in self._by_key.items()}
        return {"position": self.position, "all": list(vars(self._all).values()), "keys": known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts a state back."""
        self.position, self._all = state["position"], Spread(*state["all"])
        self._by_key = {key: Spread(*values) for key, values in state["keys"].items()}


def make_filter(task: Task, seed: int, config: PPOConfig) -> PromptFilter | Curriculum | None:
    """What chooses the instructions, if the settings ask for any choice."""
    if config.curriculum is not None:
        return make_curriculum(task, seed, config)
    column = config.prompt_filter
    if column is None:
        return None

    def key_of(index: int) -> str:
        instruction = task[index]
        return instruction.id if column == "id" else str(instruction.columns[column])

    return PromptFilter(key_of, len(task), seed, config.prompt_filter_floor)

"""How hard the next instructions are: the level follows the share of answers that pass.

Instructions say their level in a column. Each family (the column ``family``, where a task has it)
begins at its lowest level and is played there only. Once enough answers at that level are known,
the next level follows when most of the latest ones passed, the one before when few did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from instructrec.envs.tasks.base import Task, labels_of
from instructrec.errors import CheckpointError, DataError
from instructrec.rl.config import PPOConfig
from instructrec.rl.rollout import instruction_order


class Ladder:
    """The levels of one family, and how its latest answers went.

    Args:
        levels: The levels, from easy to hard.
    """

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = list(levels)
        self.step = 0
        """Place of the current level among the levels."""
        self.passes: list[bool] = []
        """Which of the latest answers at this level passed."""

    @property
    def level(self) -> int:
        """The level that is played."""
        return self.levels[self.step]

    def add(self, passed: bool, config: PPOConfig) -> None:
        """Takes in an answer at the current level, which may change that."""
        self.passes = [*self.passes, passed][-config.curriculum_window :]
        if len(self.passes) < config.curriculum_window:
            return
        share = sum(self.passes) / len(self.passes)
        up, down = share >= config.curriculum_raise, share <= config.curriculum_lower
        step = min(max(self.step + up - down, 0), len(self.levels) - 1)
        if step != self.step:
            self.step, self.passes = step, []


class Curriculum:
    """Walks through the instructions in their order and plays those of the current levels.

    What it does is a function of the seed and of the rewards that it was told, so a resumed run
    goes on with the same instructions at the same levels.

    Args:
        places: Family and level of each instruction.
        seed: Seed of the order.
        config: Settings; those of the curriculum are used.
    """

    def __init__(self, places: Sequence[tuple[str, int]], seed: int, config: PPOConfig) -> None:
        self.places, self.seed, self.config = places, seed, config
        self.position = 0
        """How far the walk through the epochs has come."""
        self.ladders = {
            family: Ladder(sorted({level for other, level in set(places) if other == family}))
            for family in sorted({family for family, _ in set(places)})
        }
        self._chosen: list[int] = []

    def choose(self, num_episodes: int, num_generations: int = 1) -> list[int]:
        """Instruction of each of the next episodes, equal ones in a row.

        Args:
            num_episodes: How many episodes; a multiple of ``num_generations``.
            num_generations: Episodes of each instruction.
        """
        count = num_episodes // num_generations
        chosen: list[int] = []
        while len(chosen) < count:
            ahead = self.position + count - len(chosen)
            order = instruction_order(len(self.places), self.seed, self.position, ahead)
            self.position = ahead
            chosen += [index for index in order if self._is_played(index)]
        self._chosen = chosen
        return [index for index in chosen for _ in range(num_generations)]

    def observe(self, indices: Sequence[int], rewards: Sequence[float]) -> None:
        """Learns what instructions earned; a reward of NaN says nothing.

        Args:
            indices: Index of each episode's instruction.
            rewards: What each episode earned.
        """
        for index, reward in zip(indices, rewards, strict=True):
            # The level may have changed since these were chosen.
            if math.isfinite(reward) and self._is_played(index):
                passed = bool(reward >= self.config.curriculum_pass)
                self.ladders[self.places[index][0]].add(passed, self.config)

    def metrics(self) -> dict[str, float]:
        """What the last choice looked like."""
        levels = [self.places[index][1] for index in self._chosen]
        return {"rollout/level": sum(levels) / len(levels)} if levels else {}

    def _is_played(self, index: int) -> bool:
        family, level = self.places[index]
        return self.ladders[family].level == level

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs, as JSON."""
        families = {
            family: {"level": ladder.level, "passes": ladder.passes}
            for family, ladder in self.ladders.items()
        }
        return {"position": self.position, "families": families}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts a state back.

        Raises:
            CheckpointError: It is of a level that the instructions no longer have.
        """
        self.position = state["position"]
        for family, known in state["families"].items():
            ladder, level = self.ladders.get(family), known["level"]
            if ladder is None or level not in ladder.levels:
                raise CheckpointError(
                    f"the curriculum stood at level {level} of family {family!r}, which the "
                    "instructions no longer have: expected the data that the run was started with. "
                    "Put them back, or start a new run from its policy."
                )
            ladder.step = ladder.levels.index(level)
            ladder.passes = list(known["passes"])


def make_curriculum(task: Task, seed: int, config: PPOConfig) -> Curriculum:
    """The curriculum over the column ``config.curriculum``.

    Raises:
        DataError: The level of an instruction is no whole number.
    """
    column = config.curriculum
    assert column is not None
    places = []
    for index in range(len(task)):
        known = labels_of(task, index)
        if column not in known:
            known = task[index].columns
        places.append((str(known.get("family")), _level(known.get(column), index, column)))
    return Curriculum(places, seed, config)


def _level(value: Any, index: int, column: str) -> int:
    """Returns the level of an instruction; a file may hold it as text."""
    try:
        level = int(value)
        if level == float(value):
            return level
    except (TypeError, ValueError):
        pass
    raise DataError(
        f"ppo.curriculum = {column!r}: that column of item {index} is {value!r}; expected a whole "
        "number, larger where it is harder"
    )

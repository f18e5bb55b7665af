"""What a run is about: the instructions, and what an episode with one of them is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from instructrec.choices import check_choices
from instructrec.envs.tasks.base import default_rewards, make_task
from instructrec.errors import ConfigError, DataError
from instructrec.experiments.playing import EnvName, Episodes
from instructrec.rewards.parts import RewardSpec


@dataclass(frozen=True)
class TaskConfig:
    """The instructions to train on, and the names of their splits."""

    name: str = "closed_answers"
    """A registered task, a data file or folder, hf:ID, module:attr or file.py:attr."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the task, e.g. --task.options.families '[category, parity]'."""
    train_split: str = "train"
    """Split that the policy learns from."""
    validation_split: str = "validation"
    """Split of the evaluations during training."""
    test_split: str = "test"
    """Split of the final evaluation; nothing is chosen on it."""
    env: EnvName = "instruction"
    """Episodes of training and evaluation: one answer, several tries (refine), chat or tool."""
    max_turns: int = 3
    """Most answers in one episode of several."""
    turn_reward: Literal["improvement", "last"] = "improvement"
    """What a turn earns (env refine): its gain over the one before, or all in the last turn."""
    env_options: dict[str, Any] = field(default_factory=dict)
    """More options of env chat and tool, e.g. --task.env_options.tools '[calculator, calendar]'."""

    def __post_init__(self) -> None:
        check_choices(self, "task")
        if self.max_turns < 1:
            raise ConfigError(f"task.max_turns = {self.max_turns}: expected 1 or more.")
        changed = {
            f.name
            for f in dataclasses.fields(self)
            if f.name in ("max_turns", "turn_reward") and getattr(self, f.name) != f.default
        }
        if self.env == "instruction" and changed:
            raise ConfigError(
                f"{', '.join(f'task.{name}' for name in sorted(changed))} given, but task.env = "
                f"{self.env!r} has a single turn: remove the key, or set task.env to 'refine'."
            )
        if self.env != "refine" and "turn_reward" in changed:
            raise ConfigError(
                f"task.turn_reward given, but task.env = {self.env!r}: it is of env 'refine'; give "
                "task.env_options.turn_reward instead."
            )
        self.episodes  # noqa: B018 (its options are checked)

    @property
    def episodes(self) -> Episodes:
        """What an episode is."""
        return Episodes(self.env, self.max_turns, self.env_options)

    def own_rewards(self) -> dict[str, bool | float | str | RewardSpec]:
        """The rewards that the task brings along: exact match, if it has none of its own."""
        try:
            given = default_rewards(make_task(self.name, split=self.train_split, **self.options))
        except (ConfigError, DataError):
            given = {"exact_match": 1.0}  # what is wrong with the task is said where it is made
        return {
            name: RewardSpec(**spec) if isinstance(spec, Mapping) else spec
            for name, spec in given.items()
        }

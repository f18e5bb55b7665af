"""What a policy could do before it was trained on something else, and whether it still can."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from instructrec.envs.tasks.base import Task, make_task
from instructrec.errors import ConfigError, DataError
from instructrec.experiments.config import reward_value
from instructrec.experiments.playing import Episodes
from instructrec.experiments.runfolder import read_config
from instructrec.experiments.task_config import TaskConfig
from instructrec.rewards.combine import CombinedReward, make_rewards


@dataclass(frozen=True)
class KeptTask:
    """An old task."""

    name: str
    """As it was given: a task, a data file or a run folder."""
    task: Task
    """Its test split."""
    reward: CombinedReward
    """The run folder's rewards, or the task's own."""
    episodes: Episodes
    """What an episode is."""

    @property
    def label(self) -> str:
        """A name for files."""
        return re.sub(r"[^A-Za-z0-9]+", "_", self.name).strip("_")


def read_kept(names: Sequence[str]) -> tuple[KeptTask, ...]:
    """Makes the tasks of ``eval.keep_tasks``.

    Args:
        names: Tasks, data files or run folders, each once.

    Raises:
        ConfigError: There is no such task, or it is named twice.
        DataError: Its test split is empty, or lacks a column that a reward needs.
        CheckpointError: A run folder cannot be read.
    """
    kept = tuple(map(_read, names))
    if len({each.label for each in kept}) < len(kept):
        raise ConfigError(f"eval.keep_tasks = {list(names)}: expected each of them once.")
    return kept


def _read(name: str) -> KeptTask:
    if (Path(name) / "run.json").is_file():
        before = read_config(Path(name))
        known = {f.name for f in dataclasses.fields(TaskConfig)}
        config = TaskConfig(**{k: v for k, v in before["task"].items() if k in known})
        rewards = before.get("rewards") or config.own_rewards()
    else:
        config = TaskConfig(name=name)
        rewards = config.own_rewards()
    task = make_task(config.name, split=config.test_split, **config.options)
    if not len(task):
        raise DataError(
            f"eval.keep_tasks: the {config.test_split} split of {name!r} is empty; expected "
            "instructions."
        )
    reward = make_rewards(reward_value(rewards))
    reward.check_columns([*task.columns, *config.episodes.told])
    return KeptTask(name, task, reward, config.episodes)

"""What the scalar and the vector environment share: inputs, observations and scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from gymnasium.envs.registration import EnvSpec

from instructrec.envs.spaces import is_unicode
from instructrec.envs.tasks.base import (
    Instruction,
    Task,
    default_rewards,
    make_task,
    render_prompt,
)
from instructrec.errors import ConfigError, DataError
from instructrec.rewards.base import RewardBatch, Status
from instructrec.rewards.combine import CombinedReward, make_rewards

TaskLike = str | Task
"""A task, or what `make_task` makes one from."""
RewardLike = str | Mapping[str, Any] | Callable[..., Any] | CombinedReward
"""What `make_rewards` makes the rewards from."""


LABELS = ("augmentation", "task")
"""Columns of an instruction that the info repeats: how it was reworded, and its task of several."""


class Held:
    """Keeps an object from being copied along with an environment's spec.

    Gymnasium deep-copies the spec, arguments included, whenever it is read through a wrapper. A
    task with its data or a reward with its model must not be copied by that.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        return f"Held({self.value!r})"


def release(value: Any) -> Any:
    """Returns the object inside a `Held`, or the value itself."""
    return value.value if isinstance(value, Held) else value


def hold_arguments(spec: EnvSpec | None) -> EnvSpec | None:
    """Returns a spec whose arguments are plain values, or `Held` where they are objects."""
    if spec is None:
        return None
    kwargs = {name: v if _is_plain(v) else Held(v) for name, v in spec.kwargs.items()}
    return replace(spec, kwargs=kwargs)


def resolve_task(task: TaskLike, split: str | None, options: Mapping[str, Any] | None) -> Task:
    """Makes the task that an environment shows.

    Args:
        task: A task, or what names one.
        split: Split to make; ``train`` when None. A ready task has its split already.
        options: Options for making it.

    Raises:
        ConfigError: It cannot be made, or a ready task is asked for another split or options.
        DataError: Its data cannot be used.
    """
    task = release(task)
    if isinstance(task, str):
        return make_task(task, split=split or "train", **(options or {}))
    if options:
        raise ConfigError(f"task_options {dict(options)} need a task given by name, not {task!r}")
    if not all(hasattr(task, name) for name in ("__len__", "__getitem__", "columns", "split")):
        raise ConfigError(
            f"task is {task!r}; expected a name, a data file, 'module:factory', 'file.py:factory' "
            "or a task object"
        )
    if split not in (None, task.split):
        raise ConfigError(f"the task given is the split {task.split!r}, but split={split!r}")
    return task


def resolve_rewards(
    reward: RewardLike | None, task: Task, told: Sequence[str] = ()
) -> CombinedReward:
    """Makes the rewards (None: the task's own) and checks that the task has their columns.

    Args:
        reward: The rewards, or what they are made from.
        task: Whose instructions are answered.
        told: Names of what the environment tells the rewards beside the task's columns.

    Raises:
        ConfigError: A reward is unknown or its settings are wrong.
        DataError: The task lacks a column, or has one of a name in ``told``.
    """
    for name in task.columns:
        if name in told:
            raise DataError(
                f"the data has a column {name!r}, by which rewards are told of the episode itself: "
                "rename the column."
            )
    combined = make_rewards(default_rewards(task) if reward is None else release(reward))
    combined.check_columns([*task.columns, *told])
    return combined


def observe(instruction: Instruction, max_chars: int) -> str:
    """Returns the text of an instruction's prompt.

    Raises:
        DataError: It is longer than the observation space allows, or no Unicode text.
    """
    text = render_prompt(instruction.prompt)
    if len(text) > max_chars:
        raise DataError(
            f"the prompt of instruction {instruction.id!r} has {len(text):,} characters; the "
            f"environment allows {max_chars:,}: shorten it or make the environment with a larger "
            "max_chars"
        )
    if not is_unicode(text):
        raise DataError(
            f"the prompt of instruction {instruction.id!r} holds half of a surrogate pair, which "
            "no tokenizer takes: correct the data that it is made from"
        )
    return text


def clean_action(action: Any, max_chars: int) -> tuple[str, bool]:
    """Makes any string fit for rewards, files and trackers.

    Args:
        action: A response. Lone surrogates become ``?``.
        max_chars: Longest response; the rest is cut off.

    Returns:
        The clean text, and whether it was cut.

    Raises:
        TypeError: The action is no string.
    """
    if not isinstance(action, str):
        raise TypeError(f"an action is the response as a string, not {action!r}")
    text = action[:max_chars].encode("utf-8", "replace").decode("utf-8")
    return text, len(action) > max_chars


def score(
    reward: CombinedReward,
    task: Task,
    instructions: Sequence[Instruction],
    texts: Sequence[str],
    extras: Mapping[str, Sequence[Any]] | None = None,
) -> RewardBatch:
    """Scores B responses to B instructions with one call."""
    prompts, columns = asked(task, instructions)
    return reward.score(prompts, texts, columns, extras)


def asked(
    task: Task, instructions: Sequence[Instruction]
) -> tuple[list[Any], dict[str, list[Any]]]:
    """Returns B prompts and the B values of each column, as rewards get them."""
    prompts = [
        i.prompt if isinstance(i.prompt, str) else [dict(message) for message in i.prompt]
        for i in instructions
    ]
    return prompts, {name: [i.columns.get(name) for i in instructions] for name in task.columns}


def reset_info(index: int, instruction: Instruction) -> dict[str, Any]:
    """Returns what `reset` tells about the instruction shown."""
    info: dict[str, Any] = {"task_index": index, "instruction_id": instruction.id}
    for name in LABELS:
        if name in instruction.columns:
            info[name] = instruction.columns[name]
    return info


def step_info(shown: Mapping[str, Any], batch: RewardBatch, row: int, cut: bool) -> dict[str, Any]:
    """Returns what `step` tells about one response.

    ``reward_parts`` holds the raw score of every part that gave one; a part that does not apply,
    or failed, is absent.

    Args:
        shown: What `reset_info` told of the instruction.
        batch: Rewards of the step.
        row: Which of them is the response's.
        cut: Whether the response was cut.
    """
    info = {**shown, "reward_status": batch.sample_status(row)}
    info["reward_parts"] = {
        name: float(scores[row])
        for name, scores in batch.parts.items()
        if batch.status[name][row] is Status.SCORED
    }
    if cut:
        info["action_truncated"] = True
    return info


def _is_plain(value: Any) -> bool:
    """Tells whether a value is made of what JSON and YAML can hold."""
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    return value is None or isinstance(value, str | int | float | bool)

"""Preferences for a reward model: where they come from, and that no instruction leaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from instructrec.envs.tasks.base import Instruction, Prompt, Task, make_task, render_prompt
from instructrec.errors import ConfigError, DataError

LISTED = 3
"""Instructions that the error about leakage names."""


@dataclass(frozen=True)
class PreferenceTask:
    """Pairs to learn from, and pairs that tell how good the result is."""

    name: str = ""
    """A data file or folder, hf:ID, or a task whose items have the columns reference (chosen) and
    rejected."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the task, e.g. --task.options.columns '{chosen: better, rejected: worse}'."""
    train_split: str = "train"
    """Split that is learned from."""
    validation: str | None = None
    """Another file or task with the held-out pairs; None takes a split of the same one."""
    validation_split: str = "validation"
    """Split of the held-out pairs; of another file its whole: all."""
    limit: int | None = None
    """Most pairs to learn from; None takes all."""
    validation_limit: int | None = None
    """Most held-out pairs; None takes all."""

    def __post_init__(self) -> None:
        for name in ("limit", "validation_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"task.{name} = {value}: expected at least 1.")


@dataclass(frozen=True)
class PairItem:
    """One preference of the data."""

    id: str
    """Its id in the data."""
    prompt: Prompt
    """The instruction."""
    chosen: str
    """The preferred response."""
    rejected: str
    """The other one."""
    margin: float | None
    """How far apart they are; None where the data does not say."""

    @property
    def instruction(self) -> str:
        """The instruction as it is compared: letter case and white space do not matter."""
        return canonical(self.prompt)


@dataclass(frozen=True)
class DemonstrationItem:
    """An instruction with an output that belongs to it."""

    id: str
    """Its id in the data."""
    prompt: Prompt
    """The instruction."""
    output: str
    """What belongs to it."""

    @property
    def instruction(self) -> str:
        """As of a pair."""
        return canonical(self.prompt)


def canonical(prompt: Prompt) -> str:
    """An instruction as text, in lower case and with single spaces; one message is its content."""
    if not isinstance(prompt, str) and len(prompt) == 1:
        prompt = prompt[0]["content"]
    return " ".join(render_prompt(prompt).casefold().split())


def open_splits(config: PreferenceTask) -> tuple[Task, Task]:
    """The instructions to learn from, and the held-out ones.

    Raises:
        ConfigError: No task is named, or an option is wrong.
        DataError: The data cannot be read.
    """
    if not config.name:
        raise ConfigError(
            "task.name is not set: expected a preference file (prompt, chosen, rejected), such as "
            "`instructrec pairs` writes, or a task."
        )
    train_options = dict(config.options)
    if config.validation is not None:
        split = "all" if config.validation_split == "validation" else config.validation_split
        train_split = "all" if config.train_split == "train" else config.train_split
        held_out = make_task(config.validation, split=split, **train_options)
        return make_task(config.name, split=train_split, **train_options), held_out
    train = make_task(config.name, split=config.train_split, **train_options)
    return train, make_task(config.name, split=config.validation_split, **train_options)


def read_pairs(task: Task, limit: int | None) -> list[PairItem]:
    """Reads the pairs of a task.

    Raises:
        DataError: An item is no pair, or its two responses are the same.
    """
    return [_pair(task[i]) for i in range(min(len(task), limit or len(task)))]


def read_demonstrations(task: Task, limit: int | None) -> list[DemonstrationItem]:
    """Reads instructions with their first reference.

    Raises:
        DataError: An instruction has no reference.
    """
    found = []
    for i in range(min(len(task), limit or len(task))):
        item = task[i]
        found.append(DemonstrationItem(item.id, item.prompt, _reference(item)))
    return found


def refuse_leakage(
    train: Sequence[PairItem | DemonstrationItem], held_out: Sequence[PairItem | DemonstrationItem]
) -> None:
    """Refuses instructions that are learned from and held out at once.

    Raises:
        DataError: There are some; a few of them are named.
    """
    known = {item.instruction for item in train}
    shared = [item for item in held_out if item.instruction in known]
    if shared:
        named = ", ".join(f"{item.id!r}: {item.instruction[:60]!r}" for item in shared[:LISTED])
        raise DataError(
            f"{len(shared)} of {len(held_out)} held-out rows are about an instruction that is also "
            f"learned from (letter case and white space ignored), for example {named}. The "
            "accuracy would be that of memory. Split by instruction: leave the column `split` and "
            "task.validation out, and the split goes by a hash of the prompt."
        )


def _reference(item: Instruction) -> str:
    given = item.columns.get("reference")
    first = given[0] if isinstance(given, list | tuple) and given else given
    if not isinstance(first, str):
        raise DataError(
            f"row {item.id!r} has the reference {given!r}: expected a text (`reference`, or "
            "`chosen` of a preference)."
        )
    return first


def _pair(item: Instruction) -> PairItem:
    chosen, rejected = _reference(item), item.columns.get("rejected")
    if not isinstance(rejected, str):
        raise DataError(
            f"row {item.id!r} has no text in the column 'rejected' but {rejected!r}: expected "
            "prompt, chosen and rejected. task.options.columns gives columns other names."
        )
    if chosen == rejected:
        raise DataError(
            f"row {item.id!r} prefers a response to itself ({chosen[:60]!r}): expected two "
            "different ones. Leave the row out."
        )
    margin = item.columns.get("margin")
    try:
        number = None if margin is None else float(margin)
        if number is not None and not math.isfinite(number):
            raise ValueError("not finite")
    except (TypeError, ValueError):
        raise DataError(
            f"row {item.id!r} has the margin {margin!r}: expected a finite number."
        ) from None
    return PairItem(item.id, item.prompt, chosen, rejected, number)

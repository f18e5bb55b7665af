"""Preferences for a reward model: where they come from, and that no instruction leaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from instructrec.envs.tasks.base import Instruction, Prompt, Task, make_task, render_prompt
from instructrec.errors import ConfigError, DataError, EmptySplitError

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
    """Split of the pairs that choose the weights; of another file its whole: all."""
    test: str | None = None
    """Another file or task with the pairs that measure the result; None takes a split of the same
    one, where task.validation is None as well."""
    test_split: str | None = "test"
    """Split of the pairs that measure the result and choose nothing; of another file its whole:
    all. None, or a split without rows: the validation pairs measure it."""
    limit: int | None = None
    """Most pairs to learn from; None takes all."""
    validation_limit: int | None = None
    """Most validation pairs; None takes all."""
    test_limit: int | None = None
    """Most test pairs; None takes all."""

    def __post_init__(self) -> None:
        if self.test is not None and self.test_split is None:
            raise ConfigError(
                f"task.test = {self.test!r}, but task.test_split is None: expected a split of it, "
                "or all. Leave task.test_split out."
            )
        for name in ("limit", "validation_limit", "test_limit"):
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


@dataclass(frozen=True)
class Parts:
    """The rows of a reward model: pairs, or instructions with outputs; no instruction in two."""

    train: list[Any]
    """What is learned from."""
    validation: list[Any]
    """What chooses the weights, where validations do."""
    test: list[Any]
    """What measures the result and chooses nothing; empty where there is none."""

    def measured(self) -> list[Any]:
        """The rows that measure the result: the test rows, or the validation rows without any."""
        return self.test or self.validation

    def facts(self, eval_every: int) -> dict[str, Any]:
        """What is recorded of the rows that measure the result.

        Args:
            eval_every: Steps between two validations; 0 chooses nothing.
        """
        return {
            "measured_on": "test" if self.test else "validation",
            "measured_pairs_chose_the_weights": eval_every > 0 and not self.test,
        }


def canonical(prompt: Prompt) -> str:
    """An instruction as text, in lower case and with single spaces; one message is its content."""
    if not isinstance(prompt, str) and len(prompt) == 1:
        prompt = prompt[0]["content"]
    return " ".join(render_prompt(prompt).casefold().split())


def open_splits(config: PreferenceTask) -> dict[str, Task]:
    """The tasks to learn from, to validate on and, where there is one, to measure on, by split.

    Raises:
        ConfigError: No task is named, or an option is wrong.
        DataError: The data cannot be read.
    """
    if not config.name:
        raise ConfigError(
            "task.name is not set: expected a preference file (prompt, chosen, rejected), such as "
            "`instructrec pairs` writes, or a task."
        )
    train_split = config.train_split
    if config.validation is not None and train_split == "train":
        train_split = "all"
    train = make_task(config.name, split=train_split, **config.options)
    split = config.validation_split
    if config.validation is not None and split == "validation":
        split = "all"
    validation = make_task(config.validation or config.name, split=split, **config.options)
    splits, test = {"train": train, "validation": validation}, _open_test(config)
    return splits if test is None else {**splits, "test": test}


def _open_test(config: PreferenceTask) -> Task | None:
    """The rows that measure; None where no file is named and the data have none."""
    split = config.test_split
    if split is None or (config.test is None and config.validation is not None):
        return None
    if config.test is not None:
        split = "all" if split == "test" else split
        return make_task(config.test, split=split, **config.options)
    try:
        return make_task(config.name, split=split, **config.options)
    except EmptySplitError:
        return None
    except ConfigError as error:
        raise ConfigError(
            f"{error} (The split {split!r} was asked for to measure the result; task.test_split: "
            "null does without.)"
        ) from error


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
    others: Sequence[PairItem | DemonstrationItem],
    held_out: Sequence[PairItem | DemonstrationItem],
    use: str = "learned from",
) -> None:
    """Refuses instructions that are held out and used otherwise at once.

    Args:
        others: Rows with another use.
        held_out: Rows that are held out.
        use: What is done with the others.

    Raises:
        DataError: There are some; a few of them are named.
    """
    known = {item.instruction for item in others}
    shared = [item for item in held_out if item.instruction in known]
    if shared:
        named = ", ".join(f"{item.id!r}: {item.instruction[:60]!r}" for item in shared[:LISTED])
        raise DataError(
            f"{len(shared)} of {len(held_out)} held-out rows are about an instruction that is also "
            f"{use} (letter case and white space ignored), for example {named}. The accuracy would "
            "be that of memory, or of the choice. Split by instruction: leave the column `split`, "
            "task.validation and task.test out, and the split goes by a hash of the prompt."
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

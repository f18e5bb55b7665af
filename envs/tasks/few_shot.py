"""Any task with solved examples in front of its instructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self, get_args

from instructrec.envs.tasks.base import (
    Instruction,
    Task,
    check_index,
    default_rewards,
    labels_of,
    make_task,
    register_task,
)
from instructrec.envs.tasks.partition import stable_hash
from instructrec.envs.tasks.procedural import fingerprint_of
from instructrec.envs.tasks.templates import FewShotStyle, add_examples
from instructrec.errors import ConfigError, DataError

_VERSION = 1  # part of every fingerprint: raised when examples are chosen otherwise
_GROUP = ("task", "family")


class FewShotTask:
    """A task whose instructions come behind solved examples of its training split.

    An instruction's examples are of its own task of a mixture and its own family. The same ones
    stand in front of all of them, but never the instruction itself, one with the same words, or one
    of the same ``item``: there the next one takes the place. Ids, columns and rewards stay.

    Args:
        task: The task, of any kind.
        train: Its training split, with references.
        shots: Examples, at least 1.
        style: ``text`` in front of the instruction, or ``turns`` of a conversation.
        seed: Chooses the examples.

    Raises:
        ConfigError: ``shots`` or ``style`` is none.
    """

    def __init__(
        self,
        task: Task,
        train: Task,
        *,
        shots: int = 2,
        style: FewShotStyle = "text",
        seed: int = 0,
    ) -> None:
        if type(shots) is not int or shots < 1:
            raise ConfigError(f"shots is a number of examples, 1 or more, not {shots!r}")
        if style not in get_args(FewShotStyle):
            raise ConfigError(
                f"style is {style!r}; expected one of {', '.join(get_args(FewShotStyle))}"
            )
        self.task, self.train = task, train
        self.shots, self.style, self.seed = shots, style, seed
        self.name, self.split, self.columns = task.name, task.split, task.columns
        self.rewards = default_rewards(task)
        self._order: dict[tuple[Any, ...], list[int]] = {}

    def __len__(self) -> int:
        return len(self.task)

    def __getitem__(self, index: int) -> Instruction:
        """Returns an item behind its examples.

        Raises:
            DataError: The training split has too few instructions with a reference.
        """
        item = self.task[check_index(index, len(self), self.name)]
        examples = []
        for other in self._candidates(_group(item.columns)):
            answer = _answer(other.columns)
            if answer is not None and not _gives_away(other, item):
                examples.append((other.prompt, answer))
            if len(examples) == self.shots:
                return replace(item, prompt=add_examples(item.prompt, examples, self.style))
        raise DataError(
            f"few_shot asks for {self.shots} examples; the training split of {self.train.name!r} "
            f"has {len(examples)} with a reference that fit instruction {item.id!r}. Ask for fewer."
        )

    def labels(self, index: int) -> Mapping[str, Any]:
        """Columns of an item as far as the task knows them without making it."""
        return labels_of(self.task, index)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the task and of everything that decides the examples."""
        return fingerprint_of(
            task=self.task.fingerprint,
            train=self.train.fingerprint,
            few_shot=_VERSION,
            shots=self.shots,
            style=self.style,
            seed=self.seed,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable but for what it remembers

    def _candidates(self, group: tuple[Any, ...]) -> Iterator[Instruction]:
        """Training instructions of a group, in an order that only the seed decides."""
        if not self._order:
            for i in range(len(self.train)):
                self._order.setdefault(_group(labels_of(self.train, i)), []).append(i)
            for places in self._order.values():
                places.sort(key=lambda i: stable_hash("few_shot", self.seed, i))
        return (self.train[i] for i in self._order.get(group, ()))


@register_task("few_shot")
def make_few_shot(
    *,
    split: str = "train",
    task: str = "closed_answers",
    options: Mapping[str, Any] | None = None,
    shots: int = 2,
    style: FewShotStyle = "text",
    seed: int = 0,
) -> Task:
    """Makes a task by its name and puts solved examples in front of its instructions.

    Args:
        split: Split of the task.
        task: As for `make_task`.
        options: Options of that task.
        shots: See `FewShotTask`.
        style: See `FewShotTask`.
        seed: See `FewShotTask`.

    Raises:
        ConfigError: As `make_task` and `FewShotTask`.
        DataError: The task's data cannot be used.
    """
    made = make_task(task, split=split, **(options or {}))
    train = made if split == "train" else make_task(task, split="train", **(options or {}))
    return FewShotTask(made, train, shots=shots, style=style, seed=seed)


def _group(columns: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(columns.get(name) for name in _GROUP)


def _answer(columns: Mapping[str, Any]) -> str | None:
    """The expected answer of an example, the first of several; None without any."""
    reference = columns.get("reference")
    if isinstance(reference, list | tuple) and reference:
        reference = reference[0]
    return reference if isinstance(reference, str) else None


def _gives_away(example: Instruction, item: Instruction) -> bool:
    own = item.columns.get("item")
    same_item = own is not None and own == example.columns.get("item")
    return example.id == item.id or example.prompt == item.prompt or same_item

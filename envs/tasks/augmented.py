"""A task whose instructions are worded in other ways, for training and for tests of robustness."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from instructrec.envs.tasks.base import (
    Instruction,
    Prompt,
    Task,
    check_index,
    check_split,
    default_rewards,
    labels_of,
    make_task,
    register_task,
)
from instructrec.envs.tasks.own_wordings import OwnWording, Transform
from instructrec.envs.tasks.partition import SPLITS, stable_hash
from instructrec.envs.tasks.procedural import fingerprint_of
from instructrec.envs.tasks.wordings import REWORDINGS
from instructrec.errors import ConfigError, unknown_name

KINDS = tuple(REWORDINGS)
"""Kinds of rewording that are built in: typos, casing, paraphrase, distractor, conflict, vague."""
KindLike = str | Transform
"""A built-in kind, or one of one's own: ``module:attr``, ``file.py:attr`` or the function."""
NONE = "none"
"""The label of an instruction that is as it was."""
_VERSION = 1  # part of every fingerprint: raised when a rewording changes


class AugmentedTask:
    """A task in other words: the answers stay, ``columns["augmentation"]`` names what was done.

    An instruction gets at most one kind of rewording. Which one, and how, is a function of the
    seed, the epoch and the instruction's index alone. What it is about, and the words of its
    columns ``reference``, ``item`` and ``keep``, are left as they are: the answer stays right.

    Args:
        task: The task, of any kind.
        kinds: Kind (`KindLike`) -> probability, 0 to 1, together at most 1; the rest stays as it
            was. A kind of one's own is called as ``function(text, generator)``, returns the text
            in other words, and is labelled with its name.
        seed: Chooses kinds and wordings.
        epochs: How often the instructions come one after the other, differently worded each time:
            item i is instruction ``i mod n`` in epoch ``i div n``. Ids of later epochs end in
            ``@epoch``.

    Raises:
        ConfigError: A kind is unknown, or the probabilities or epochs are impossible.
        DataError: From an item: a kind of one's own raised, or returned no text.
    """

    def __init__(
        self, task: Task, *, kinds: Mapping[Any, float], seed: int = 0, epochs: int = 1
    ) -> None:
        if type(epochs) is not int or epochs < 1:
            raise ConfigError(f"epochs is an integer >= 1, not {epochs!r}")
        self.task = task
        self.kinds, self._own = _read_kinds(kinds)
        self.seed, self.epochs = seed, epochs
        self.name, self.split = task.name, task.split
        self.columns = tuple(dict.fromkeys((*task.columns, "augmentation")))
        self.rewards = default_rewards(task)

    def __len__(self) -> int:
        return len(self.task) * self.epochs

    def __getitem__(self, index: int) -> Instruction:
        index = check_index(index, len(self), self.name)
        epoch, place = divmod(index, len(self.task))
        item = reworded(self.task[place], self.kinds, self.seed, epoch, place, self._own)
        return replace(item, id=f"{item.id}@{epoch}") if epoch else item

    def labels(self, index: int) -> Mapping[str, Any]:
        """Columns of an item as far as the task knows them without making it."""
        return labels_of(self.task, index % len(self.task))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the task and of everything that decides the wordings."""
        own = {name: wording.identity for name, wording in self._own.items()}
        order = list(self.kinds)  # a draw goes to the first kind that it falls to
        is_usual = order == [*(kind for kind in KINDS if kind in self.kinds), *sorted(own)]
        return fingerprint_of(
            task=self.task.fingerprint,
            augmentation=_VERSION,
            kinds=self.kinds,
            seed=self.seed,
            epochs=self.epochs,
            **({"own": own} if own else {}),
            **({} if is_usual else {"order": order}),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable


@register_task("augmented")
def make_augmented(
    *,
    split: str = "train",
    task: str = "closed_answers",
    options: Mapping[str, Any] | None = None,
    kinds: Mapping[Any, float] | Sequence[KindLike] = KINDS,
    probability: float = 0.5,
    seed: int = 0,
    epochs: int = 1,
    splits: Sequence[str] = ("train",),
) -> Task:
    """Makes a task by its name and augments it.

    Args:
        split: Split of the task.
        task: As for `make_task`.
        options: Options of that task.
        kinds: Kind (`KindLike`) -> probability, or kinds that share ``probability`` equally.
        probability: Share of the instructions that are reworded, where no mapping is given.
        seed: See `AugmentedTask`.
        epochs: See `AugmentedTask`.
        splits: Splits that are reworded; the others keep their words, so that validation measures
            the task itself.

    Raises:
        ConfigError: As `make_task` and `AugmentedTask`.
        DataError: The task's data cannot be used.
    """
    for name in splits:
        check_split(name, SPLITS)
    if not kinds:
        raise ConfigError(f"kinds is empty: expected one or more of {', '.join(KINDS)}.")
    if not isinstance(kinds, Mapping):
        if isinstance(kinds, str) or callable(kinds):
            raise ConfigError(
                f"kinds = {kinds!r}: expected a list, e.g. [typos, file.py:function], or a mapping "
                "from kinds to probabilities."
            )
        for kind in kinds:
            find_kind(kind)  # refuses what could not be a key
        kinds = {kind: probability / len(kinds) for kind in kinds}
    is_reworded = split in splits
    made = make_task(task, split=split, **(options or {}))
    chosen = kinds if is_reworded else {}
    _read_kinds(kinds)
    return AugmentedTask(made, kinds=chosen, seed=seed, epochs=epochs if is_reworded else 1)


def reworded(
    item: Instruction,
    kinds: Mapping[str, float],
    seed: int,
    epoch: int,
    index: int,
    own: Mapping[str, OwnWording] = MappingProxyType({}),
) -> Instruction:
    """Returns an instruction with at most one rewording, labelled; see `AugmentedTask`."""
    random = Random(stable_hash("augmentation", seed, epoch, index))
    drawn, label, prompt = random.random(), NONE, item.prompt
    for kind, probability in kinds.items():
        if drawn < probability:
            prompt = _reword_prompt(own.get(kind, kind), item, random)
            label = NONE if prompt == item.prompt else kind
            break
        drawn -= probability
    return replace(item, prompt=prompt, columns={**item.columns, "augmentation": label})


def _reword_prompt(kind: str | OwnWording, item: Instruction, random: Random) -> Prompt:
    """Rewords a text, or the last message of a conversation."""
    if isinstance(item.prompt, str):
        return _reword_text(kind, item.prompt, item, random)
    *before, last = item.prompt
    content: Any = last["content"]
    if last["role"] != "user" or not isinstance(content, str):
        return item.prompt
    return (*before, {**last, "content": _reword_text(kind, content, item, random)})


def _reword_text(kind: str | OwnWording, text: str, item: Instruction, random: Random) -> str:
    if isinstance(kind, OwnWording):
        return kind.reword(text, np.random.default_rng(random.getrandbits(64)), item.id)
    return REWORDINGS[kind](text, _words_to_keep(item.columns), random)


def _words_to_keep(columns: Mapping[str, Any]) -> frozenset[str]:
    texts: list[str] = []
    for name in ("reference", "item", "keep"):
        value = columns.get(name)
        values = [value] if isinstance(value, str) else value
        texts += [text for text in values or () if isinstance(text, str)]
    return frozenset(word.lower() for text in texts for word in re.findall(r"[^\W\d_]+", text))


def _read_kinds(kinds: Mapping[Any, float]) -> tuple[dict[str, float], dict[str, OwnWording]]:
    """Returns label -> probability, and label -> rewording for those of one's own."""
    probabilities: dict[str, float] = {}
    own: dict[str, OwnWording] = {}
    for kind, probability in kinds.items():
        made = find_kind(kind)
        label = made if isinstance(made, str) else made.name
        if label in probabilities:
            raise ConfigError(f"two kinds are called {label!r}: rename one of the functions.")
        if not isinstance(probability, int | float) or not 0 <= probability <= 1:
            raise ConfigError(f"kinds.{label} = {probability!r}: expected a number from 0 to 1.")
        probabilities[label] = probability
        if isinstance(made, OwnWording):
            own[label] = made
    if sum(probabilities.values()) > 1 + 1e-9:
        raise ConfigError(
            f"the probabilities of {probabilities} add up to {sum(probabilities.values()):g}: "
            "expected at most 1, since an instruction is reworded in one way only."
        )
    return probabilities, own


def find_kind(kind: KindLike) -> str | OwnWording:
    """Returns a built-in kind by its name, or makes one from a function of one's own.

    Raises:
        ConfigError: There is none of this name, it is no such function, or it has the name of a
            built-in kind.
    """
    if isinstance(kind, str) and kind in REWORDINGS:
        return kind
    if isinstance(kind, str) and ":" not in kind:
        raise ConfigError(
            unknown_name("kind of augmentation", kind, KINDS)
            + " Your own is given as 'module:function' or 'file.py:function'."
        )
    made = OwnWording(kind)
    if made.name in (*KINDS, NONE):
        raise ConfigError(
            f"augmentation {kind!r} is called {made.name!r}, which means something else in the "
            "column 'augmentation': rename the function."
        )
    return made

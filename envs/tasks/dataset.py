"""Instructions from a data file or a Hugging Face data set."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from instructrec.envs.tasks.base import Instruction, check_index, check_split
from instructrec.envs.tasks.catalog import Catalog, load_catalog
from instructrec.envs.tasks.files import KEPT_BYTES
from instructrec.envs.tasks.filters import Filters
from instructrec.envs.tasks.hub import HUB_PREFIX, HubDataset
from instructrec.envs.tasks.partition import SPLITS
from instructrec.envs.tasks.preparation import Preparation
from instructrec.envs.tasks.procedural import fingerprint_of
from instructrec.envs.tasks.templates import FewShotStyle, find_template
from instructrec.errors import ConfigError, EmptySplitError

ALL = "all"
"""The split that holds every row of a file."""

OnBadRow = Literal["raise", "skip"]
"""What happens when a row cannot be used."""


class DatasetTask:
    """The rows of a data set, in their order.

    A row has ``prompt`` (a string, or a list of chat messages) or ``messages``; ``reference`` (one
    expected answer or a list of them) or ``references`` (a list), unless the rewards need none; and
    any other columns, which the rewards receive. Other usual shapes (`shapes`) are recognised.
    ``id`` must be unique where given, else it is made from the prompt and the reference.

    Without a ``split`` column a row's split follows from a hash of its prompt (letter case and
    white space ignored): equal prompts stay together and adding a row moves no other row.

    Args:
        path: A ``.jsonl``, ``.json`` (a list of objects), ``.csv`` or ``.parquet`` file, a folder
            written by ``save_to_disk``, or ``hf:`` and an id of the Hugging Face hub.
        split: ``train``, ``validation``, ``test``, or ``all``.
        validation_fraction: Share of the rows, 0 to 1; for data without a ``split`` column.
        test_fraction: Likewise.
        columns: Our name -> the data's name, e.g. ``{"prompt": "question"}``; ``a.b`` is the
            entry ``b`` of the objects in ``a``.
        template: Makes the instruction: a name (`list_templates`) or a text with columns in
            braces, e.g. ``"Translate into {language}: {prompt}"``.
        few_shot: Number of solved examples in front of every instruction. They are training rows,
            chosen by hash, and leave the training split.
        few_shot_style: ``text``, or ``turns`` of a conversation.
        filters: Which rows are left out: keys of `Filters`.
        split_by: What the split is hashed from: ``prompt``, ``id`` or a column, whose equal values
            then stay together.
        on_bad_row: ``raise``, or ``skip`` rows that cannot be used; ``catalog`` counts them.
        subset: Configuration of a data set of the hub.
        revision: Branch, tag or commit of a data set of the hub.
        splits: Our split -> the name of the data set's, for those of the hub and saved folders.

    Raises:
        DataError: The data cannot be read, or a row is malformed (file and line are named).
        EmptySplitError: The split is empty.
        ConfigError: An unknown split, template, filter or column, or impossible fractions.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str = "train",
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
        columns: Mapping[str, str] | None = None,
        template: str | None = None,
        few_shot: int = 0,
        few_shot_style: FewShotStyle = "text",
        filters: Mapping[str, Any] | None = None,
        split_by: str = "prompt",
        on_bad_row: OnBadRow = "raise",
        subset: str | None = None,
        revision: str | None = None,
        splits: Mapping[str, str] | None = None,
    ) -> None:
        self.split = check_split(split, (*SPLITS, ALL))
        self.fractions = _check_fractions(validation_fraction, test_fraction)
        self.preparation = Preparation(
            columns=_check_columns(columns),
            template=None if template is None else find_template(template),
            filters=Filters.from_mapping(filters),
            split_by=split_by,
            fractions=self.fractions,
            few_shot=_check_few_shot(few_shot),
            few_shot_style=_check_choice("few_shot_style", few_shot_style, get_args(FewShotStyle)),
            skip_bad_rows=_check_choice("on_bad_row", on_bad_row, get_args(OnBadRow)) == "skip",
        )
        self.name = _name_of(str(path))
        self.catalog = _open(str(path), self.preparation, subset, revision, splits)
        self._positions = self.catalog.positions(None if split == ALL else split)
        self._kept: dict[int, Instruction] = {}
        self.columns = self.catalog.columns
        if not len(self._positions):
            raise EmptySplitError(self._why_empty())

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Instruction:
        index = check_index(index, len(self._positions), self.name)
        item = self._kept.get(index)
        if item is None:
            item = self.catalog.instruction(int(self._positions[index]))
            if self.catalog.source.num_bytes <= KEPT_BYTES:
                self._kept[index] = item
        return item

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the items: the data, the split, the options."""
        facts: dict[str, Any] = {"split": self.split, "fractions": self.fractions}
        preparation = self.preparation
        if preparation != Preparation(fractions=self.fractions):
            # The rows that filters left, since a tokenizer's name does not say what it counts.
            facts["rows"] = hashlib.sha256(self._positions.tobytes()).hexdigest()
            facts["preparation"] = repr(preparation)
        return fingerprint_of(data=self.catalog.digest, **facts)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable

    def _why_empty(self) -> str:
        catalog = self.catalog
        found = ", ".join(f"{number} {name}" for name, number in catalog.counts.items())
        left_out = {"unusable": catalog.num_bad} | dict(catalog.filtered)
        for reason, number in left_out.items():
            found += f", {number} left out ({reason})" if number else ""
        return (
            f"{catalog.source.origin}: the split {self.split!r} is empty; the {len(catalog)} rows "
            f"are {found}. "
            + "".join(f"The first unusable one: {message}. " for message in catalog.bad_rows[:1])
            + "Add rows, change validation_fraction and test_fraction, or use split='all'."
        )


def _open(path: str, preparation: Preparation, *hub_options: Any) -> Catalog:
    if path.startswith(HUB_PREFIX) or Path(path).expanduser().is_dir():
        source = HubDataset(path, *hub_options)
        return Catalog(source, preparation, source.digest())
    if any(option is not None for option in hub_options):
        raise ConfigError(f"{path} is a file: subset, revision and splits are for other data sets")
    return load_catalog(Path(path).expanduser(), preparation)


def _name_of(path: str) -> str:
    """A short name that can name a file."""
    stem = path.removeprefix(HUB_PREFIX) if path.startswith(HUB_PREFIX) else Path(path).stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("_") or "data"


def _check_columns(columns: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    pairs = tuple((columns or {}).items()) if isinstance(columns, Mapping | None) else None
    if pairs is None or not all(isinstance(name, str) and name for pair in pairs for name in pair):
        raise ConfigError(
            f"columns is {columns!r}; expected our names with the data's, e.g. "
            "{prompt: question, reference: answer}"
        )
    return pairs


def _check_few_shot(number: int) -> int:
    if type(number) is not int or number < 0:
        raise ConfigError(f"few_shot is a number of examples, 0 or more, not {number!r}")
    return number


def _check_choice(name: str, value: Any, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    return value


def _check_fractions(validation: float, test: float) -> tuple[float, float]:
    for name, value in (("validation_fraction", validation), ("test_fraction", test)):
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(f"{name} is a share between 0 and 1, not {value!r}")
    if validation + test > 1:
        raise ConfigError(
            f"validation_fraction + test_fraction is {validation + test:g}; it may be at most 1"
        )
    return float(validation), float(test)

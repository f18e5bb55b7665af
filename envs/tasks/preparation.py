"""From a row of data to something to ask: columns renamed, shape recognised, template filled in."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from instructrec.envs.tasks.base import Prompt
from instructrec.envs.tasks.filters import Filters
from instructrec.envs.tasks.partition import SPLITS, stable_hash
from instructrec.envs.tasks.rows import excerpt
from instructrec.envs.tasks.shapes import map_columns, read_sample
from instructrec.envs.tasks.templates import FewShotStyle, Template
from instructrec.errors import DataError, did_you_mean

VALIDATION_NAMES = {"validation", "val", "valid", "dev"}
"""What the split ``validation`` may be called in data."""


@dataclass(frozen=True)
class Preparation:
    """How rows become instructions, and which of them stay."""

    columns: tuple[tuple[str, str], ...] = ()
    """New name -> the file's name."""
    template: Template | None = None
    """What makes the instruction; None takes the row's own."""
    filters: Filters = Filters()
    """Which rows are left out."""
    split_by: str = "prompt"
    """What the split is hashed from: ``prompt``, ``id`` or a column."""
    fractions: tuple[float, float] = (0.1, 0.1)
    """Shares of validation and test."""
    few_shot: int = 0
    """Solved examples in front of every instruction."""
    few_shot_style: FewShotStyle = "text"
    """How they are shown."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be used, instead of refusing the file."""


@dataclass(frozen=True)
class Prepared:
    """One row, ready to be asked."""

    prompt: Prompt
    """The instruction, after the template."""
    columns: dict[str, Any]
    """What the rewards see; ``reference`` where the row has one."""
    given_id: str | None
    """The row's own id."""
    asked: Prompt | tuple[str, ...]
    """The instruction before the template, or the columns that the template makes it of."""
    fields: Mapping[str, Any]
    """The row's columns after renaming."""
    shape: str
    """How the row was read: one of `SHAPES`, or ``template``."""

    @property
    def made_id(self) -> int:
        """A hash (64 bits) of what is asked and the reference."""
        return stable_hash(self.asked, self.reference)

    @cached_property
    def prompt_hash(self) -> int:
        """A hash (64 bits) of what is asked, letter case and white space ignored."""
        return stable_hash("split", *map(canonical_text, _texts_of(self.asked)))

    @property
    def reference(self) -> str | list[str] | None:
        """The expected answer or answers."""
        return self.columns.get("reference")


def prepare(
    fields: dict[str, Any], preparation: Preparation, *, text_cells: bool = False
) -> Prepared:
    """Reads one row.

    Args:
        fields: Column -> value, as the file has them.
        preparation: What becomes of them.
        text_cells: All values are text; lists are written as JSON.

    Raises:
        DataError: The row cannot be used; the message does not say which row it is.
    """
    fields = map_columns(fields, dict(preparation.columns))
    template = preparation.template
    makes_prompt = template is not None and not template.takes_prompt
    sample = read_sample(fields, text_cells=text_cells, without_prompt=makes_prompt)
    prompt = sample.prompt if template is None else template.render(sample.prompt, fields)
    assert prompt is not None, "read_sample gives a prompt, or the template makes one"
    asked: Prompt | tuple[str, ...] = sample.prompt or ()
    if makes_prompt and template is not None:
        asked = tuple(str(fields[name]) for name in sorted(template.variables))
    columns = dict(sample.others)
    if sample.reference is not None:
        columns["reference"] = sample.reference
    given = fields.get("id")
    return Prepared(
        prompt=prompt,
        columns=columns,
        given_id=None if given is None else str(given),
        asked=asked,
        fields=fields,
        shape=sample.shape or "template",
    )


def canonical_text(text: str) -> str:
    """Returns a text by which equal instructions are known: NFKC, no letter case, single spaces."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.casefold().split())


def split_of(row: Prepared, preparation: Preparation, *, lacks_validation: bool = False) -> int:
    """Returns the number of a row's split, in `SPLITS`: the one it names, or by a hash.

    Args:
        row: The row.
        preparation: What the hash is of, and the shares.
        lacks_validation: The rows name splits, but none for validation: a share of the training
            rows is taken by hash.

    Raises:
        DataError: It names an unknown split, or lacks what the split is hashed from.
    """
    given = row.fields.get("split")
    if given is None:
        validation, test = preparation.fractions
        position = _position(row, preparation.split_by)
        if position < test:
            return SPLITS.index("test")
        return SPLITS.index("validation" if position < test + validation else "train")
    split = "validation" if str(given) in VALIDATION_NAMES else given
    if split not in SPLITS:
        raise DataError(
            f"the split is {excerpt(repr(given))}; expected one of {', '.join(SPLITS)} in "
            "every row (or no 'split' column: rows are then split by a hash of the prompt)"
        )
    if lacks_validation and split == "train":
        position = _position(row, preparation.split_by)
        split = "validation" if position < preparation.fractions[0] else "train"
    return SPLITS.index(split)


def _position(row: Prepared, by: str) -> float:
    """Where a row's hash lies, in [0, 1)."""
    if by == "prompt":
        return row.prompt_hash / 2**64
    if row.fields.get(by) is None:
        raise DataError(
            f"split_by is {by!r}, but the row has no value there.{did_you_mean(by, row.fields)} "
            f"Its columns are {list(row.fields)}"
        )
    return stable_hash("split", row.fields[by]) / 2**64


def _texts_of(asked: Prompt | tuple[str, ...]) -> tuple[str, ...]:
    """The texts of a prompt, of a conversation, or of the columns that a template names."""
    if isinstance(asked, str):
        return (asked,)
    return tuple(part if isinstance(part, str) else part["content"] for part in asked)

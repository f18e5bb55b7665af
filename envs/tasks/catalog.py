"""What one reading of a data set found: which rows are usable, in which split, under which id.

Beside the file's index it keeps a byte for each row (and four more where rows come twice); while it
is made, it holds some 25 bytes for each.
"""

from __future__ import annotations

import weakref
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.envs.tasks.base import Instruction, Prompt
from instructrec.envs.tasks.files import Source, file_digest, open_file
from instructrec.envs.tasks.identities import count_copies, first_of_each, id_hash, is_among
from instructrec.envs.tasks.partition import SPLITS
from instructrec.envs.tasks.preparation import Preparation, Prepared, prepare, split_of
from instructrec.envs.tasks.rows import Row
from instructrec.envs.tasks.templates import add_examples
from instructrec.errors import DataError

LISTED = 20
"""Most unusable rows whose messages are kept."""

_BAD, _FILTERED = 254, 255  # beside the numbers of SPLITS
_HAS_REFERENCE, _GIVEN_ID, _HAS_SPLIT = 1, 2, 4
_REWARD_ARGUMENTS = {"prompts": "the instructions", "completions": "the responses"}


class Catalog:
    """The rows of a source that a preparation leaves.

    Args:
        source: Where the rows are.
        preparation: What becomes of them.
        digest: SHA-256 (hex) of the source's content.

    Raises:
        DataError: A row cannot be used and is not to be skipped, or the rows do not fit together.
    """

    def __init__(self, source: Source, preparation: Preparation, digest: str) -> None:
        self.source, self.preparation, self.digest = source, preparation, digest
        self.filtered: Counter[str] = Counter()  # reason -> rows left out
        self.shapes: Counter[str] = Counter()  # shape -> rows
        self.num_bad = 0
        self.bad_rows: list[str] = []  # the first messages
        self._names: dict[str, None] = {}
        self._first: dict[str, str] = {}  # what rows may lack -> the first place where they do
        scanned = array("B"), array("B"), array("Q"), array("Q")
        for row in source.scan():
            for column, value in zip(scanned, self._take(row), strict=True):
                column.append(value)
        if not scanned[0]:
            raise DataError(f"data file {source.origin} is empty: expected at least one row")
        self.splits, flags, ids, prompts = (
            np.frombuffer(column, dtype=f"u{column.itemsize}") for column in scanned
        )
        self._check_complete(flags)
        self._leave_out_duplicates(prompts)
        self._examples = self._choose_examples(prompts)
        del scanned, prompts  # before the next arrays of their size
        self._copies = self._check_ids(ids, flags)
        self.columns = self._check_columns()

    def __len__(self) -> int:
        return len(self.splits)

    @property
    def counts(self) -> dict[str, int]:
        """Split -> number of usable rows."""
        return {name: int((self.splits == i).sum()) for i, name in enumerate(SPLITS)}

    def positions(self, split: str | None) -> Any:
        """Returns the numbers (uint32) of a split's rows in order; of all usable rows for None."""
        wanted = self.splits < _BAD if split is None else self.splits == SPLITS.index(split)
        return np.flatnonzero(wanted).astype(np.uint32)

    def prepared(self, position: int) -> Prepared:
        """Reads a row again."""
        fields = self.source.read(position)
        return prepare(fields, self.preparation, text_cells=self.source.text_cells)

    def instruction(self, position: int) -> Instruction:
        """Returns a row as an instruction."""
        row = self.prepared(position)
        prompt = row.prompt
        if self._examples:
            prompt = add_examples(prompt, self._examples, self.preparation.few_shot_style)
        copy = 1 if self._copies is None else int(self._copies[position])
        columns = {name: row.columns.get(name) for name in self.columns}
        return Instruction(_name(row, copy), prompt, columns)

    def _take(self, row: Row | DataError) -> tuple[int, int, int, int]:
        """Returns what is to be remembered of a row: split, flags, and hashes of id and prompt."""
        if isinstance(row, DataError):
            return self._refuse(str(row))
        preparation = self.preparation
        try:
            prepared = prepare(row.fields, preparation, text_cells=self.source.text_cells)
            lacks_validation = self.source.lacks_validation
            split = split_of(prepared, preparation, lacks_validation=lacks_validation)
        except DataError as error:
            return self._refuse(f"{row.where}: {error}")
        self.shapes[prepared.shape] += 1
        reason = preparation.filters.reason(prepared.prompt, prepared.reference)
        if reason is not None:
            self.filtered[reason] += 1
            return _FILTERED, 0, 0, 0
        self._names |= dict.fromkeys(prepared.columns)
        flags = _GIVEN_ID if prepared.given_id is not None else 0
        for flag, name, value in (
            (_HAS_REFERENCE, "reference", prepared.reference),
            (_HAS_SPLIT, "split", prepared.fields.get("split")),
        ):
            if value is None:
                self._first.setdefault(name, row.where)
            else:
                flags |= flag
        return split, flags, id_hash(prepared.given_id, prepared.made_id), prepared.prompt_hash

    def _refuse(self, message: str) -> tuple[int, int, int, int]:
        if not self.preparation.skip_bad_rows:
            raise DataError(
                f"{message.removesuffix('.')}. `instructrec data check {self.source.origin}` lists "
                "every such row, and the option on_bad_row: skip leaves them out."
            )
        self.num_bad += 1
        if len(self.bad_rows) < LISTED:
            self.bad_rows.append(message)
        return _BAD, 0, 0, 0

    def _check_complete(self, flags: Any) -> None:
        """Refuses rows that lack what other rows have: a reference, a split."""
        for flag, name, message in (
            (
                _HAS_REFERENCE,
                "reference",
                "expected either 'reference' or 'references', found neither, but other rows have "
                "one",
            ),
            (
                _HAS_SPLIT,
                "split",
                f"the split is None; expected one of {', '.join(SPLITS)} in every row, because "
                "other rows have one",
            ),
        ):
            usable = self.splits < _BAD
            lacking = usable & (flags & flag == 0)
            if lacking.any() and (usable & (flags & flag != 0)).any():
                self._refuse(f"{self._first[name]}: {message}")
                self.num_bad += int(lacking.sum()) - 1
                self.splits[lacking] = _BAD

    def _leave_out_duplicates(self, prompts: Any) -> None:
        """Counts the rows whose instruction came before, and leaves them out where asked."""
        usable = self.positions(None)
        again = usable[~first_of_each(self._usable(prompts))]
        self.num_duplicates = len(again)
        train = self.splits == SPLITS.index("train")
        self.num_leaked = int(
            is_among(prompts[(self.splits < _BAD) & ~train], prompts[train]).sum()
        )
        if self.preparation.filters.drop_duplicates and len(again):
            self.splits[again] = _FILTERED
            self.filtered["drop_duplicates"] = len(again)

    def _check_ids(self, ids: Any, flags: Any) -> Any:
        """Refuses ids that come twice; returns the number of each copy, None without any."""
        usable = self.positions(None)
        given = self._usable(flags) & _GIVEN_ID != 0
        copies, suspects = count_copies(self._usable(ids), given)
        if copies is None:
            return None
        numbers = np.ones(len(self), dtype=np.uint32)
        numbers[usable] = copies
        seen: dict[str, int] = {}
        for position in usable[suspects].tolist():
            id_ = _name(self.prepared(position), int(numbers[position]))
            if id_ in seen:
                self._refuse(self._same_id(id_, position, seen[id_]))
                self.splits[position] = _BAD
            seen.setdefault(id_, position)
        return numbers

    def _usable(self, column: Any) -> Any:
        """The entries of the usable rows; no copy where that is all of them."""
        wanted = self.splits < _BAD
        return column if wanted.all() else column[wanted]

    def _same_id(self, id_: str, position: int, before: int) -> str:
        """Says where an id came twice, for which the data is read again."""
        if len(self.bad_rows) == LISTED:
            return ""  # counted, not told
        places = {}
        for i, row in enumerate(self.source.scan()):
            if i in (position, before) and isinstance(row, Row):
                places[i] = row.where
            if i == position:
                break
        return (
            f"{places[position]}: the id {id_!r} was used before, in {places[before]}; ids must be "
            "unique (leave them out to have them made)"
        )

    def _check_columns(self) -> tuple[str, ...]:
        """Returns the names of the columns that the rewards will see."""
        for name, meaning in _REWARD_ARGUMENTS.items():
            if name in self._names:
                raise DataError(
                    f"{self.source.origin} has a column {name!r}, which is what rewards call "
                    f"{meaning}; rename it."
                )
        first = ["reference"] if "reference" in self._names else []
        return (*first, *(name for name in self._names if name != "reference"))

    def _choose_examples(self, prompts: Any) -> list[tuple[Prompt, str]]:
        """Takes solved examples out of the training rows: those with the largest hashes.

        So they depend on no order, and all rows with the same instruction leave with them.
        """
        wanted = self.preparation.few_shot
        if not wanted:
            return []
        train = self.splits == SPLITS.index("train")
        candidates = np.unique(prompts[train])
        others = prompts[(self.splits < _BAD) & ~train]
        candidates = candidates[~is_among(candidates, others)]
        chosen = candidates[-wanted:]
        if len(chosen) < wanted or "reference" not in self._names:
            raise DataError(
                f"few_shot asks for {wanted} examples; the training split of "
                f"{self.source.origin} has {len(candidates)} instructions of its own"
                + ("" if "reference" in self._names else ", and no reference")
            )
        examples = []
        for value in reversed(chosen.tolist()):
            (places,) = np.nonzero(train & (prompts == value))
            row = self.prepared(int(places[0]))
            answer = row.reference if isinstance(row.reference, str) else (row.reference or [""])[0]
            examples.append((row.prompt, answer))
            self.splits[places] = _FILTERED
            self.filtered["few_shot"] += len(places)
        return examples


def _name(row: Prepared, copy: int) -> str:
    if row.given_id is not None:
        return row.given_id
    return f"{row.made_id:016x}" + (f"-{copy}" if copy > 1 else "")


_kept: weakref.WeakValueDictionary[tuple[Any, ...], Catalog] = weakref.WeakValueDictionary()


def load_catalog(path: Path, preparation: Preparation) -> Catalog:
    """Reads a data file, or takes what another split of the same content has read.

    Raises:
        DataError: The file or a row of it cannot be used.
        ConfigError: The file has an ending that is not known.
    """
    if not path.is_file():
        open_file(path)  # says what is wrong
    version, digest = _version_of(path), file_digest(path)
    key = (path.resolve(), version, digest, preparation)
    catalog = _kept.get(key)
    if catalog is None:
        catalog = Catalog(open_file(path), preparation, digest)
        if _version_of(path) != version:
            raise DataError(f"{path} changed while it was read; try again when it is complete")
        _kept[key] = catalog
    return catalog


def _version_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns

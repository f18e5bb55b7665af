"""Data sets in Hugging Face's own form: a folder saved with ``save_to_disk``, or an id of the hub.

Both are memory-mapped by the library ``datasets``, which is imported on first use.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from instructrec.envs.tasks.partition import SPLITS
from instructrec.envs.tasks.preparation import VALIDATION_NAMES
from instructrec.envs.tasks.rows import Row, excerpt
from instructrec.errors import ConfigError, DataError, unknown_name

HUB_PREFIX = "hf:"
"""What an id of the hub is given with, e.g. ``hf:openai/gsm8k``."""

_MARKS = ("dataset_dict.json", "dataset_info.json", "state.json")


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return path.is_dir() and any((path / name).is_file() for name in _MARKS)


class HubDataset:
    """The rows of a data set of the library ``datasets``.

    Of a data set in several splits, each row gets the column ``split``, unless it has one. Where
    none of them is for validation, a share of the training rows is taken by hash.

    Args:
        spec: A folder, or ``hf:`` and what ``load_dataset`` takes: an id of the hub or a folder of
            data files.
        subset: The configuration, for data sets that have several.
        revision: Branch, tag or commit on the hub.
        splits: Our split -> the data set's, e.g. ``{"train": "train_sft"}``; others are left out.

    Raises:
        DataError: It cannot be loaded.
        ConfigError: The folder is no data set, an option does not belong to it, or a split is
            unknown.
    """

    text_cells = False

    def __init__(
        self,
        spec: str,
        subset: str | None = None,
        revision: str | None = None,
        splits: Mapping[str, str] | None = None,
    ) -> None:
        self.origin = spec
        self._parts = _load(spec, subset, revision)
        self._named = splits is not None or len(self._parts) > 1
        if splits is not None:
            self._parts = _chosen(self._parts, splits, spec)
        names = {name for name, _ in self._parts}
        self.lacks_validation = self._named and not names & VALIDATION_NAMES
        self._starts = [0]
        for _, part in self._parts:
            self._starts.append(self._starts[-1] + len(part))
        self.num_bytes = sum(part.data.nbytes for _, part in self._parts)

    def digest(self) -> str:
        """Returns the SHA-256 (hex) of all rows, the same on every machine."""
        found = hashlib.sha256()
        for row in self.scan():
            text = json.dumps(row.fields, sort_keys=True, default=repr)
            found.update(text.encode("utf-8") + b"\n")
        return found.hexdigest()

    def scan(self) -> Iterator[Row]:
        """Yields the rows of all splits, one split after the other."""
        for name, part in self._parts:
            place = f"{self.origin} split {name!r}" if name else self.origin
            for position, fields in enumerate(part):
                yield Row(self._with_split(fields, name), f"{place} row {position}")

    def read(self, position: int) -> dict[str, Any]:
        """Returns one row."""
        for (name, part), start, end in zip(
            self._parts, self._starts, self._starts[1:], strict=False
        ):
            if start <= position < end:
                return self._with_split(part[position - start], name)
        raise IndexError(position)

    def _with_split(self, fields: dict[str, Any], name: str) -> dict[str, Any]:
        return {"split": name, **fields} if self._named else fields


def _chosen(
    parts: list[tuple[str, Any]], splits: Mapping[str, str], spec: str
) -> list[tuple[str, Any]]:
    """Returns the parts that ``splits`` names, under our names."""
    found = dict(parts)
    if not isinstance(splits, Mapping) or not splits or not {*splits} <= {*SPLITS}:
        raise ConfigError(
            f"splits is {splits!r}; expected {', '.join(SPLITS)} with the data set's names, e.g. "
            "{train: train_sft}"
        )
    for name in splits.values():
        if name not in found:
            raise ConfigError(f"{spec}: {unknown_name('split', str(name), found)}")
    return [(ours, found[theirs]) for ours, theirs in splits.items()]


def _load(spec: str, subset: str | None, revision: str | None) -> list[tuple[str, Any]]:
    """Returns the splits with their names, in order."""
    import datasets

    if not spec.startswith(HUB_PREFIX):
        path = Path(spec).expanduser()
        if not is_saved_dataset(path):
            raise ConfigError(
                f"the folder {spec} is no saved data set: it holds none of {', '.join(_MARKS)}. "
                f"A folder of data files is given as {HUB_PREFIX}{spec}"
            )
        if subset or revision:
            raise ConfigError(f"{spec} is a folder: subset and revision belong to {HUB_PREFIX} ids")
        try:
            loaded = datasets.load_from_disk(str(path))
        except Exception as error:  # the library raises many kinds for damaged folders
            raise DataError(f"{spec} cannot be read: {_first_line(error)}") from error
    else:
        if spec == HUB_PREFIX:
            raise ConfigError(
                f"{spec!r} names no data set: expected {HUB_PREFIX} and an id of the hub, e.g. "
                f"{HUB_PREFIX}openai/gsm8k."
            )
        try:
            loaded = datasets.load_dataset(spec.removeprefix(HUB_PREFIX), subset, revision=revision)
        except Exception as error:  # no network, no such id, no such subset, a damaged file...
            raise DataError(
                f"{spec} cannot be loaded: {_first_line(error)} Check the id and the network; what "
                "was loaded once is kept (HF_HUB_OFFLINE=1 uses that), and a folder written by "
                "save_to_disk needs no network."
            ) from error
    if isinstance(loaded, datasets.DatasetDict):
        return list(loaded.items())
    return [("", loaded)]


def _first_line(error: Exception) -> str:
    text = excerpt(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
    return text if text.endswith(".") else f"{text}."

"""Rows of a data file one after the other, however large the file is."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from instructrec.errors import ConfigError, DataError, did_you_mean
from instructrec.rewards.check_samples import PROMPT_COLUMNS, RESPONSE_COLUMNS

SUFFIXES = (".jsonl", ".csv", ".parquet")
"""Endings of files that can be read row by row."""


@dataclass(frozen=True)
class Streamed:
    """One row."""

    fields: dict[str, Any]
    """Column -> value."""
    done: float
    """Share of the file read so far, 0 to 1."""


def stream_rows(path: Path) -> Iterator[Streamed]:
    """Yields the rows of a JSONL, CSV or Parquet file without holding them all.

    Raises:
        ConfigError: Another kind of file.
        DataError: It is missing, or a row of it cannot be read; the message names the line.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"data file {path}: expected a name ending in {', '.join(SUFFIXES)}.")
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f"there is no data file {path}.{did_you_mean(path.name, beside)}")
    return reader(path)


def _jsonl(path: Path) -> Iterator[Streamed]:
    size = max(path.stat().st_size, 1)
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object, found {type(row).__name__}")
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path} line {number}: {error}.") from error
            yield Streamed(row, file.tell() / size)


def _csv(path: Path) -> Iterator[Streamed]:
    size = max(path.stat().st_size, 1)
    with open(path, "rb") as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(text, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path} line {reader.line_num}: another number of fields than the header "
                        f"names ({len(reader.fieldnames or [])})."
                    )
                yield Streamed(dict(row), _position(raw) / size)
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}, after line {reader.line_num}: {error}.") from error


def _position(raw: BinaryIO) -> int:
    return raw.tell()


def _parquet(path: Path) -> Iterator[Streamed]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(path)
        total, done = max(file.metadata.num_rows, 1), 0
        for batch in file.iter_batches(batch_size=256):
            for row in batch.to_pylist():
                done += 1
                yield Streamed(row, done / total)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file: {error}.") from error


@dataclass(frozen=True)
class Layout:
    """Where a file keeps instructions and responses."""

    prompt: str | None
    """Column of the instructions; None where the file has none."""
    response: str | None
    """Column of the responses; None where they end the messages of ``prompt``."""

    def take(self, row: dict[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        """Splits a row into instruction, response, and the other columns.

        Raises:
            DataError: It has no response.
        """
        rest = {k: v for k, v in row.items() if k not in (self.prompt, self.response)}
        prompt = row.get(self.prompt) if self.prompt else ""
        if self.response is not None:
            response = row.get(self.response)
        else:
            messages = _messages(prompt)
            prompt, response = messages[:-1], messages[-1:]
        if response is None:
            raise DataError(f"a row has no {self.response!r}: expected a text or chat messages.")
        return "" if prompt is None else prompt, response, rest


def find_layout(names: list[str], prompt: str | None = None, response: str | None = None) -> Layout:
    """Finds the columns of instructions and responses.

    Args:
        names: Columns of the file.
        prompt: The column of the instructions, where its name is not among the usual ones.
        response: The column of the responses, likewise.

    Raises:
        DataError: A named column is missing, or no column of responses can be found.
    """
    for name in (prompt, response):
        if name is not None and name not in names:
            near = did_you_mean(name, names)
            raise DataError(f"the data has no column {name!r}.{near} It has: {', '.join(names)}.")
    prompt = prompt or next((name for name in PROMPT_COLUMNS if name in names), None)
    response = response or next((name for name in RESPONSE_COLUMNS if name in names), None)
    if response is None and prompt != "messages":
        raise DataError(
            f"the data has no responses: expected one of the columns {', '.join(RESPONSE_COLUMNS)} "
            f"(or messages that end with one), found {', '.join(names)}. --response_column names "
            "another one."
        )
    return Layout(prompt, response)


def _messages(value: Any) -> list[Any]:
    last = value[-1] if isinstance(value, list) and value else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise DataError(
            "a row's messages do not end with the assistant's: expected the response as the last "
            "message, or a column of its own."
        )
    return list(value)

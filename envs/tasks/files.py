"""Reading data files into rows that know where they came from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructrec.envs.tasks.base import DATA_SUFFIXES
from instructrec.errors import ConfigError, DataError, did_you_mean

_JSON_CELLS = ("messages", "references")  # fields of a CSV file that are written as JSON


@dataclass(frozen=True)
class Row:
    """One row of a data file."""

    fields: dict[str, Any]
    """Column name -> value; None where the row has no value."""
    where: str
    """For error messages, e.g. ``"data.jsonl line 3"``."""


def read_rows(path: Path) -> tuple[list[Row], str]:
    """Reads every row of a data file.

    Args:
        path: A ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file.

    Returns:
        The rows (at least one) and the SHA-256 (hex) of the file's bytes.

    Raises:
        DataError: The file is missing, empty or malformed; the message names the line.
        ConfigError: The file has another ending.
    """
    suffix = path.suffix.lower()
    readers = dict(zip(DATA_SUFFIXES, (_jsonl, _json, _csv, _parquet), strict=True))
    if suffix not in readers:
        raise ConfigError(f"data file {path}: expected a name ending in {', '.join(DATA_SUFFIXES)}")
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise DataError(
            f"data file {path} does not exist (looked in {path.parent.resolve()}).{hint}"
        )
    content = path.read_bytes()
    rows = list(readers[suffix](content, path))
    if not rows:
        raise DataError(f"data file {path} is empty: expected at least one row")
    return rows, hashlib.sha256(content).hexdigest()


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = content[error.start : error.start + 1]
        raise DataError(
            f"{path} line {line}: the byte {found!r} is not UTF-8; save the file as UTF-8"
        ) from error


def _jsonl(content: bytes, path: Path) -> Iterator[Row]:
    # split("\n"), not splitlines(): JSON strings may hold other line separators such as U+2028.
    for number, line in enumerate(_text(content, path).split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            yield Row(_object(_parse(line, where), where), where)


def _json(content: bytes, path: Path) -> Iterator[Row]:
    values = _parse(_text(content, path), str(path)) if content.strip() else []
    if not isinstance(values, list):
        raise DataError(
            f"{path} holds {_kind(values)}; expected a list of objects (one object per line is the "
            "format of .jsonl files)"
        )
    for position, value in enumerate(values):
        where = f"{path} item {position}"
        yield Row(_object(value, where), where)


def _csv(content: bytes, path: Path) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(_text(content, path), newline=""), strict=True)
    names = reader.fieldnames or []
    if len(set(names)) < len(names):
        raise DataError(f"{path} line 1: a column name comes twice: {names}")
    try:
        for record in reader:
            where = f"{path} line {reader.line_num}"
            if None in record or None in record.values():
                surplus = record.get(None)
                found = len(names) + len(surplus or []) - sum(v is None for v in record.values())
                raise DataError(f"{where}: {found} fields, but the header names {len(names)}")
            fields: dict[str, Any] = {name: value or None for name, value in record.items()}
            for name in _JSON_CELLS:
                if fields.get(name) is not None:
                    fields[name] = _parse(fields[name], f"{where}, column {name!r}")
            yield Row(fields, where)
    except csv.Error as error:
        raise DataError(f"{path}, after line {reader.line_num}: {error}") from error


def _parquet(content: bytes, path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file: {error}") from error
    for position, record in enumerate(table.to_pylist()):
        yield Row(record, f"{path} row {position}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        place = f" (column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(
            f"{where}: not valid JSON: {reason}{place}; found {_shorten(text)}"
        ) from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: found {_kind(value)} {_shorten(json.dumps(value))}; expected an object such "
            'as {"prompt": "...", "reference": "..."}'
        )
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value"}
    return names.get(type(value), "null" if value is None else "a number")


def _shorten(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 80 else text[:77] + "..."

"""Data files as sequences of rows: JSON Lines and CSV by an index of 8 bytes a row, others whole.

A text file is read once to find where its rows begin; after that any row is read by itself, so
that a file may be far larger than the memory.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import weakref
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from instructrec.envs.tasks.base import DATA_SUFFIXES
from instructrec.envs.tasks.rows import (
    MAX_ROW_BYTES,
    Row,
    check_object,
    decode_utf8,
    kind_of,
    parse_json,
    parse_object,
)
from instructrec.errors import ConfigError, DataError, did_you_mean

KEPT_BYTES = 8 * 2**20
"""Text files up to this size are held in memory; rows of larger ones are read when asked for."""


class Source(Protocol):
    """The rows of a data set."""

    origin: str
    """What it is called in messages."""
    num_bytes: int
    """Its size."""
    text_cells: bool
    """Whether all values are text, as in CSV files: lists are then written as JSON."""
    lacks_validation: bool
    """Whether the rows are in splits of which none is for validation."""

    def scan(self) -> Iterator[Row | DataError]:
        """Yields all rows in order, an error in the place of each that cannot be read.

        Raises:
            DataError: What follows cannot be read either.
        """
        ...

    def read(self, position: int) -> dict[str, Any]:
        """Returns the fields of a row that a whole scan has yielded; safe in threads and forks."""
        ...


def open_file(path: Path) -> Source:
    """Opens a ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file.

    Raises:
        DataError: It is missing or, for JSON and Parquet, malformed.
        ConfigError: It has another ending.
    """
    classes: tuple[Callable[[Path], Source], ...] = (JsonLines, JsonList, Csv, Parquet)
    kind = dict(zip(DATA_SUFFIXES, classes, strict=True)).get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"data file {path}: expected a name ending in {', '.join(DATA_SUFFIXES)}")
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings)
        raise DataError(
            f"data file {path} does not exist (looked in {path.parent.resolve()}).{hint}"
        )
    return kind(path)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class IndexedFile(ABC):
    """A text file whose rows are found by where they begin: 8 bytes of memory a row.

    The bytes of a small file are kept as well, so that it may change or vanish later.
    """

    text_cells = lacks_validation = False

    def __init__(self, path: Path) -> None:
        self.path, self.origin = path, str(path)
        self.num_bytes = path.stat().st_size
        self._content = path.read_bytes() if self.num_bytes <= KEPT_BYTES else None
        self._offsets = array("Q")
        self._descriptor: int | None = None
        self._version: tuple[int, int] | None = None

    def scan(self) -> Iterator[Row | DataError]:
        """Yields every row and notes where it begins."""
        offsets = array("Q")
        if self._content is not None:
            yield from self._scan(io.BytesIO(self._content), offsets)
        else:
            with self.path.open("rb") as file:
                self._keep_open(os.dup(file.fileno()))  # it may be moved or removed meanwhile
                yield from self._scan(file, offsets)
        self._offsets = offsets

    def read(self, position: int) -> dict[str, Any]:
        """Returns one row, read from the disk if the file is not small."""
        start = self._offsets[position]
        last = position + 1 == len(self._offsets)
        end = self.num_bytes if last else self._offsets[position + 1]
        return self._parse(self._bytes(start, end), start)

    def _bytes(self, start: int, end: int) -> bytes:
        if self._content is not None:
            return self._content[start:end]
        if self._descriptor is None:  # in a process that got this as a copy
            version = self._version
            self._keep_open(os.open(self.path, os.O_RDONLY))
            self._version = version
        descriptor = cast(int, self._descriptor)
        if _version_of(descriptor) != self._version:
            raise DataError(
                f"{self.path} was changed after it had been read: leave data files as they are "
                "while they are in use, and start again"
            )
        return os.pread(descriptor, end - start, start)  # no position: fit for forks

    def _keep_open(self, descriptor: int) -> None:
        self._descriptor, self._version = descriptor, _version_of(descriptor)
        weakref.finalize(self, os.close, descriptor)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_descriptor": None}  # another process opens the file itself

    @abstractmethod
    def _scan(self, file: BinaryIO, offsets: array[int]) -> Iterator[Row | DataError]:
        """Yields the rows and appends the offset of each."""

    @abstractmethod
    def _parse(self, content: bytes, start: int) -> dict[str, Any]:
        """Parses what begins with a row and may go on with blank lines."""


class JsonLines(IndexedFile):
    """One JSON object a line."""

    def _scan(self, file: BinaryIO, offsets: array[int]) -> Iterator[Row | DataError]:
        number = start = end = 0
        # Lines end with \n alone: JSON strings may hold other line separators such as U+2028.
        while line := file.readline(MAX_ROW_BYTES + 1):
            number, start, end = number + 1, end, end + len(line)
            if line.isspace():
                continue
            offsets.append(start)
            where = f"{self.path} line {number}"
            if len(line) > MAX_ROW_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_ROW_BYTES)
                    end += len(line)
                yield DataError(
                    f"{where}: {end - start} bytes; expected at most {MAX_ROW_BYTES} in one row"
                )
                continue
            try:
                yield Row(self._parse(line, start), where)
            except DataError as error:
                torn = (
                    ""
                    if line.endswith(b"\n")
                    else (" (the last line has no line end: was its writer stopped half-way?)")
                )
                yield DataError(f"{where}: {error}{torn}")

    def _parse(self, content: bytes, start: int) -> dict[str, Any]:
        return parse_object(decode_utf8(content.partition(b"\n")[0], start))


class Csv(IndexedFile):
    """A header and records, some of them over several lines."""

    text_cells = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names: list[str] = []

    def _scan(self, file: BinaryIO, offsets: array[int]) -> Iterator[Row | DataError]:
        lines = _CountedLines(file, self.path)
        reader = csv.reader(lines, strict=True)
        whole = 0  # lines up to the end of the last record
        try:
            self.names = next(reader, [])
            if len(set(self.names)) < len(self.names):
                raise DataError(f"{self.path} line 1: a column name comes twice: {self.names}")
            start, whole = lines.offset, lines.number
            for record in reader:
                if record:
                    offsets.append(start)
                    yield self._row(record, f"{self.path} line {whole + 1}")
                start, whole = lines.offset, lines.number
        except csv.Error as error:
            raise DataError(f"{self.path}, after line {whole}: {error}") from error

    def _row(self, record: list[str], where: str) -> Row | DataError:
        if len(record) != len(self.names):
            return DataError(
                f"{where}: {len(record)} fields, but the header names {len(self.names)}"
            )
        return Row(self._fields(record), where)

    def _fields(self, record: list[str]) -> dict[str, Any]:
        return {name: cell or None for name, cell in zip(self.names, record, strict=True)}

    def _parse(self, content: bytes, start: int) -> dict[str, Any]:
        lines = _CountedLines(io.BytesIO(content), self.path, start)
        return self._fields(next(csv.reader(lines, strict=True)))


class _CountedLines:
    """The lines of a file as text, and how many bytes were read."""

    def __init__(self, file: BinaryIO, path: Path, offset: int = 0) -> None:
        self.file, self.path, self.offset = file, path, offset
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        while line := self.file.readline(MAX_ROW_BYTES + 1):
            self.number += 1
            where = f"{self.path} line {self.number}"
            if len(line) > MAX_ROW_BYTES:
                raise DataError(f"{where}: expected at most {MAX_ROW_BYTES} bytes in one line")
            try:
                text = decode_utf8(line, self.offset)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            self.offset += len(line)
            yield text


class JsonList:
    """A list of objects; held in memory."""

    text_cells = lacks_validation = False

    def __init__(self, path: Path) -> None:
        self.path, self.origin = path, str(path)
        content = path.read_bytes()
        self.num_bytes = len(content)
        try:
            values = parse_json(decode_utf8(content)) if content.strip() else []
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if not isinstance(values, list):
            raise DataError(
                f"{path} holds {kind_of(values)}; expected a list of objects (one object per line "
                "is the format of .jsonl files)"
            )
        self._values = values

    def scan(self) -> Iterator[Row | DataError]:
        """Yields the objects of the list."""
        for position, value in enumerate(self._values):
            where = f"{self.path} item {position}"
            try:
                yield Row(check_object(value), where)
            except DataError as error:
                yield DataError(f"{where}: {error}")

    def read(self, position: int) -> dict[str, Any]:
        """Returns one object."""
        return dict(self._values[position])


class Parquet:
    """A table; held in memory in Arrow's form, which takes about as much as its bytes unpacked."""

    text_cells = lacks_validation = False

    def __init__(self, path: Path) -> None:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet  # type: ignore[import-untyped]

        self.path, self.origin = path, str(path)
        self.num_bytes = path.stat().st_size
        try:
            self._table = pyarrow.parquet.read_table(path).combine_chunks()
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a Parquet file: {error}") from error

    def scan(self) -> Iterator[Row | DataError]:
        """Yields the rows of the table."""
        position = 0
        for batch in self._table.to_batches(max_chunksize=1024):
            for record in batch.to_pylist():
                yield Row(record, f"{self.path} row {position}")
                position += 1

    def read(self, position: int) -> dict[str, Any]:
        """Returns one row."""
        record: dict[str, Any] = self._table.slice(position, 1).to_pylist()[0]
        return record


def _version_of(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns

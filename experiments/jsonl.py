"""JSON on disk: atomic files, append-only line files, readers that forgive a torn last line.

Numbers that JSON cannot hold (NaN, infinities) become ``null``: missing, never wrong.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from instructrec.crash_points import crash_point
from instructrec.errors import CheckpointError, ConfigError, DataError
from instructrec.redaction import known_secrets, without

Row = dict[str, Any]
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def plain(value: Any) -> Any:
    """Returns ``value`` as JSON can hold it.

    NumPy and tensor scalars become Python numbers, tuples and sets become lists, numbers that are
    not finite become None, anything else becomes its text. Texts lose the values of environment
    variables that are keys, wherever they came from.
    """
    return _plain(value, known_secrets())


def _plain(value: Any, secrets: Sequence[str]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return without(secrets, str(value))
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v, secrets) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v, secrets) for v in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, tensors
        return _plain(value.tolist(), secrets)
    return without(secrets, str(value))


def dump_line(row: Mapping[str, Any]) -> bytes:
    """Returns one line of JSON, newline included; it never contains another newline."""
    text = json.dumps(plain(row), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, as a broken token sequence can give
        return json.dumps(plain(row), allow_nan=False).encode("ascii") + b"\n"


def write_atomic(path: Path, content: str) -> None:
    """Writes a text file so that a reader sees the old content or the new, never a part.

    Of several processes that write the same file, one after the other takes the place as a whole.
    """
    with (
        replacing(path) as temporary,
        open(temporary, "x", encoding="utf-8", newline="\n") as file,
    ):
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    flush_folder(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name for a new file beside another, whose place it takes behind the block.

    Nobody else has that name; where the block fails, what it wrote is deleted.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def drop_leftovers(*folders: Path) -> None:
    """Deletes the new files that a killed process had begun in folders nobody else writes to."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if _LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


def output_file(named: str | Path) -> Path:
    """Makes the folder of a file that a person wants written, before anything is spent on it.

    Raises:
        ConfigError: A folder has that name, or a file that of its folder.
    """
    path = Path(named)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{path} cannot be written: {error.filename} is no folder.") from error
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: expected the name of a file to write.")
    return path


def flush_folder(path: Path) -> None:
    """Forces the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically, indented for people."""
    write_atomic(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Row:
    """Reads a JSON object.

    Raises:
        CheckpointError: The file cannot be read or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last one: nested too deep
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def read_rows(path: str | Path) -> list[Row]:
    """Reads a JSONL file; a torn last line (its writer was stopped half-way) is left out.

    Raises:
        DataError: The file is missing, or another line is not a JSON object.
    """
    return _parse(Path(path))[0]


def drop_torn_line(path: Path) -> None:
    """Makes a JSONL file ready to be appended to: a torn last line is cut off."""
    if path.exists():
        size = _parse(path)[1]
        os.truncate(path, size)
        with open(path, "rb+") as file:
            file.seek(max(size - 1, 0))
            if file.read(1) not in (b"\n", b""):
                file.write(b"\n")


def keep_rows(path: Path, keep: Callable[[Row], bool]) -> None:
    """Rewrites a JSONL file atomically with the rows for which ``keep`` is true."""
    if path.exists():
        rows = [row for row in read_rows(path) if keep(row)]
        write_atomic(path, b"".join(dump_line(row) for row in rows).decode("utf-8"))


class JsonlWriter:
    """Appends rows to a JSONL file; what ``write`` returned from survives a killed process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(path)
        self._file: BinaryIO = open(path, "ab")  # noqa: SIM115 - closed by close()
        flush_folder(path.parent)

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Appends rows in one write and flushes them to the disk."""
        lines = b"".join(dump_line(row) for row in rows)
        crash_point("rows.half", lambda: self._put(lines[: len(lines) // 2]))
        self._put(lines)
        os.fsync(self._file.fileno())

    def _put(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _parse(path: Path) -> tuple[list[Row], int]:
    """Returns the rows and the size in bytes of the part of the file that is whole."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    rows: list[Row] = []
    size = 0
    # Split at \n only: other Unicode line ends may stand inside strings.
    for number, line in enumerate(content.split(b"\n"), start=1):
        ended = size + len(line) < len(content)
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None and not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, found {type(row).__name__}")
        except (ValueError, RecursionError) as error:
            if not ended:
                break
            excerpt = ascii(line[:80].decode("utf-8", "replace"))
            raise DataError(f"{path}, line {number}: {error}. Found {excerpt}.") from error
        if row is not None:
            rows.append(row)
        size = min(size + len(line) + 1, len(content))
    return rows, size

"""``faults.jsonl``: what went wrong in a run, one line for each kind of fault in an update.

A line holds ``update``, ``boundary``, ``kind``, ``name``, ``count``, ``samples`` (ids of the first
instructions), ``message`` and, for what ended the run, ``exit_code``. Lines of updates that a
resumed run does again are dropped with those updates; what ended a run stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from instructrec.errors import InstructRecError
from instructrec.experiments.jsonl import JsonlWriter, Row, keep_rows, read_rows
from instructrec.faults import Fault

FILE = "faults.jsonl"
"""Its name in the run folder."""


class FaultLog:
    """Appends to the faults of a run; the file appears with the first of them.

    Args:
        folder: The run folder.
        resumed_update: Update that the run continues from; None begins anew.
    """

    def __init__(self, folder: Path, resumed_update: int | None = None) -> None:
        self._path = folder / FILE
        self._writer: JsonlWriter | None = None
        if resumed_update is not None:
            keep_rows(
                self._path,
                lambda row: row.get("boundary") == "run" or row["update"] <= resumed_update,
            )

    def write(self, update: int, fault: Fault, **more: Any) -> None:
        """Records a fault of an update."""
        if self._writer is None:
            self._writer = JsonlWriter(self._path)
        row = {key: value for key, value in asdict(fault).items() if value != ()}
        self._writer.write({"update": update, **row, **more})

    def write_end(self, update: int, error: BaseException) -> None:
        """Records what ended the run behind an update."""
        text = str(error) or type(error).__name__
        fault = Fault("run", type(error).__name__, "run", text)
        self.write(update, fault, exit_code=exit_code(error))

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()


def exit_code(error: BaseException) -> int:
    """The code with which the command line leaves after an error."""
    return error.exit_code if isinstance(error, InstructRecError) else 1


def read_faults(folder: Path) -> list[Row]:
    """The lines of a run's ``faults.jsonl``; none where nothing went wrong."""
    path = folder / FILE
    return read_rows(path) if path.exists() else []


def summed(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The faults of a run, those of one boundary, kind and name together, most frequent first.

    Returns:
        For each ``boundary``, ``kind``, ``name``, ``count``, ``first`` and ``last`` update, and
        the ``message`` and ``samples`` of the first time.
    """
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("boundary", "kind", "name"))
        update, count = row.get("update", 0), row.get("count", 1)
        known = found.setdefault(
            key,
            {
                **dict(zip(("boundary", "kind", "name"), key, strict=True)),
                "count": 0,
                "first": update,
                "last": update,
                "message": row.get("message", ""),
                "samples": row.get("samples", []),
            },
        )
        known["count"] += count
        known["last"] = max(known["last"], update)
    return sorted(found.values(), key=lambda fault: -fault["count"])

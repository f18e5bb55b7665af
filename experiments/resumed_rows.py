"""Rows that an evaluation wrote before it was broken off: kept, checked, and not drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructrec import processes
from instructrec.envs.tasks.base import Instruction
from instructrec.errors import DataError
from instructrec.experiments.jsonl import (
    Row,
    dump_line,
    plain,
    read_json,
    read_rows,
    write_atomic,
    write_json,
)
from instructrec.experiments.playing import SINGLE_ANSWERS


def kept_rows(
    path: Path, header: Row, slots: Sequence[tuple[Instruction, int]], batch_size: int
) -> list[Row]:
    """Returns the rows that a file holds already, checked to be the first of an evaluation.

    A new file gets its header. Sampled rows are drawn batch by batch: of a batch that was cut short
    the file loses what is there.

    Args:
        path: The file.
        header: What is evaluated.
        slots: Instruction and number of the sample of each row that there will be.
        batch_size: Rows of a batch in each process.

    Raises:
        DataError: The file holds something else.
    """
    side = path.with_suffix(".json")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(side, header)
        return []
    advice = (
        "Delete the file, or write to another one (of `instructrec evaluate`: --overwrite, or "
        "--name NAME)."
    )
    if not side.exists():
        raise DataError(f"{path} has no {side.name} that says what its rows are. {advice}")
    before = read_json(side)
    before.setdefault("episodes", SINGLE_ANSWERS.header())  # a file from before there were others
    changed = [k for k in header if before.get(k) != header[k]]
    if header["weights_hash"] is not None and "weights_hash" not in changed:
        changed = [k for k in changed if k != "policy"]  # the same weights under another name
    if changed:
        details = "; ".join(f"{k}: {before.get(k)!r} -> {header[k]!r}" for k in changed)
        raise DataError(f"{path} holds another evaluation ({details}). {advice}")
    rows = read_rows(path)
    if len(rows) > len(slots):
        raise DataError(f"{path} holds {len(rows)} rows, expected {len(slots)}. {advice}")
    for number, (row, (instruction, sample)) in enumerate(zip(rows, slots, strict=False), start=1):
        found = (row.get("id"), row.get("sample"), row.get("prompt"))
        expected = (instruction.id, sample, plain(instruction.prompt))
        if found != expected:
            raise DataError(f"{path}, row {number}: expected {expected}, found {found}. {advice}")
    sampled = header["sampling"]["temperature"] > 0
    cut = len(rows) % (batch_size * processes.world_size())
    if sampled and cut and len(rows) < len(slots):
        rows = rows[:-cut]
        write_atomic(path, b"".join(map(dump_line, rows)).decode("utf-8"))
    return rows


def own_rows(rows: Sequence[Row], batch_size: int) -> list[Row]:
    """Those that this process has played; see `evaluate`.

    Args:
        rows: The first rows of an evaluation: whole batches, or all.
        batch_size: Rows of a batch in each process.
    """
    size = batch_size * processes.world_size()
    batches = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [row for batch in batches for row in processes.own_share(batch)]

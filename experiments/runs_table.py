"""The table of run folders, for people and for programs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from instructrec.experiments.jsonl import Row
from instructrec.experiments.listing import table
from instructrec.experiments.progress import format_duration
from instructrec.experiments.runs_reading import RunLine, Skipped, seconds_of

_UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def to_text(lines: Sequence[RunLine], skipped: Sequence[Skipped]) -> str:
    """The table, and below it what needs a word."""
    head = (
        *("run", "status", "algorithm", "task", "model", "seed", "updates", "held-out total"),
        *("took", "size", "checkpoints", "started"),
    )
    rows = [head, *(_cells(line) for line in lines)]
    notes = [
        f"{line.name} says that it is running, but has written nothing for "
        f"{format_duration(line.silent_s)}: if it was killed, its command with --resume goes on."
        for line in lines
        if line.is_doubtful
    ]
    notes += [f"{line.name}: {line.problem}" for line in lines if line.problem]
    notes += [f"not a run: {other.path} ({other.reason})" for other in skipped]
    total = human_bytes(sum(line.size_bytes for line in lines))
    count = f"{len(lines)} run{'' if len(lines) == 1 else 's'}, {total}"
    if saved := sum(line.checkpoint_bytes for line in lines):
        count += (
            f", of it {human_bytes(saved)} of checkpoints (`instructrec runs rm --checkpoints` "
            "frees those of finished runs)"
        )
    blocks = [table(rows), count] if lines else ["no run matches."]
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])])


def to_values(line: RunLine) -> Row:
    """One run as plain values for JSON."""
    return {**vars(line), "path": str(line.path), "is_doubtful": line.is_doubtful}


def human_bytes(size: float) -> str:
    """A number of bytes for people: ``812 B``, ``1.2 GB``."""
    for unit, scale in _UNITS:
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def human_age(seconds: float) -> str:
    """How long ago, for people: ``12 min ago``, ``3 d ago``."""
    for unit, scale in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{seconds // scale:.0f} {unit} ago"
    return "now"


def _cells(line: RunLine) -> tuple[str, ...]:
    started = seconds_of(line.started)
    return (
        line.name,
        "running?" if line.is_doubtful else line.status,
        line.algorithm,
        line.task,
        line.model,
        _or_dash(line.seed),
        _or_dash(line.updates),
        score_text(line),
        "-" if line.duration_s is None else format_duration(line.duration_s),
        human_bytes(line.size_bytes),
        human_bytes(line.checkpoint_bytes) if line.checkpoint_bytes else "-",
        "-" if started is None else human_age(time.time() - started),
    )


def score_text(line: RunLine) -> str:
    """The final number with its interval: ``0.812 [0.742, 0.869]``; a dash without one."""
    if line.score is None:
        return "-"
    if line.low is None or line.high is None:
        return f"{line.score:.3f}"
    return f"{line.score:.3f} [{line.low:.3f}, {line.high:.3f}]"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)

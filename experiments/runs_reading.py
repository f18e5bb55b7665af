"""Run folders in short: what ran, how it ended, what came out, and what it takes on the disk.

Nothing but the folders is read, and nothing in them can stop the reading: a folder that no run
wrote, or that cannot be read, is named with the reason.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from instructrec.errors import CheckpointError, ConfigError
from instructrec.experiments.jsonl import Row, read_json
from instructrec.experiments.runfolder import RunFolder
from instructrec.metrics import AXES

SILENT_S = 3600.0
"""Seconds without a new number after which a run that says it is running is doubted."""
_DEPTH = 4
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class RunLine:
    """One run folder, in short."""

    path: Path
    """The folder."""
    name: str
    """Its place below the folder that was searched."""
    status: str
    """running, finished, failed or interrupted."""
    job_type: str
    """sft, reward-model, train, eval or compare."""
    algorithm: str
    """ppo, sft, ...; none for a policy that was not trained here."""
    variant: str
    """Name of the setting, the same for all its seeds."""
    seed: int | None
    """Seed of the run."""
    model: str
    """Model that the run started from."""
    task: str
    """Task that it trained or was evaluated on."""
    parent: str | None
    """Run folder whose policy it started from."""
    updates: int | None
    """Updates, or steps of supervised training, that are recorded; None without any."""
    score: float | None
    """Mean total on held-out instructions at the end; None while there is none."""
    low: float | None
    """Lower end of its 95 % interval."""
    high: float | None
    """Upper end of its 95 % interval."""
    started: str | None
    """When it was started, ISO 8601 with time zone."""
    duration_s: float | None
    """Seconds from its start to its end, or to its latest number; pauses before a resume count."""
    silent_s: float
    """Seconds since something was written to the record."""
    size_bytes: int
    """All files of the folder together."""
    checkpoint_bytes: int
    """Those of its checkpoints, which ``instructrec runs rm --checkpoints`` frees."""
    problem: str = ""
    """What of it could not be read."""

    @property
    def is_doubtful(self) -> bool:
        """Whether it says that it is running, but has been silent for long."""
        return self.status == "running" and self.silent_s > SILENT_S


@dataclass(frozen=True)
class Skipped:
    """Something among the run folders that is none, or cannot be read."""

    path: Path
    """Where it lies."""
    reason: str
    """Why it is not in the table."""

    @property
    def is_comparison(self) -> bool:
        """Whether it is what ``instructrec compare`` wrote."""
        return (self.path / "compare.json").is_file() and not self.path.is_symlink()


@dataclass(frozen=True)
class Filters:
    """Which runs are meant (``instructrec runs list``, ``instructrec runs rm``)."""

    status: str | None = None
    """Only runs of this status: running, finished, failed or interrupted; a pattern may say it."""
    task: str | None = None
    """Only runs on this task; may be a pattern, such as 'skill*'."""
    algorithm: str | None = None
    """Only runs of this algorithm; may be a pattern."""
    variant: str | None = None
    """Only runs of this variant; may be a pattern."""

    def match(self, line: RunLine, names: Sequence[str] = ()) -> bool:
        """Says whether a run passes, and has one of the names (patterns; none means any)."""
        for key in ("status", "task", "algorithm", "variant"):
            wanted = getattr(self, key)
            if wanted is not None and not fnmatchcase(getattr(line, key), wanted):
                return False
        return not names or any(is_named(line, name) for name in names)


ALL = Filters()
"""Lets every run pass."""


def is_named(line: RunLine | Skipped, pattern: str) -> bool:
    """Says whether a pattern means a run: by its place, its path, or its folder's own name."""
    pattern = pattern.rstrip("/")
    known = [str(line.path), line.path.name, *([line.name] if isinstance(line, RunLine) else [])]
    return any(fnmatchcase(name, pattern) for name in known)


def read_runs(root: Path) -> tuple[list[RunLine], list[Skipped]]:
    """Reads all run folders below a folder, those of a quickstart included.

    Args:
        root: The folder, or one run folder. Links are not followed.

    Returns:
        The runs in the order of their start, and what is no run.

    Raises:
        ConfigError: There is no such folder.
    """
    if not root.is_dir():
        raise ConfigError(
            f"{root} is no folder: expected the folder of the run folders. Runs are written to "
            "runs/ by default; name another place with --dir."
        )
    lines: list[RunLine] = []
    skipped: list[Skipped] = []
    for found in [root] if _has_record(root) else _search(root, _DEPTH):
        if isinstance(found, Skipped):
            skipped.append(found)
            continue
        try:
            lines.append(read_run(found, root))
        except (CheckpointError, OSError) as error:
            skipped.append(Skipped(found, str(error)))
    return sorted(lines, key=lambda line: (line.started or "", line.name)), skipped


def read_run(path: Path, root: Path | None = None) -> RunLine:
    """Reads one run folder.

    Args:
        path: The folder.
        root: Folder that its name is told from; None takes the one above it.

    Raises:
        CheckpointError: It is no run folder, or a newer version wrote it.
    """
    record = RunFolder.open(path).record()
    summary, problem = _summary(path)
    text = {key: str(record.get(key) or "") for key in ("status", "job_type", "algorithm")}
    now, latest = time.time(), _latest(path)
    started, finished = seconds_of(record.get("started")), seconds_of(record.get("finished"))
    end = latest if finished is None else finished
    updates = _number(summary.get("updates"))
    seed = _number(record.get("seed"))
    relative = path.relative_to(root).as_posix() if root is not None and root != path else "."
    return RunLine(
        path=path,
        name=path.name if relative == "." else relative,
        **text,
        variant=str(record.get("variant") or ""),
        seed=None if seed is None else int(seed),
        model=str(record.get("base_model") or ""),
        task=str(record.get("task") or ""),
        parent=None if record.get("parent") is None else str(record["parent"]),
        updates=_recorded(path) if updates is None else int(updates),
        score=_number(summary.get("eval/total/mean")),
        low=_number(summary.get("eval/total/ci_low")),
        high=_number(summary.get("eval/total/ci_high")),
        started=None if started is None else str(record["started"]),
        duration_s=None if started is None else max(0.0, end - started),
        silent_s=max(0.0, now - latest),
        size_bytes=size_of(path),
        checkpoint_bytes=size_of(path / "checkpoints"),
        problem=problem,
    )


def size_of(path: Path) -> int:
    """Bytes of all files below a folder, links not followed; 0 where there is none."""
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            try:
                total += os.lstat(os.path.join(folder, file)).st_size
            except OSError:  # gone in the meantime
                continue
    return total


def _search(folder: Path, depth: int) -> Iterator[Path | Skipped]:
    """Run folders below a folder; a folder that holds none is told, its files are not."""
    try:
        inside = sorted(folder.iterdir())
    except OSError as error:
        yield Skipped(folder, error.strerror or str(error))
        return
    for path in inside:
        if path.is_symlink():
            yield Skipped(path, "a link, which is not followed")
        elif _has_record(path):
            yield path
        elif path.is_dir():
            deeper = list(_search(path, depth - 1)) if depth > 1 else []
            if any(isinstance(found, Path) for found in deeper):
                yield from deeper
            else:
                other = Skipped(path, "holds no run.json")
                yield Skipped(path, "a comparison") if other.is_comparison else other


def _has_record(path: Path) -> bool:
    return (path / "run.json").is_file()


def _summary(path: Path) -> tuple[Row, str]:
    file = path / "summary.json"
    try:
        return (read_json(file) if file.exists() else {}), ""
    except CheckpointError as error:
        return {}, str(error)


def _recorded(path: Path) -> int | None:
    """The latest update or step in ``metrics.jsonl``, read from its end."""
    try:
        with open(path / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            tail = file.read()
    except OSError:
        return None
    for text in reversed(tail.split(b"\n")):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):  # torn, empty, or cut by the window
            continue
        if isinstance(row, Mapping):
            found = _number(next((row[k] for k in AXES if k in row), None))
            return None if found is None else int(found)
    return None


def _latest(path: Path) -> float:
    """When something was written to the record last, seconds since the epoch."""
    times = []
    for name in ("run.json", "metrics.jsonl", "eval", "checkpoints"):
        try:
            times.append((path / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def seconds_of(moment: Any) -> float | None:
    """Returns the seconds since the epoch of a moment in ISO 8601; None for anything else."""
    try:
        when = datetime.fromisoformat(moment)
    except (TypeError, ValueError):
        return None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None

"""The run folder: the record of a run, which every later command reads.

::

    runs/<name>/
      config.yaml       the resolved configuration
      run.json          what ran: algorithm, variant, seed, model, task, versions, machine, status
      metrics.jsonl     one line per update
      samples.jsonl     sampled responses of the rollouts
      warnings.jsonl    what looked wrong: update and sentence
      eval/             <task>-<split>-<decoding>-<update>.jsonl, one row per response
      summary.json      the final numbers
      checkpoints/      states to continue from
      policy/           the trained policy, a plain Hugging Face folder with its card
      report/           what `instructrec report` wrote
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import yaml

from instructrec import processes
from instructrec.crash_points import crash_point
from instructrec.errors import CheckpointError, RunInterrupted
from instructrec.experiments import machine
from instructrec.experiments.jsonl import (
    JsonlWriter,
    Row,
    drop_leftovers,
    flush_folder,
    keep_rows,
    plain,
    read_json,
    read_rows,
    write_atomic,
    write_json,
)
from instructrec.experiments.metrics_log import MetricsLog, read_metrics
from instructrec.experiments.yaml_files import read_config
from instructrec.redaction import redacted

__all__ = ["MetricsLog", "RunFolder", "RunInfo", "RunStatus", "read_metrics", "read_rows"]

FORMAT_VERSION = 1
_EVAL_FILE = re.compile(r"eval/[^/\x00]*")
RunStatus = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True)
class RunInfo:
    """What identifies a run among others."""

    job_type: str
    """sft, reward-model, train, eval or compare."""
    algorithm: str
    """ppo, sft, ...; ``none`` for a policy that was not trained here."""
    variant: str
    """Name of the setting, the same for all its seeds."""
    seed: int | None
    """Seed of the run, of a greedy evaluation that of the run it asks; None where nobody drew."""
    base_model: str
    """Model that the run started from."""
    task: str
    """Task that it trained or was evaluated on."""
    parent: str | None = None
    """Run folder whose policy it started from."""


class RunFolder:
    """One run folder, open for writing; use it as a context manager to record how the run ended.

    An exception that leaves the ``with`` block sets the status to ``interrupted`` (Ctrl-C,
    ``RunInterrupted``) or ``failed``; else the run is ``finished``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls,
        path: str | Path,
        info: RunInfo,
        config: Mapping[str, Any] | str,
        *,
        resume: bool = False,
        overwrite: bool = False,
        command: Sequence[str] | None = None,
    ) -> RunFolder:
        """Starts a run folder, or continues one.

        Args:
            path: The folder; it must not exist, or be empty, unless ``resume`` or ``overwrite``.
            info: What the run is. A run is continued under the same info only.
            config: Resolved configuration: plain values, or the text of ``config.yaml``.
            resume: Continue the run that the folder holds.
            overwrite: Delete the run that the folder holds, whatever else lies in it included.
            command: Command line; None takes this process's.

        Raises:
            CheckpointError: The folder exists already, holds no run to resume or overwrite, or
                holds another run than the one to resume.
        """
        folder = cls(path)
        if resume and overwrite:
            raise CheckpointError("resume and overwrite exclude each other: choose one.")
        if resume:
            record = folder._continued(info)
        else:
            folder._make_room(overwrite)
            record = {"format_version": FORMAT_VERSION, **asdict(info)}
        record |= {
            "versions": machine.versions(),
            "git_commit": machine.git_commit(),
            "machine": machine.machine_info(),
            "command": machine.command_line(command),
            "processes": processes.world_size(),
            "finished": None,
            "status": "running",
        }
        record.setdefault("started", _now())
        _begin(folder.path, record, config)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Opens an existing run folder for reading.

        Raises:
            CheckpointError: There is no run folder, or a newer version wrote it.
        """
        folder = cls(path)
        if not _is_run(folder.path):
            raise CheckpointError(
                f"{folder.path} is no run folder: expected a folder with a run.json that "
                "instructrec wrote."
            )
        version = folder.record().get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise CheckpointError(
                f"{folder.path} has format version {version!r}, this instructrec reads up to "
                f"{FORMAT_VERSION}: install a newer instructrec."
            )
        return folder

    # Reading --------------------------------------------------------------------------------------

    def record(self) -> Row:
        """Returns the content of ``run.json``."""
        return read_json(self.path / "run.json")

    def info(self) -> RunInfo:
        """Returns what the run is."""
        record = self.record()
        return RunInfo(**{f.name: record.get(f.name) for f in fields(RunInfo)})  # type: ignore[arg-type]

    def config(self) -> Row:
        """Returns ``config.yaml`` as plain values."""
        return read_config(self.path)

    def summary(self) -> Row:
        """Returns ``summary.json``, empty while the run has none.

        Raises:
            CheckpointError: It cannot be read, or names an evaluation outside the folder.
        """
        file = self.path / "summary.json"
        summary = read_json(file) if file.exists() else {}
        for key in ("eval_file", "scores_file"):
            named = summary.get(key, "eval/")
            if not isinstance(named, str) or not _EVAL_FILE.fullmatch(named):
                raise CheckpointError(f"{file}: {key} = {named!r}: expected eval/ and a file name.")
        return summary

    # Places ---------------------------------------------------------------------------------------

    @property
    def metrics_path(self) -> Path:
        """``metrics.jsonl``."""
        return self.path / "metrics.jsonl"

    @property
    def samples_path(self) -> Path:
        """``samples.jsonl``."""
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def policy(self) -> Path:
        """Folder of the exported policy."""
        return self.path / "policy"

    def eval_path(self, task: str, split: str, decoding: str, update: int) -> Path:
        """Returns the file of one evaluation: ``eval/<task>-<split>-<decoding>-<update>.jsonl``.

        Args:
            task: Name of the task; a path or ``module:attr`` is shortened to its last part.
            split: Split of it.
            decoding: Such as ``greedy`` or ``t1.0``.
            update: Update after which the policy was evaluated.
        """
        stem = Path(task.split(":")[0]).stem if "/" in task or "." in task else task
        parts = (re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in (stem, split, decoding))
        return self.path / "eval" / f"{'-'.join(parts)}-{update}.jsonl"

    # Writing --------------------------------------------------------------------------------------

    def metrics_log(self, resumed_update: int | None = None) -> MetricsLog:
        """Opens ``metrics.jsonl``; lines after ``resumed_update`` are dropped (see MetricsLog)."""
        return MetricsLog(self.metrics_path, resumed_update)

    def samples_log(self, resumed_update: int | None = None) -> JsonlWriter:
        """Opens ``samples.jsonl``; rows whose ``update`` is after the resumed one are dropped."""
        return self._rows_log("samples.jsonl", resumed_update)

    def warnings_log(self, resumed_update: int | None = None) -> JsonlWriter:
        """Opens ``warnings.jsonl``, in the same way."""
        return self._rows_log("warnings.jsonl", resumed_update)

    def _rows_log(self, name: str, resumed_update: int | None) -> JsonlWriter:
        if resumed_update is not None:
            keep_rows(self.path / name, lambda row: row.get("update", 0) <= resumed_update)
        return JsonlWriter(self.path / name)

    def finish(
        self,
        status: RunStatus,
        summary: Mapping[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """Records how the run ended, and its final numbers when there are some."""
        if summary is not None:
            write_json(self.path / "summary.json", summary)
            crash_point("finish.summary")
        record = self.record() | {"status": status, "finished": _now(), "error": error}
        if error is None:
            del record["error"]
        write_json(self.path / "run.json", record)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            if self.record()["status"] == "running":
                self.finish("finished")
            return
        stopped = isinstance(error, KeyboardInterrupt | RunInterrupted)
        told = None if stopped else redacted(f"{type(error).__name__}: {error}")
        with suppress(OSError):  # of a full disk, say: what ended the run is told, not this
            self.finish("interrupted" if stopped else "failed", error=told)

    # Helpers --------------------------------------------------------------------------------------

    def _make_room(self, overwrite: bool) -> None:
        path = self.path
        is_empty = path.is_dir() and not any(path.iterdir())
        if is_empty or (not path.exists() and not path.is_symlink()):
            return
        if not overwrite:
            raise CheckpointError(
                f"{path} exists already: choose another name, or pass --resume to continue the "
                "training run in it, or --overwrite to delete that run and start anew."
            )
        if path.is_symlink() or not _is_run(path):
            raise CheckpointError(
                f"{path} was not overwritten: it is not a run folder that instructrec made (no "
                "run.json of ours in it). Move it away yourself, or choose another name."
            )
        shutil.rmtree(path)

    def _continued(self, info: RunInfo) -> Row:
        record = RunFolder.open(self.path).record()
        if links := [p for p in self.path.rglob("*.json*") if p.is_symlink()]:
            raise CheckpointError(
                f"{links[0]} is a link: a run that goes on writes to files of its own, and this "
                "one could lie anywhere. Put the file itself there, or start another run."
            )
        now = asdict(info)
        changed = [f"{k}: {record.get(k)!r} -> {v!r}" for k, v in now.items() if record.get(k) != v]
        if changed:
            raise CheckpointError(
                f"{self.path} holds another run ({'; '.join(changed)}): continue it as it was "
                "started, or give the new run another name."
            )
        record.pop("error", None)
        return record | {"resumed": [*record.get("resumed", []), _now()]}


def _begin(path: Path, record: Row, config: Mapping[str, Any] | str) -> None:
    """Writes what every run folder has; a kill leaves the whole of a new one, or nothing there."""
    place = path if path.exists() else path.with_name(f".{path.name}.starting")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(mode=0o700, exist_ok=True)  # private: whoever wants to share it, opens it
        drop_leftovers(place, place / "eval")
        write_json(place / "run.json", record)
        if not isinstance(config, str):
            config = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
        write_atomic(place / "config.yaml", config)
        if place != path:
            place.rename(path)
            flush_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"the run folder {path} cannot be made or written to ({error.strerror or error}): "
            "expected a place that can be written to. Choose another one with output.dir."
        ) from error


def _is_run(path: Path) -> bool:
    try:
        record = read_json(path / "run.json")
    except CheckpointError:
        return False
    return "format_version" in record and "job_type" in record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

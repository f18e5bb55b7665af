"""Where the numbers of a run go: its folder first, then its W&B mirror and the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from instructrec.crash_points import crash_point
from instructrec.errors import CheckpointError, HangError, RunInterrupted
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.fault_log import FaultLog
from instructrec.experiments.hang_watch import HangWatch
from instructrec.experiments.jsonl import read_json, read_rows, write_json
from instructrec.experiments.progress import Progress
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.tracking import (
    Tracker,
    TrackingConfig,
    distributions,
    open_tracking,
    reason,
)
from instructrec.experiments.tracking_threads import in_background
from instructrec.faults import Fault, heard_by
from instructrec.metrics import axis_value
from instructrec.redaction import redacted
from instructrec.rl.checkpoint import update_of

if TYPE_CHECKING:
    from instructrec.rl.monitors import Alarm

Show = Callable[[Mapping[str, Any]], None]
"""Shows the metrics of an update or step to people."""
_TOLD = ("job_type", "algorithm", "variant", "base_model", "parent", "versions", "git_commit")
"""What of ``run.json`` trackers are told, beside the configuration."""


class Recorded(Protocol):
    """What a recorder reads of a configuration."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def tracking(self) -> TrackingConfig:
        """Where it is mirrored to."""

    @property
    def resolved_variant(self) -> str:
        """The same for all seeds of a setting."""

    @property
    def tags(self) -> list[str]:
        """What trackers show beside the name."""

    @property
    def samples_kept(self) -> int:
        """Responses of an update that are kept."""

    @property
    def hang_s(self) -> float:
        """Seconds without a sign of life after which the run tells where it hangs."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""


class Recorder:
    """Writes one run; use it as a context manager, so that every ending closes the mirror.

    Args:
        config: The resolved run.
        folder: Its folder.
        job_type: As in ``run.json``.
        resumed_update: Update that the run continues from; what was recorded after it is dropped.
        show: Called with each row of metrics.
        warn: Shows a warning to people.
        say: Receives lines for people.
        open_mirror: Opens the trackers.
    """

    def __init__(
        self,
        config: Recorded,
        folder: RunFolder,
        *,
        job_type: str,
        resumed_update: int | None,
        show: Show,
        warn: Callable[[str], None],
        say: Callable[[str], None],
        open_mirror: Callable[..., Tracker] = open_tracking,
    ) -> None:
        self._config = config
        self._folder = folder
        self._name = f"{config.resolved_variant}-s{config.seed}"
        self._show = show
        self._warn = warn
        self._metrics = folder.metrics_log(resumed_update)
        crash_point("resume.trimmed")
        self._samples = folder.samples_log(resumed_update)
        self._warnings = folder.warnings_log(resumed_update)
        self._faults = FaultLog(folder.path, resumed_update)
        self._watch = HangWatch(config.hang_s, folder.path / "hang.txt", self._on_hang)
        self._open = ExitStack()
        self._update = max(resumed_update or 0, 0)
        self._step: dict[str, float] = {}
        self.summary: dict[str, Any] | None = None
        """Final numbers; set it before the end."""
        record = folder.record()
        told = {key: record.get(key) for key in (*_TOLD, "machine", "command")}
        opened = open_mirror(
            config.tracking,
            folder.path,
            name=self._name,
            job_type=job_type,
            group=config.resolved_variant,
            tags=config.tags,
            run_config={**config.to_dict(), "run": told},
            note=say,
        )
        self._tracker: Tracker = in_background(opened, config.tracking.wait_s)
        if parent := logged_policy(parent_of(folder)):
            self._tracker.use_policy(parent)

    @property
    def where(self) -> str:
        """Where the mirror is, or how to send it; empty when there is none."""
        return self._tracker.where

    def on_update(self, metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
        """Records an update of PPO and the first of its responses."""
        self._watch.beat("the end of an update")
        kept = rows[: self._config.samples_kept]
        self._update = int(metrics["train/update"])
        self._metrics.write(metrics)
        crash_point("metrics.written")
        if kept:
            self._samples.write(*kept)
        self._tracker.log(metrics, distributions(rows))
        self._tracker.log_samples(kept)
        self._show(metrics)

    def on_warning(self, message: str) -> None:
        """Records what looked wrong in the update at hand."""
        self._warned(message, {"message": message})

    def on_alarm(self, alarm: Alarm) -> None:
        """Records what a monitor saw in the update at hand, what it did, and what shows it."""
        row: dict[str, Any] = {
            "monitor": alarm.name,
            "message": alarm.message,
            "action": alarm.action,
        }
        row |= {"effect": alarm.effect, "samples": alarm.samples[: self._config.samples_kept]}
        self._warned(alarm.text, row)

    def _warned(self, message: str, row: dict[str, Any]) -> None:
        message = redacted(message)
        row["message"] = redacted(row["message"])
        self._warnings.write({"update": self._update, **row})
        self._tracker.alert(f"{self._name}, update {self._update}", message, "warning")
        when = f"after update {self._update}" if self._update else "before the first update"
        self._warn(f"warning {when}: {message}")

    def on_fault(self, fault: Fault) -> None:
        """Records what went wrong in the update that is being made."""
        self._faults.write(self._update + 1, fault)
        if fault.boundary == "memory" and self._folder.record().get("exact", True):
            # Sums of other parts round in another way: it is no longer the run of these settings.
            write_json(self._folder.path / "run.json", self._folder.record() | {"exact": False})

    def _on_hang(self, error: HangError) -> None:
        self._faults.write_end(self._update, error)
        self._folder.finish("failed", error=f"{type(error).__name__}: {error}")

    def on_step(self, metrics: Mapping[str, float]) -> None:
        """Records a step of training on given examples; its losses may come in two calls."""
        self._watch.beat("a step")
        if self._step and axis_value(metrics) != axis_value(self._step):
            self.flush_step()
        self._step |= metrics

    def flush_step(self) -> None:
        """Writes the step that is still open."""
        if self._step:
            self._update = int(axis_value(self._step) or 0)
            self._metrics.write(self._step)
            self._tracker.log(self._step)
            self._show(self._step)
            self._step = {}

    def __enter__(self) -> Recorder:
        self._open.enter_context(heard_by(self.on_fault))
        self._open.enter_context(self._watch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = "finished"
        if error is not None:
            stopped = isinstance(error, KeyboardInterrupt | RunInterrupted)
            status = "interrupted" if stopped else "failed"
        self._open.close()
        try:
            with ExitStack() as files:  # a full disk fails here once more: all are closed, still
                for log in (self._metrics, self._samples, self._warnings, self._faults):
                    files.callback(log.close)
                self.flush_step()
                if status == "failed" and error is not None:
                    self._faults.write_end(self._update, error)
        except OSError as full:
            told = status == "failed"  # what ended the run is told, not what it cannot write then
            status, error = "failed", error or full
            if not told:
                raise
        finally:
            if status == "failed" and error is not None:
                self._tracker.alert(f"{self._name} failed", reason(error), "error")
            if status == "finished" and self._config.tracking.log_policy:
                self._log_policy()
            self._tracker.finish(status, self.summary)

    def _log_policy(self) -> None:
        if not self._folder.policy.is_dir():
            return
        try:
            metadata = lineage(self._folder, self.summary or {})
        except CheckpointError as problem:  # of the parent, say; no reason to fail at the end
            self._warn(f"the policy is not sent: {problem}")
            return
        self._tracker.log_policy(self._folder.policy, policy_artifact(self._name), metadata)


def policy_artifact(run_name: str) -> str:
    """What the policy of a run is called among artifacts."""
    return f"{run_name}-policy"


def logged_policy(parent: RunFolder | None) -> str | None:
    """The artifact that a run's parent has logged; None where there is none."""
    try:
        config = {} if parent is None else parent.config()
    except CheckpointError:  # the run needs the policy alone, not this
        return None
    if not (config.get("tracking") or {}).get("log_policy"):
        return None
    return policy_artifact(f"{config.get('variant')}-s{config.get('seed')}")


def lineage(folder: RunFolder, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a trained policy is and what it came from, for whoever finds its files.

    Args:
        folder: Its run folder.
        summary: The final numbers.

    Returns:
        Names of run, task and models, hashes of the policy and of its parent's, the update that
        was kept, the code, and the final numbers.
    """
    record, parent = folder.record(), parent_of(folder)
    final = {key: value for key, value in summary.items() if key.startswith("eval/total/")}
    return {
        **{key: record.get(key) for key in (*_TOLD, "seed", "task")},
        "run_folder": str(folder.path),
        "policy_hash": summary.get("policy_hash"),
        "parent_policy_hash": None if parent is None else parent.summary().get("policy_hash"),
        "update": summary.get("best_update"),
        **final,
    }


def parent_of(folder: RunFolder) -> RunFolder | None:
    """The run whose policy a run started from; None without one, or where it is gone."""
    parent = folder.record().get("parent")
    try:
        return None if parent is None else RunFolder.open(parent)
    except CheckpointError:  # moved or deleted since
        return None


def open_record(
    config: TrainConfig,
    folder: RunFolder,
    resume: bool,
    checkpoint: Path | None,
    say: Callable[[str], None],
) -> tuple[Recorder, Progress]:
    """Opens the record of a training run and its display.

    Args:
        config: The resolved run.
        folder: Its folder.
        resume: Whether the folder's run goes on: what it recorded after the checkpoint is dropped.
        checkpoint: What it goes on from; None begins anew.
        say: Receives lines for people.
    """
    resumed_update = None
    unit = "update" if config.supervised is None else "step"
    if resume:
        # Without a checkpoint everything is done again, and so replaces what was recorded.
        resumed_update = update_of(checkpoint) if checkpoint else -1
        _drop_evaluations(folder.path / "eval", resumed_update)
        say(f"resuming after {unit} {update_of(checkpoint)}")
    progress = Progress(
        config.steps,
        start=update_of(checkpoint),
        unit=unit,
    )
    recorder = Recorder(
        config,
        folder,
        job_type=folder.info().job_type,
        resumed_update=resumed_update,
        show=progress.update,
        warn=progress.note,
        say=say,
    )
    if checkpoint is not None:
        progress.recall(read_metrics(folder.path))
    return recorder, progress


def _drop_evaluations(folder: Path, after: int) -> None:
    """Deletes evaluations of updates that are about to be done again, and sampled ones cut short.

    What is left of these would be drawn behind other draws than in a run that was not stopped.
    """
    for path in folder.glob("*-*.json*"):
        number = path.stem.rpartition("-")[2]
        if number.isdigit() and int(number) > after:
            path.unlink()
    for header in folder.glob("*-*.json"):
        said, rows = read_json(header), header.with_suffix(".jsonl")
        sampled = said.get("sampling", {}).get("temperature", 0) > 0
        if sampled and rows.exists() and len(read_rows(rows)) < said.get("rows", 0):
            rows.unlink()

"""Where the numbers of a run go: its folder first, then its W&B mirror and the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from instructrec.errors import RunInterrupted
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.progress import Progress
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.tracking import Tracker, open_tracking
from instructrec.rl.checkpoint import update_of

Show = Callable[[Mapping[str, Any]], None]
"""Shows the metrics of an update or step to people."""


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
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        *,
        job_type: str,
        resumed_update: int | None,
        show: Show,
        warn: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        self._config = config
        self._show = show
        self._warn = warn
        self._metrics = folder.metrics_log(resumed_update)
        self._samples = folder.samples_log(resumed_update)
        self._warnings = folder.warnings_log(resumed_update)
        self._update = resumed_update or 0
        self._step: dict[str, float] = {}
        self.summary: dict[str, Any] | None = None
        """Final numbers; set it before the end."""
        self._tracker: Tracker = open_tracking(
            config.tracking,
            folder.path,
            name=f"{config.resolved_variant}-s{config.seed}",
            job_type=job_type,
            group=config.resolved_variant,
            tags=[config.algorithm, config.policy.model, *config.reward_value()],
            run_config=config.to_dict(),
            note=say,
        )

    @property
    def where(self) -> str:
        """Where the mirror is, or how to send it; empty when there is none."""
        return self._tracker.where

    def on_update(self, metrics: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
        """Records an update of PPO and the first of its responses."""
        kept = rows[: self._config.output.samples_per_update]
        self._update = int(metrics["train/update"])
        self._metrics.write(metrics)
        if kept:
            self._samples.write(*kept)
        self._tracker.log(metrics)
        self._tracker.log_samples(kept)
        self._show(metrics)

    def on_warning(self, message: str) -> None:
        """Records what looked wrong in the update at hand."""
        self._warnings.write({"update": self._update, "message": message})
        self._warn(f"warning after update {self._update}: {message}")

    def on_step(self, metrics: Mapping[str, float]) -> None:
        """Records a step of supervised training; its losses may come in two calls."""
        if self._step and metrics["sft/step"] != self._step["sft/step"]:
            self.flush_step()
        self._step |= metrics

    def flush_step(self) -> None:
        """Writes the step that is still open."""
        if self._step:
            self._metrics.write(self._step)
            self._tracker.log(self._step)
            self._show(self._step)
            self._step = {}

    def __enter__(self) -> Recorder:
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
        self.flush_step()
        self._metrics.close()
        self._samples.close()
        self._warnings.close()
        self._tracker.finish(status, self.summary)


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
    if resume:
        # Without a checkpoint everything is done again, and so replaces what was recorded.
        resumed_update = update_of(checkpoint) if checkpoint else -1
        _drop_evaluations(folder.path / "eval", resumed_update)
        say(f"resuming after update {update_of(checkpoint)}")
    is_sft = config.algorithm == "sft"
    progress = Progress(
        config.sft.max_steps if is_sft else config.ppo.num_updates,
        start=update_of(checkpoint),
        unit="step" if is_sft else "update",
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
    """Deletes evaluations of updates that are about to be done again."""
    for path in folder.glob("*-*.json*"):
        number = path.stem.rpartition("-")[2]
        if number.isdigit() and int(number) > after:
            path.unlink()

"""Trackio as a tracker: a dashboard on this machine, without an account.

Trackio keeps one SQLite file for a project, below ``TRACKIO_DIR`` or its own cache folder. It knows
no job types, tags or summaries: job type and tags are part of the configuration there, and the
final numbers are logged behind the last update.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from instructrec.errors import ConfigError
from instructrec.experiments.jsonl import plain
from instructrec.experiments.tracking import (
    About,
    Distributions,
    Level,
    TrackingConfig,
    flat_row,
    reason,
    warn,
)
from instructrec.metrics import axis_value
from instructrec.redaction import redacted

_BINS = 32


class TrackioTracker:
    """Mirrors a run to an open Trackio run; the first exception switches it off with a warning."""

    mode = "offline"

    def __init__(self, trackio: Any, run: Any, project: str) -> None:
        self._trackio = trackio
        self._run = run
        self._step = 0
        self.where = f"Trackio: trackio show --project {project}"

    def log(self, metrics: Mapping[str, Any], spread: Distributions | None = None) -> None:
        """Sends the numbers of one update, whose number is the step there."""

        def send(run: Any) -> None:
            values = {key: value for key, value in plain(metrics).items() if value is not None}
            place = axis_value(values)
            self._step = self._step if place is None else int(place)
            for name, numbers in (spread or {}).items():
                histogram = self._trackio.Histogram(numbers.tolist(), num_bins=_BINS)
                values[f"histogram/{name}"] = histogram
            run.log(values, step=self._step)

        self._safely(send)

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends the rows of an update as a table of their own: tables there do not grow."""
        if rows:
            self.log_table("samples", rows)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends a whole table."""

        def send(run: Any) -> None:
            flat = [flat_row(row) for row in rows]
            columns = list(dict.fromkeys(key for row in flat for key in row))
            data = [[row.get(column) for column in columns] for row in flat]
            run.log({name: self._trackio.Table(columns=columns, data=data)}, step=self._step)

        self._safely(send)

    def alert(self, title: str, text: str, level: Level) -> None:
        """Puts an alert on the dashboard."""
        levels = self._trackio.AlertLevel
        grave = levels.ERROR if level == "error" else levels.WARN
        self._safely(
            lambda run: run.alert(title=title, text=redacted(text), level=grave, step=self._step)
        )

    def use_policy(self, name: str) -> None:
        """Does nothing: Trackio links no runs."""

    def log_policy(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """Logs where the policy lies and what it is; its files stay in the run folder."""
        self.log_table("policy", [{"name": name, "folder": str(folder.absolute()), **metadata}])

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Logs the numbers of the summary as ``final/<key>`` and closes the run."""

        def end(run: Any) -> None:
            numbers = plain(summary or {}).items()
            final = {f"final/{k}": v for k, v in numbers if isinstance(v, int | float)}
            run.log({**final, "status": status}, step=self._step)
            run.finish()

        self._safely(end)
        self._run = None

    def abandon(self) -> None:
        """Tells it nothing more; it has nothing for which a program's end would wait."""
        self._run = None

    def _safely(self, action: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            run, self._run = self._run, None
            warn(f"Trackio failed and is switched off; the run goes on ({reason(error)})")
            with suppress(Exception):
                run.finish()


def open_trackio(
    config: TrackingConfig, folder: Path, about: About, trackio: Any = None
) -> tuple[TrackioTracker, str]:
    """Opens the Trackio run of a run folder, on this machine.

    Args:
        config: The user's choice.
        folder: The run folder.
        about: What the run is.
        trackio: The module; None imports it.

    Returns:
        The tracker, and an empty string: there is nothing that could not be reached.

    Raises:
        ConfigError: The package is not installed.
    """
    if trackio is None:
        try:
            trackio = importlib.import_module("trackio")
        except ImportError as error:
            raise ConfigError(
                "tracking.report_to names trackio, which is not installed: "
                "pip install 'instructrec[trackio]'."
            ) from error
    tags = list(dict.fromkeys([*about.tags, *config.tags]))
    told = {**(about.config or {}), "job_type": about.job_type, "tags": tags}
    # It knows runs by their name: one of the same name that is not ours must not be gone on with.
    mark = folder / "trackio-run.txt"
    with contextlib.redirect_stdout(io.StringIO()):  # it greets with several lines
        run = trackio.init(
            project=config.project,
            name=about.name,
            group=config.group or about.group,
            config={**told, "run_folder": str(folder.absolute())},
            resume="allow" if mark.exists() else "never",
            embed=False,
        )
    mark.write_text(about.name + "\n", encoding="utf-8")
    return TrackioTracker(trackio, run, config.project), ""

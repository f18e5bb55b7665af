"""What a person sees while a run goes on: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from instructrec.metrics import axis_value
from instructrec.redaction import redacted

_FIELDS = (
    ("reward", "reward/total/mean", "{:.3f}"),
    ("loss", "sft/loss", "{:.3f}"),
    ("validation loss", "sft/val_loss", "{:.3f}"),
    ("loss", "dpo/loss", "{:.3f}"),
    ("told apart", "dpo/accuracy", "{:.2f}"),
    ("validation loss", "dpo/val_loss", "{:.3f}"),
    ("loss", "rm/loss", "{:.3f}"),
    ("validation loss", "rm/val_loss", "{:.3f}"),
    ("validation accuracy", "rm/val_accuracy", "{:.3f}"),
    ("KL", "ppo/kl_ref", "{:.3f}"),
    ("KL/update", "ppo/approx_kl", "{:.4f}"),
    ("length", "rollout/response_len", "{:.1f}"),
    ("tokens/s", "rollout/tokens_per_s", "{:,.0f}"),
)
"""Label, metric key and format of what is shown, in this order; absent numbers are left out."""


class Progress:
    """Shows how far a run is and how it goes; use it as a context manager.

    The time left is the mean wall time of the updates finished here times the updates that remain.

    Args:
        total_updates: Updates (or steps, for supervised fine-tuning) of the whole run.
        quiet: Show nothing.
        start: Updates that were finished before, when the run is continued.
        unit: What one step of the bar is called.
        score: Metric key of the evaluation whose best value is shown.
        console: Where to write; None takes standard error.
        clock: Seconds since any fixed moment.
    """

    def __init__(
        self,
        total_updates: int,
        quiet: bool = False,
        *,
        start: int = 0,
        unit: str = "update",
        score: str = "eval/total/mean",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total_updates
        self.quiet = quiet
        self._first = self._done = start
        self._unit = unit
        self._score = score
        self._console = console or _Screen(file=sys.stderr, highlight=False)
        self._clock = clock
        self._started = clock()
        self._latest: dict[str, str] = {}
        self._best: tuple[float, int] | None = None
        self._live: Live | None = None
        self._bar = Bar(
            TextColumn(f"[bold]{unit}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task(unit, total=total_updates, completed=start, left="")

    def __enter__(self) -> Progress:
        self._started = self._clock()
        if not self.quiet and self._console.is_terminal:
            self._live = Live(self._view(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
            self._live.stop()
            self._live = None

    def update(self, metrics: Mapping[str, Any]) -> None:
        """Shows the metrics of an update that has finished."""
        place = axis_value(metrics)
        self._done = self._done + 1 if place is None else int(place)
        # A number holds until the next one comes: the score of an evaluation is not there always.
        for label, key, form in _FIELDS:
            if _is_number(metrics.get(key)):
                self._latest[label] = form.format(metrics[key])
        if _is_number(metrics.get(self._score)):
            best, at = self._best_of(float(metrics[self._score]), self._done)
            self._latest["eval"] = f"{metrics[self._score]:.3f}"
            self._latest["best eval"] = f"{best:.3f} at {at}"
        if self.quiet:
            return
        if self._live is None:
            self._print(self.line())
        else:
            left = self._left()
            self._bar.update(self._task, completed=self._done, left=f"{left} left" if left else "")
            self._live.update(self._view())

    def recall(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Takes note of the best evaluation among the recorded updates of a continued run."""
        for row in rows:
            if _is_number(row.get(self._score)):
                self._best_of(float(row[self._score]), int(axis_value(row) or 0))

    def note(self, text: str) -> None:
        """Prints one line, above the live display when there is one."""
        from instructrec.experiments.env_commands import shown

        if not self.quiet:
            self._print(redacted(shown(text)))  # a warning may quote a response

    def line(self) -> str:
        """Returns the present state as one line."""
        parts = [f"{self._unit} {self._done}/{self.total}"]
        parts += [f"{label} {value}" for label, value in self._latest.items()]
        left = self._left()
        return "  ".join(parts + ([f"{left} left"] if left else []))

    def _print(self, text: str) -> None:
        # soft_wrap keeps a line one line, whatever the width: logs are read by programs too.
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _best_of(self, score: float, at: int) -> tuple[float, int]:
        if self._best is None or score > self._best[0]:
            self._best = (score, at)
        return self._best

    def _left(self) -> str:
        here = self._done - self._first
        if here < 1 or self._done >= self.total:
            return ""
        mean = (self._clock() - self._started) / here
        return format_duration(mean * (self.total - self._done))

    def _view(self) -> Group:
        table = Table.grid(padding=(0, 2))
        for _ in self._latest:
            table.add_column(justify="left", no_wrap=True)
        table.add_row(*(Text(label, style="dim") for label in self._latest))
        table.add_row(*(Text(value, style="bold") for value in self._latest.values()))
        return Group(self._bar, table) if self._latest else Group(self._bar)


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        self.quiet = True  # whoever read along has gone; the run goes on


def format_duration(seconds: float) -> str:
    """Returns a duration for people: ``45 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

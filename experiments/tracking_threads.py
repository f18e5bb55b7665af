"""Trackers on threads of their own, so that a run never waits for them.

A run hands over what it has to tell and goes on. What a tracker cannot keep up with is left out
there and counted; the run folder has everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from instructrec.experiments.tracking import Distributions, Level, Tracker, reason, warn

CAPACITY = 256
"""Reports that wait for a tracker at most."""
MOST_TEXT = 2**25
"""Characters in the rows that wait for a tracker, from which on no more rows are taken."""
_INTERRUPTED_S = 15.0
"""Most seconds that a run waits which was told to stop: whoever told it may not be patient."""


class Together:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)
        self.mode = self.trackers[0].mode

    @property
    def where(self) -> str:
        """Where each of them is."""
        return "; ".join(tracker.where for tracker in self.trackers if tracker.where)

    def log(self, metrics: Mapping[str, Any], spread: Distributions | None = None) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.log(metrics, spread))

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.log_samples(rows))

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.log_table(name, rows))

    def alert(self, title: str, text: str, level: Level) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.alert(title, text, level))

    def use_policy(self, name: str) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.use_policy(name))

    def log_policy(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.log_policy(folder, name, metadata))

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.finish(status, summary))

    def abandon(self) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.abandon())

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in self.trackers:
            action(tracker)


class BackgroundTracker:
    """Another tracker, on a thread of its own.

    Args:
        tracker: The tracker.
        wait_s: Most seconds that ``finish`` waits.
        capacity: Reports that may wait. Samples stop at half of it, numbers at all of it; the
            few reports of the end are always taken.
        most_text: Characters that may wait in rows of samples and tables. What is on its way, or
            comes to an empty queue, is taken whole.
    """

    def __init__(
        self, tracker: Tracker, wait_s: float, capacity: int = CAPACITY, most_text: int = MOST_TEXT
    ) -> None:
        self.dropped = 0
        """Reports that were left out, because too many were waiting."""
        self.mode = tracker.mode
        self.where = tracker.where
        self._tracker = tracker
        self._wait_s = wait_s
        self._capacity, self._most_text = capacity, most_text
        self._waiting: SimpleQueue[tuple[Callable[[], None], int] | None] = SimpleQueue()
        # Each is counted up by one thread alone.
        self._text_given, self._text_done = 0, 0
        self._has_ended = False
        # A daemon: a tracker that hangs does not keep the program alive.
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, Any], spread: Distributions | None = None) -> None:
        """See `Tracker`; returns at once."""
        kept = dict(metrics)
        self._give(lambda: self._tracker.log(kept, spread), self._capacity)

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`; returns at once."""
        self._give(lambda: self._tracker.log_samples(rows), self._capacity // 2, _text(rows))

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Tracker`; returns at once."""
        self._give(lambda: self._tracker.log_table(name, rows), self._capacity, _text(rows))

    def alert(self, title: str, text: str, level: Level) -> None:
        """See `Tracker`; returns at once."""
        self._give(lambda: self._tracker.alert(title, text, level), self._capacity)

    def use_policy(self, name: str) -> None:
        """See `Tracker`; returns at once."""
        self._give(lambda: self._tracker.use_policy(name), self._capacity)

    def log_policy(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """See `Tracker`; returns at once."""
        self._give(lambda: self._tracker.log_policy(folder, name, metadata), None)

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """See `Tracker`; waits for all that was told before, but not for long."""
        if self._has_ended:
            return
        self._give(lambda: self._tracker.finish(status, summary), None)
        self._has_ended = True
        self._waiting.put(None)
        wait_s = min(self._wait_s, _INTERRUPTED_S) if status == "interrupted" else self._wait_s
        self._thread.join(wait_s)
        if self._thread.is_alive():
            warn(
                f"tracking has not come to its end within {wait_s:g} s, and is left alone (longer: "
                f"tracking.wait_s). The run folder has everything. {self.where}"
            )
            self.abandon()
        if self.dropped:
            warn(
                f"{self.dropped} reports were left out of tracking, because it was slower than the "
                "run. The run folder has everything."
            )

    def abandon(self) -> None:
        """See `Tracker`; at once, because its thread hangs."""
        self._tracker.abandon()

    def _give(self, report: Callable[[], None], most: int | None, text: int = 0) -> None:
        """Hands a report over, unless ``most`` are waiting already, or too much text is."""
        if self._has_ended:
            return
        waiting = self._text_given - self._text_done
        is_full = most is not None and self._waiting.qsize() >= most
        if is_full or (text and waiting and waiting + text > self._most_text):
            self.dropped += 1
        else:
            self._text_given += text
            self._waiting.put((report, text))

    def _work(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            report, text = waiting
            try:
                report()
            except Exception as error:  # trackers do not raise; if one does, the others go on
                warn(f"tracking failed at one report; the run goes on ({reason(error)})")
            del waiting, report  # what it held, while nothing comes
            self._text_done += text


def _text(value: object) -> int:
    """Characters in the texts of nested mappings and lists, names apart."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_text, value.values()))
    return sum(map(_text, value)) if isinstance(value, list | tuple) else 0


def in_background(tracker: Tracker, wait_s: float) -> Tracker:
    """Puts each tracker on a thread of its own, so that none waits for another.

    Args:
        tracker: What `open_tracking` returned.
        wait_s: Most seconds that ``finish`` waits for each.
    """
    if tracker.mode == "disabled":
        return tracker
    if isinstance(tracker, Together):
        return Together([in_background(one, wait_s) for one in tracker.trackers])
    return BackgroundTracker(tracker, wait_s)

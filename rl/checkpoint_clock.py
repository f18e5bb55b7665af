"""When a checkpoint is due by the clock: often enough to lose little, and seldom enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST_SHARE = 0.03
"""Share of a run's time that checkpoints by the clock may take."""
END_SECONDS = 60.0
"""Work at the end of a training, in seconds, that is worth a checkpoint before it is measured."""


class CheckpointClock:
    """Says when the next checkpoint is due.

    One that took long is followed by a longer pause, so that all of them together take no more than
    ``MOST_SHARE`` of the time. When they are written decides no number of a run.

    Args:
        minutes: Time after the last one; 0 is never.
        now: Seconds of a clock that only goes forward.
    """

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = 60 * minutes, now
        self._cost = 0.0
        self._last = now()

    def is_due(self, *, ends: bool = False) -> bool:
        """Whether so much has been done that it should be kept.

        Args:
            ends: The training is over and about to be measured, which may take long or fail.
        """
        if not self._seconds:
            return False
        wait = min(self._seconds, END_SECONDS) if ends else self._seconds
        return self._now() - self._last >= max(wait, self._cost / MOST_SHARE)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around the writing of any checkpoint: the next one is counted from its end."""
        start = self._now()
        yield
        self._last = self._now()
        self._cost = self._last - start

"""A tracker that is slow, hangs, dies or raises costs a run next to nothing."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from instructrec.experiments.tracking import (
    Distributions,
    NullTracker,
    Tracker,
    TrackingConfig,
)
from instructrec.experiments.tracking_threads import BackgroundTracker, Together, in_background


class Recording(NullTracker):
    """Remembers what it is told, and does something else first."""

    mode, where = "offline", "over there"

    def __init__(self, first: Callable[[], object] = lambda: None) -> None:
        self.first, self.told = first, list[Any]()

    def log(self, metrics: Mapping[str, Any], spread: Distributions | None = None) -> None:
        self.first()
        self.told.append((dict(metrics), threading.current_thread().name))

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.first()
        self.told.append(("samples", len(rows)))

    def log_policy(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
        self.told.append(("policy", name))

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        self.told.append(("end", status))


@pytest.fixture
def gate() -> Any:
    """What holds a tracker up until the test lets it go."""
    event = threading.Event()
    yield event
    event.set()


def test_reports_arrive_in_order_on_another_thread() -> None:
    inner = Recording()
    tracker = BackgroundTracker(inner, wait_s=30)
    for update in range(50):
        tracker.log({"train/update": update})
    tracker.log_policy(Path(), "p", {})
    tracker.finish("finished")
    assert inner.told[:50] == [({"train/update": update}, "tracking") for update in range(50)]
    assert inner.told[50:] == [("policy", "p"), ("end", "finished")]
    assert tracker.dropped == 0


def test_what_is_told_is_as_it_was_when_it_was_told(gate: threading.Event) -> None:
    inner = Recording(gate.wait)
    tracker = BackgroundTracker(inner, wait_s=30)
    metrics = {"train/update": 1}
    tracker.log(metrics)
    metrics["train/update"] = 2
    gate.set()
    tracker.finish("finished")
    assert inner.told[0][0] == {"train/update": 1}


def test_a_hanging_tracker_blocks_nothing_and_is_left_alone(gate: threading.Event) -> None:
    inner = Recording(gate.wait)
    tracker = BackgroundTracker(inner, wait_s=0.2, capacity=8)
    start = time.perf_counter()
    for update in range(1000):
        tracker.log({"train/update": update})
        tracker.log_samples([{"update": update}])
    told_s = time.perf_counter() - start
    with pytest.warns(RuntimeWarning) as caught:
        tracker.finish("finished")
    assert told_s < 5  # two thousand reports to a tracker that takes none
    assert time.perf_counter() - start < told_s + 10
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "has not come to its end within 0.2 s" in messages[0] and "over there" in messages[0]
    assert f"{tracker.dropped} reports were left out" in messages[1]
    assert 1980 <= tracker.dropped <= 1992


def test_numbers_have_the_way_before_samples(gate: threading.Event) -> None:
    inner = Recording(gate.wait)
    tracker = BackgroundTracker(inner, wait_s=30, capacity=8)
    for _ in range(20):
        tracker.log_samples([{}])
    for update in range(3):
        tracker.log({"train/update": update})
    gate.set()
    with pytest.warns(RuntimeWarning, match="reports were left out"):
        tracker.finish("finished")
    assert [told[0] for told in inner.told if isinstance(told[0], dict)] == [
        {"train/update": update} for update in range(3)
    ]


def test_rows_that_wait_hold_a_bounded_amount_of_text(gate: threading.Event) -> None:
    inner = Recording(gate.wait)
    tracker = BackgroundTracker(inner, wait_s=30, most_text=1000)
    tracker.log_samples([{"prompt": "x" * 5000}])  # alone, however long
    for _ in range(5):
        tracker.log_samples([{"prompt": [{"content": "x" * 400}], "total": 1.0}])
        tracker.log({"train/update": 1})
    assert tracker.dropped == 5
    gate.set()
    with pytest.warns(RuntimeWarning, match="5 reports were left out"):
        tracker.finish("finished")
    assert len(inner.told) == 7


def test_text_that_has_been_sent_makes_room() -> None:
    sent = threading.Semaphore(0)
    tracker = BackgroundTracker(Recording(sent.release), wait_s=30, most_text=1000)
    for update in range(5):
        tracker.log_samples([{"prompt": "x" * 800}])
        tracker.log({"train/update": update})  # begins when the thread has let go of the rows
        assert sent.acquire(timeout=30) and sent.acquire(timeout=30)
    tracker.finish("finished")
    assert tracker.dropped == 0


def test_the_end_is_told_however_much_waits(gate: threading.Event) -> None:
    inner = Recording(gate.wait)
    tracker = BackgroundTracker(inner, wait_s=30, capacity=2)
    for update in range(9):
        tracker.log({"train/update": update})
    threading.Timer(0.2, gate.set).start()
    with pytest.warns(RuntimeWarning, match="reports were left out"):
        tracker.finish("finished")
    assert inner.told[-1] == ("end", "finished")


def test_a_slow_tracker_is_waited_for_at_the_end() -> None:
    inner = Recording(lambda: time.sleep(0.02))
    tracker = BackgroundTracker(inner, wait_s=30)
    for update in range(10):
        tracker.log({"train/update": update})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracker.finish("finished")
    assert len(inner.told) == 11


def test_a_tracker_that_raises_after_all_loses_one_report() -> None:
    fails = iter([True, False])

    def sometimes() -> None:
        if next(fails):
            raise OSError(28, "No space left on device")

    inner = Recording(sometimes)
    tracker = BackgroundTracker(inner, wait_s=30)
    with pytest.warns(RuntimeWarning, match=r"the run goes on .*No space left"):
        tracker.log({"train/update": 1})
        tracker.log({"train/update": 2})
        tracker.finish("finished")
    assert [told[0] for told in inner.told] == [{"train/update": 2}, "end"]


def test_after_the_end_nothing_is_told() -> None:
    inner = Recording()
    tracker = BackgroundTracker(inner, wait_s=30)
    tracker.finish("failed")
    tracker.log({"train/update": 1})
    tracker.finish("finished")
    assert inner.told == [("end", "failed")]


def test_one_tracker_does_not_wait_for_another(gate: threading.Event) -> None:
    stuck, fine = Recording(gate.wait), Recording()
    tracker: Tracker = in_background(Together([stuck, fine]), wait_s=0.2)
    tracker.log({"train/update": 1})
    with pytest.warns(RuntimeWarning, match="has not come to its end"):
        tracker.finish("finished")
    assert [told[0] for told in fine.told] == [{"train/update": 1}, "end"]
    assert stuck.told == []
    assert tracker.where == "over there; over there"


def test_no_tracker_needs_no_thread() -> None:
    before = threading.active_count()
    assert isinstance(in_background(NullTracker(), 1.0), NullTracker)
    assert threading.active_count() == before


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tracking\.wait_s = 0"):
        TrackingConfig(wait_s=0)
    with pytest.raises(ValueError, match=r"wait_s = inf.*at most 86400"):
        TrackingConfig(wait_s=float("inf"))  # threads cannot wait for so long
    with pytest.raises(ValueError, match="each name once"):
        TrackingConfig(report_to=("wandb", "wandb"))

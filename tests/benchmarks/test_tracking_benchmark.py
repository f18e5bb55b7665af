"""The benchmark of tracking: what it counts, and when it fails."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tracking
from benchmarks.tracking import Watch


def watch(steps_s: list[float], handed_s: list[float], cpu_s: float = 0.0) -> Watch:
    return Watch(steps_s, handed_s, cpu_s)


def test_the_share_counts_what_tracking_adds() -> None:
    runs = {True: watch([2.2, 2.2], [0.03, 0.03], 0.05), False: watch([2.0, 2.0], [0.02, 0.02])}
    order: list[bool] = []

    def once(tracked: bool) -> Watch:
        order.append(tracked)
        return runs[tracked]

    found = tracking.measure(2, once)
    assert order == [False, True, True, False]
    assert found["updates"] == 4 and found["update_s"] == 2.2
    assert found["handing_share"] == pytest.approx(0.02 / 4.4)
    assert found["cpu_share"] == pytest.approx(0.07 / 4.4)
    assert found["ratio"] == pytest.approx(1.1)
    assert "1.591%" in tracking.report(found)


def test_the_first_update_warms_up_and_does_not_count() -> None:
    seen = Watch()

    def train(on_update: Any) -> None:
        for _ in range(3):
            time.sleep(0.01)
            on_update({}, [])

    seen.around(train)(on_update=lambda metrics, rows: time.sleep(0.002))
    assert len(seen.steps_s) == len(seen.handed_s) == 2
    assert all(step >= 0.012 for step in seen.steps_s)
    assert all(
        0.002 <= handed < step for handed, step in zip(seen.handed_s, seen.steps_s, strict=True)
    )


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="CPU time by thread needs Linux")
def test_the_work_of_another_thread_is_seen() -> None:
    go_on, stop = threading.Event(), threading.Event()

    def work() -> None:
        end = time.thread_time() + 0.3
        while time.thread_time() < end:
            pass
        go_on.set()
        stop.wait()

    before = tracking.tracking_cpu_s()
    thread = threading.Thread(target=work)
    thread.start()
    go_on.wait()
    after = tracking.tracking_cpu_s()
    stop.set()
    thread.join()
    assert after - before == pytest.approx(0.3, abs=0.1)


def test_a_share_above_the_limit_is_a_failure(tmp_path: Path) -> None:
    def run(model: str, updates: int, episodes: int, tracked: bool, folder: Path) -> Watch:
        return watch([1.0] * updates, [0.0] * updates, 0.1 * updates * tracked)

    file = tmp_path / "tracking.json"
    assert tracking.main(["--rounds", "1", "--json", str(file)], run) == 1
    assert json.loads(file.read_text())["cpu_share"] == pytest.approx(0.1)
    assert tracking.main(["--rounds", "1", "--limit", "0.2"], run) == 0


@pytest.mark.slow
def test_it_runs_on_a_tiny_model(tmp_path: Path) -> None:
    for tracked in (False, True):
        seen = tracking.run("tiny", 2, 8, tracked, tmp_path)
        assert len(seen.steps_s) == 2 and min(seen.steps_s) > 0
    assert seen.tracking_cpu_s > 0
    assert list((tmp_path / "tracked" / "wandb").glob("offline-run-*"))

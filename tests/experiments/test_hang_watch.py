"""A run that stands still shows where, and ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructrec.errors import ConfigError, HangError
from instructrec.experiments.config import OutputConfig
from instructrec.experiments.hang_watch import HangWatch
from instructrec.phases import phase


class Left:
    """Takes down with which code a process would have ended."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.errors: list[HangError] = []

    def __call__(self, code: int) -> None:
        self.code = code

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.code is None and time.monotonic() < end:
            time.sleep(0.02)


def stand_still_here(left: Left) -> None:
    left.wait(20)


def test_a_run_that_stands_still_is_shown_and_ended(tmp_path: Path, capfd) -> None:
    left = Left()
    with HangWatch(0.2, tmp_path / "hang.txt", left.errors.append, left), phase("decode"):
        stand_still_here(left)
    assert left.code == 10
    (error,) = left.errors
    assert "last sign was 'decode'" in str(error) and str(tmp_path / "hang.txt") in str(error)
    shown = (tmp_path / "hang.txt").read_text()
    assert "stand_still_here" in shown and "output.hang_s = 0.2" in shown
    assert capfd.readouterr().err.count("instructrec: ") == 2


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    left = Left()
    with HangWatch(2.0, tmp_path / "hang.txt", left.errors.append, left) as watch:
        for _ in range(8):
            with phase("decode"):
                time.sleep(0.05)
            watch.beat("an update")
    time.sleep(0.1)
    assert left.code is None and not (tmp_path / "hang.txt").exists()


def test_nothing_is_watched_on_request(tmp_path: Path) -> None:
    left = Left()
    with HangWatch(0, tmp_path / "hang.txt", left.errors.append, left), phase("decode"):
        time.sleep(0.2)
    assert left.code is None


def test_a_record_that_hangs_too_does_not_keep_the_process(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("instructrec.experiments.hang_watch._PATIENCE", 0.1)
    left = Left()
    with HangWatch(0.1, tmp_path / "hang.txt", lambda _: time.sleep(60), left):
        left.wait(20)
    assert left.code == 10


def test_the_process_really_ends(tmp_path: Path) -> None:
    program = (
        "import pathlib, time; from instructrec.experiments.hang_watch import HangWatch\n"
        f"with HangWatch(0.1, pathlib.Path({str(tmp_path / 'hang.txt')!r}), print):\n"
        "    time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=50, capture_output=True)
    assert done.returncode == 10 and b"nothing has happened" in done.stderr


def test_a_wrong_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"output.hang_s = -1"):
        OutputConfig(hang_s=-1)

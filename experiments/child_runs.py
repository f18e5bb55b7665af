"""Runs that others start: each in a process of its own, and only those that are missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from instructrec.experiments.runfolder import RunFolder

Run = Callable[[list[str]], int]
"""Runs ``instructrec`` with arguments; returns its exit code."""


def run_in_a_process(arguments: list[str]) -> int:
    """Runs ``instructrec`` in a process of its own, which gives all of its memory back."""
    command = [sys.executable, "-m", "instructrec.experiments.cli", *arguments]
    return subprocess.run(command, check=False).returncode


def is_finished(path: Path) -> bool:
    """Whether a run folder is there and its run came to its end."""
    is_run = (path / "run.json").exists()
    return is_run and RunFolder.open(path).record()["status"] == "finished"

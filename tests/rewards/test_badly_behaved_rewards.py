"""Rewards that disturb the process that they run in, or are never the same."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from instructrec.rewards import Status, make_rewards

FAULTY = """
import os, time


def faulty(completions, **columns):
    for text in completions:
        if text == "die":
            os._exit(0)
        if text == "hang":
            time.sleep(600)
    return [float(len(text)) for text in completions]
"""


@pytest.mark.parametrize("fails", [False, True])
def test_a_reward_that_leaves_the_working_folder_is_brought_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def leaving(completions: list[str], **columns: object) -> list[float]:
        os.chdir(tmp_path / "elsewhere")
        if fails:
            raise ValueError("gone")
        return [1.0] * len(completions)

    batch = make_rewards({"leaving": leaving}).score(["p"] * 2, ["a", "b"], {})
    assert Path.cwd() == tmp_path
    expected = Status.RAISED if fails else Status.SCORED
    assert batch.status["leaving"] == [expected] * 2


def test_a_reward_that_is_never_the_same_is_asked_once_and_kept() -> None:
    calls: list[int] = []

    def dice(completions: list[str], **columns: object) -> list[float]:
        calls.append(len(completions))
        return [random.random() for _ in completions]

    batch = make_rewards({"dice": dice}).score(["p"] * 3, ["a", "b", "c"], {})
    assert calls == [3]
    assert np.array_equal(batch.total, batch.parts["dice"])  # the number that was drawn, not anew


@pytest.mark.slow
def test_worker_processes_that_die_again_and_again_leave_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(FAULTY)
    spec = {"use": f"{file}:faulty", "isolation": "worker", "timeout": 1.0}
    rewards = make_rewards({"faulty": spec})
    me = psutil.Process()

    def held() -> tuple[int, int, int]:
        return me.num_fds(), threading.active_count(), len(me.children(recursive=True))

    rewards.score(["p"], ["a"], {})
    before = held()
    for i in range(12):
        batch = rewards.score(["p"] * 2, ["hang" if i % 6 == 5 else "die", "abc"], {})
        assert batch.status["faulty"][1] is Status.SCORED and batch.parts["faulty"][1] == 3.0
        assert batch.status["faulty"][0] in (Status.WORKER_DIED, Status.TIMEOUT)
    rewards.score(["p"], ["a"], {})
    assert held() == before
    assert all(child.status() != psutil.STATUS_ZOMBIE for child in me.children())

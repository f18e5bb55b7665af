"""The helper process: deadlines, deaths, and nothing of the caller inside it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructrec.errors import ConfigError
from instructrec.rewards import FailedScore, Status
from instructrec.rewards.helper_process import HelperProcess

CODE = """
import os, sys, time

def answer(question):
    kind, value = question
    if kind == "echo":
        print("noise on the way")
        return value
    if kind == "raise":
        raise ValueError(value)
    if kind == "sleep":
        time.sleep(value)
    if kind == "die":
        os._exit(0)
    if kind == "env":
        return sorted(os.environ)
    if kind == "pid":
        return os.getpid()
    if kind == "memory":
        return len(bytearray(value))
"""


@pytest.fixture
def helper(tmp_path: Path) -> HelperProcess:
    file = tmp_path / "work.py"
    file.write_text(CODE)
    return HelperProcess(f"{file}:answer")


def test_each_failure_has_its_status_and_the_next_question_is_answered(helper):
    assert helper.ask(["echo", {"a": [1, None, "\ud800é\n"]}], 20) == {"a": [1, None, "\ud800é\n"]}
    late = helper.ask(["sleep", 60], 0.5)
    assert (late.status, late.message) == (Status.TIMEOUT, "no answer within 0.5 s")
    assert helper.ask(["echo", 1], 20) == 1
    dead = helper.ask(["die", 0], 20)
    assert dead.status == Status.WORKER_DIED
    wrong = helper.ask(["raise", "no good"], 20)
    assert (wrong.status, wrong.message) == (Status.RAISED, "ValueError: no good")
    first = helper.ask(["pid", 0], 20)
    assert helper.ask(["pid", 0], 20) == first != os.getpid()
    os.kill(first, signal.SIGKILL)
    time.sleep(0.2)
    assert helper.ask(["echo", 2], 20) == 2
    assert not alive(first)
    helper.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_memory_without_end_is_a_failure(helper):
    assert helper.ask(["memory", 2**40], 20).status == Status.RAISED
    assert helper.ask(["memory", 2**10], 20) == 2**10


def test_keys_of_the_caller_stay_with_it(helper, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    names = helper.ask(["env", 0], 20)
    assert "PATH" in names and "OPENAI_API_KEY" not in names


def test_a_process_that_does_not_start_says_why(tmp_path):
    with pytest.raises(ConfigError, match=r"did not start: .*no file"):
        HelperProcess(f"{tmp_path / 'nothing.py'}:answer").ask(1, 5)


def test_what_a_new_process_does_first_does_not_count_against_the_deadline(helper):
    slow = HelperProcess(helper._target, warm_up=["sleep", 1.5])
    assert slow.ask(["echo", 1], 1.0) == 1


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or ") Z " not in stat.read_text()


def gone_within(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_it_ends_with_its_owner_object(helper):
    pid = helper.ask(["pid", 0], 20)
    helper.close()
    assert gone_within(pid, 10)


@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True])
def test_it_does_not_outlive_a_killed_caller(tmp_path, busy):
    (tmp_path / "work.py").write_text(CODE)
    code = f"""
from instructrec.rewards.helper_process import HelperProcess
helper = HelperProcess({str(tmp_path / "work.py") + ":answer"!r})
print(helper.ask(["pid", 0], 20), flush=True)
helper.ask(["sleep", 600 if {busy} else 0], 1.0 if not {busy} else 3.0)
input()
"""
    caller = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid = int(caller.stdout.readline())
    time.sleep(1)
    caller.kill()
    caller.communicate()
    assert gone_within(pid, 30)


def test_a_failed_score_is_nan_that_keeps_its_reason():
    score = FailedScore(Status.TIMEOUT, "late")
    assert score != score and isinstance(score, float)
    copy = pickle.loads(pickle.dumps(score))
    assert (copy.status, copy.message) == (Status.TIMEOUT, "late")
    assert repr(score) == "FailedScore(timeout: late)"
    with pytest.raises(ValueError, match=r"is no failure"):
        FailedScore(Status.SCORED, "")

"""Workers asked one response at a time: deadlines, deaths, and nothing of the caller inside."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys

import pytest

from instructrec.errors import ConfigError
from instructrec.rewards import FailedScore, Status, make_reward, make_rewards
from instructrec.rewards.isolation import Workers, WorkerSettings

WORK = """
import os, time

def work(completions, value, **columns):
    (kind,), (value,) = completions, value
    if kind == "surrogate":
        return [float(value == "\\ud800\\u00e9\\n")]
    if kind == "raise":
        raise ValueError(value)
    if kind == "sleep":
        time.sleep(value)
    if kind == "die":
        os._exit(0)
    if kind == "exit":
        raise SystemExit(value)
    if kind == "chat":
        return [kind["content"]]
    if kind == "env":
        return [float(value in os.environ)]
    if kind == "pid":
        return [float(os.getpid())]
    if kind == "memory":
        return [float(len(bytearray(value)))]
    return [0.0]


class Slow:
    def __init__(self, seconds=1.5):
        self.seconds = seconds

    def warm_up(self):
        time.sleep(self.seconds)
        self.seconds = 0

    def __call__(self, completions, **columns):
        time.sleep(self.seconds)
        return [1.0] * len(completions)


class Reading:
    def __call__(self, completions, **columns):
        self.last_truncated = [len(text) > 5 for text in completions]
        return [float(text[:5]) for text in completions]


class Broken(Slow):
    def warm_up(self):
        from instructrec.errors import ConfigError
        raise ConfigError("no such model")
"""


@pytest.fixture
def start(tmp_path):
    """Starts workers that are asked about one response at a time, and ends them."""
    file = tmp_path / "work.py"
    file.write_text(WORK)
    made = []

    def make(attribute="work", **settings):
        made.append(
            Workers(make_reward(f"{file}:{attribute}"), WorkerSettings(chunk=1, **settings))
        )
        return made[-1]

    yield make
    for workers in made:
        workers.close()


def ask(workers, *questions):
    """Returns the score of each (kind, value), or its status and message."""
    kinds, values = zip(*questions, strict=True)
    scored = workers.score([""] * len(kinds), kinds, {"value": values})
    outcomes = zip(scored.scores.tolist(), scored.status, scored.messages, strict=True)
    return [(status, why) if status.failed else score for score, status, why in outcomes]


def test_each_failure_has_its_status_and_the_next_question_is_answered(start, gone):
    workers = start(timeout=2.0)
    late, well, dead, wrong, left, chat, text = ask(
        workers,
        *(("sleep", 60), ("sleep", 0), ("die", 0), ("raise", "no good")),
        *(("exit", 3), ("chat", 0)),
        ("surrogate", "\ud800é\n"),
    )
    assert late == (Status.TIMEOUT, "no answer within 2 s")
    assert dead == (Status.WORKER_DIED, "its process ended with exit status 0 and no scores")
    assert wrong == (Status.RAISED, "ValueError: no good")
    assert left == (Status.WORKER_DIED, "its process ended with exit status 3 and no scores")
    assert "set format: chat for this reward" in chat[1]
    assert (well, text) == (0.0, 1.0)
    first, second = ask(workers, ("pid", 0), ("pid", 0))
    assert first == second != os.getpid()
    os.kill(int(first), signal.SIGKILL)
    assert gone(int(first))
    assert ask(workers, ("sleep", 0)) == [0.0]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_memory_without_end_is_a_failure(start):
    (raised, _), size = ask(start(memory_mb=4096), ("memory", 2**40), ("memory", 2**10))
    assert (raised, size) == (Status.RAISED, 2**10)


def test_what_was_read_only_in_part_is_known_outside(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    texts = ["1", "1.23456", "bad", "2"]
    for isolation in ("worker", "none"):
        spec = {"use": f"{tmp_path / 'work.py'}:Reading", "isolation": isolation}
        rewards = make_rewards({"r": spec})
        for some in (texts[:2], texts):  # the second time, one by one
            batch = rewards.score(["p"] * len(some), some, {})
            assert batch.flags == {"r": {"truncated": [False, True, False, False][: len(some)]}}
        rewards.close()


def test_keys_of_the_caller_stay_with_it(start, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert ask(start(), ("env", "PATH"), ("env", "OPENAI_API_KEY")) == [1.0, 0.0]


def test_what_a_new_process_does_first_does_not_count_against_the_deadline(start):
    assert ask(start("Slow", timeout=1.2), ("", 0)) == [1.0]
    with pytest.raises(ConfigError, match="no such model"):
        ask(start("Broken"), ("", 0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_asks_a_process_of_its_own_and_leaves_that_of_its_parent(tmp_path):
    (tmp_path / "work.py").write_text(WORK)
    code = f"""
import os
from instructrec.rewards import make_reward
from instructrec.rewards.isolation import Workers, WorkerSettings
workers = Workers(make_reward({str(tmp_path / "work.py") + ":work"!r}), WorkerSettings(timeout=20))
pid = lambda: workers.score([""], ["pid"], {{"value": [0]}}).scores[0]
mine = pid()
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    assert pid() == mine
else:
    assert pid() != mine
    workers.close()
    os._exit(0)
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60)
    assert run.returncode == 0


def test_they_end_with_their_owner_object(tmp_path, gone):
    (tmp_path / "work.py").write_text(WORK)
    workers = Workers(make_reward(f"{tmp_path / 'work.py'}:work"), WorkerSettings())
    (pid,) = ask(workers, ("pid", 0))
    del workers
    assert gone(int(pid))


def test_a_failed_score_is_nan_that_keeps_its_reason():
    score = FailedScore(Status.TIMEOUT, "late")
    assert score != score and isinstance(score, float)
    copy = pickle.loads(pickle.dumps(score))
    assert (copy.status, copy.message) == (Status.TIMEOUT, "late")
    assert repr(score) == "FailedScore(timeout: late)"
    with pytest.raises(ValueError, match=r"is no failure"):
        FailedScore(Status.SCORED, "")

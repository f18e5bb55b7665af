"""Rewards in worker processes: faults are counted exactly and harm nothing else."""

from __future__ import annotations

import math
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from instructrec.devices import OWNERS_RANK
from instructrec.errors import ConfigError, DataError, RewardError
from instructrec.rewards import Status, make_rewards
from instructrec.rewards.isolation import GIVE_UP

FAULTY = '''
import os, signal, sys, time
from instructrec.errors import DataError


def faulty(completions, **columns):
    """The number in the text, or the fault that the text names."""
    scores = []
    for text in completions:
        if text == "raise":
            raise ValueError("told to")
        if text == "hang":
            time.sleep(600)
        if text == "spin":
            while True:
                try:
                    time.sleep(0)
                except BaseException:
                    pass
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if text == "exit":
            sys.exit(0)
        if text == "leave":
            os._exit(0)
        if text == "eat":
            len(bytearray(4 << 30))
        if text == "data":
            raise DataError("a column is wrong")
        if text == "short":
            return [1.0]
        scores.append({"nan": float("nan"), "na": None}.get(text, 0.0) if not text[:1].isdigit()
                      else float(text))
    return scores


def of_process(completions, *, variable="NONE", **columns):
    print("a word to the people")
    return [float(variable in os.environ)] + [float(os.getpid())] * (len(completions) - 1)


def busy(completions, **columns):
    print("busy", os.getpid(), flush=True)
    time.sleep(600)


async def tokens(completion_ids, reference, **columns):
    return [float(len(ids) + (r == "x")) for ids, r in zip(completion_ids, reference)]


class Stateful:
    def __call__(self, completions, **columns):
        return [0.0] * len(completions)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("isolated") / "faulty_rewards.py"
    path.write_text(FAULTY)
    return path


@pytest.fixture
def isolated(file):
    """Makes a reward of the file in a worker, and ends the workers behind the test."""
    made = []

    def make(attribute="faulty", **settings):
        spec = {"use": f"{file}:{attribute}", "isolation": "worker", **settings}
        made.append(make_rewards({"r": spec}))
        return made[-1]

    yield make
    for combined in made:
        combined.close()


def score(combined, texts, columns=None, extras=None):
    return combined.score(["p"] * len(texts), texts, columns or {}, extras)


@pytest.mark.slow
def test_every_fault_is_counted_once_and_the_others_keep_their_scores(isolated):
    texts = [str(i % 7) for i in range(150)]
    faults = {
        **{3: "raise", 70: "raise", 71: "hang", 100: "spin", 20: "nan", 21: "na"},
        **{40: "die", 90: "exit", 149: "leave"},
    }
    for i, fault in faults.items():
        texts[i] = fault
    batch = score(isolated(workers=2, timeout=1.5), texts)
    expected = {
        "raise": Status.RAISED,
        "hang": Status.TIMEOUT,
        "spin": Status.TIMEOUT,
        "nan": Status.NONFINITE,
        "na": Status.NOT_APPLICABLE,
        "die": Status.WORKER_DIED,
        "exit": Status.WORKER_DIED,
        "leave": Status.WORKER_DIED,
    }
    assert batch.status["r"] == [expected.get(text, Status.SCORED) for text in texts]
    wanted = [math.nan if text in expected else float(text) for text in texts]
    np.testing.assert_equal(batch.parts["r"], wanted)
    messages = batch.messages["r"]
    assert messages[3] == "ValueError: told to"
    assert messages[71] == "no answer within 1.5 s"
    assert messages[40] == "its process was killed by SIGKILL"
    assert messages[90] == messages[149] == "its process ended with exit status 0 and no scores"


def test_a_reward_that_hangs_on_everything_is_given_up(isolated):
    texts = ["hang"] * (GIVE_UP + 4)
    batch = score(isolated(timeout=0.05), texts)
    assert batch.status["r"] == [Status.TIMEOUT] * len(texts)
    messages = batch.messages["r"]
    assert messages[:GIVE_UP] == ["no answer within 0.05 s"] * GIVE_UP
    assert messages[GIVE_UP:] == ["not asked: the 8 responses before it hung"] * 4


def test_what_is_not_the_samples_fault_ends_the_run(isolated):
    with pytest.raises(DataError, match="a column is wrong"):
        score(isolated(), ["1", "data"])
    with pytest.raises(RewardError, match="returned 1 scores for 2 completions"):
        score(isolated(), ["1", "short"])
    with pytest.raises(DataError, match="needs the column 'reference'"):
        score(isolated("tokens"), ["1"])


def test_columns_and_token_ids_travel_and_async_rewards_are_awaited(isolated):
    ids = [[1, 2], [], [3]]
    batch = score(
        isolated("tokens"), ["a"] * 3, {"reference": ["x", "y", "x"]}, {"completion_ids": ids}
    )
    assert batch.total.tolist() == [3.0, 0.0, 2.0]


def test_a_built_in_reward_and_its_options_travel_by_name():
    spec = {"use": "exact_match", "options": {"normalise": "casefold"}, "isolation": "worker"}
    combined = make_rewards({"loose": spec})
    batch = combined.score(["p"] * 2, ["YES", "no"], {"reference": ["yes", "yes"]})
    combined.close()
    assert batch.total.tolist() == [1.0, 0.0]


def test_a_worker_sees_only_the_environment_that_it_was_given(isolated, monkeypatch):
    monkeypatch.setenv("VERY_SECRET_KEY", "x")
    options = {"variable": "VERY_SECRET_KEY"}
    assert score(isolated("of_process", options=options), ["a"]).total.tolist() == [0.0]
    given = isolated("of_process", options=options, environment=["VERY_SECRET_KEY"])
    assert score(given, ["a"]).total.tolist() == [1.0]


def test_a_worker_knows_its_owners_gpu_and_is_no_member_of_the_group(isolated, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    for variable, expected in ((OWNERS_RANK, 1.0), ("LOCAL_RANK", 0.0)):
        combined = isolated("of_process", options={"variable": variable})
        assert score(combined, ["a"]).total.tolist() == [expected]


def test_workers_stay_work_side_by_side_and_end_when_closed(isolated, gone):
    combined = isolated("of_process", workers=2)
    first = score(combined, ["a"] * 8).parts["r"].astype(int).tolist()
    again = score(combined, ["a"] * 8).parts["r"].astype(int).tolist()
    pids = {pid for pid in first if pid > 1}
    assert len(pids) == 2 and os.getpid() not in pids
    assert {pid for pid in again if pid > 1} <= pids
    combined.close()
    assert all(gone(pid) for pid in pids)
    assert score(combined, ["a"] * 2).valid.all()  # starts again when it is needed


def test_memory_beyond_the_limit_costs_one_sample(isolated):
    batch = score(isolated(memory_mb=3000), ["1", "eat", "2"])
    assert batch.status["r"] == [Status.SCORED, Status.RAISED, Status.SCORED]
    assert "MemoryError" in batch.messages["r"][1]


def test_a_worker_that_cannot_start_is_an_error_and_not_a_fault_of_the_samples(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("ONLY_HERE", "1")
    (tmp_path / "ends.py").write_text(
        "import os\n"
        "'ONLY_HERE' in os.environ or os._exit(3)\n"
        "def f(completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    spec = {"use": f"{tmp_path}/ends.py:f", "isolation": "worker"}
    with pytest.raises(RewardError, match=r"memory_mb = 4096 may be too small.*on a GPU"):
        score(make_rewards({"r": {**spec, "memory_mb": 4096}}), ["a"])
    combined = make_rewards({"r": spec})
    with pytest.raises(
        RewardError, match=r"did not start: its process ended with exit status 3 .*above\.$"
    ):
        score(combined, ["1"])


PARENT = """
import sys, threading
from instructrec.rewards import make_rewards
spec = {"use": sys.argv[1] + ":of_process", "isolation": "worker"}
pids = make_rewards({"r": spec})
print(int(pids.score(["p"] * 2, ["a"] * 2, {}).parts["r"][1]), flush=True)
spec["use"] = sys.argv[1] + ":busy"
make_rewards({"r": spec}).score(["p"], ["a"], {})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal to orphans is Linux's")
def test_no_worker_outlives_a_parent_that_is_killed(file, tmp_path, gone):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    pipe = subprocess.PIPE  # what a worker prints goes to the parent's standard error
    parent = subprocess.Popen([sys.executable, script, file], stdout=pipe, stderr=pipe, text=True)
    idle = int(parent.stdout.readline())
    busy = next(int(line.split()[1]) for line in parent.stderr if line.startswith("busy"))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    try:
        assert gone(idle) and gone(busy)  # the busy one does not look whether anybody waits
    finally:
        for pid in (idle, busy):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_rewards_that_cannot_travel_are_refused(file):
    def inner(completions, **columns):
        return [0.0]

    for use, options, message in (
        (inner, {}, "cannot be written into a config"),
        (f"{file}:Stateful", {}, "keeps state"),
        ("weighted", {"parts": {"exact_match": 1}}, "made of other rewards"),
        (f"{file}:of_process", {"variable": object()}, "options? .*(sent to a worker|variable)"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_rewards({"r": {"use": use, "options": options, "isolation": "worker"}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 2}, r"workers given, but isolation = 'none'"),
        ({"memory_mb": 100}, r"memory_mb given, but isolation = 'none'"),
        ({"isolation": "thread"}, r"isolation = 'thread': expected one of none, worker"),
        ({"isolation": "worker", "workers": 0}, r"workers = 0: expected a whole number of 1"),
        ({"isolation": "worker", "timeout": 0}, r"timeout = 0: expected a number of seconds"),
        ({"timeout": float("inf")}, r"timeout = inf: expected a number of seconds"),
        ({"isolation": "worker", "environment": "KEY"}, r"environment = 'KEY': expected a list"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_rewards({"exact_match": {"use": "exact_match", **settings}})


def test_isolated_rewards_survive_pickling_and_know_their_settings(file):
    spec = {
        "use": f"{file}:faulty",
        "weight": 1.0,
        "timeout": 5.0,
        "isolation": "worker",
        "workers": 2,
        "memory_mb": 9000,
        "environment": ["KEY"],
    }
    combined = pickle.loads(pickle.dumps(make_rewards({"r": spec})))
    assert combined.spec == {"r": spec}


# In this process ----------------------------------------------------------------------------------


def test_a_reward_that_hangs_in_this_process_is_reported_once(capfd):
    def slow(completions, **columns):
        time.sleep(0.8)
        return [0.0] * len(completions)

    score(make_rewards({"slow": {"use": slow, "timeout": 0.1}}), ["a", "b"])
    err = capfd.readouterr().err
    assert err.count("reward 'slow' on 2 responses: no answer after") == 1
    assert "isolation: worker" in err
    score(make_rewards({"slow": {"use": slow, "timeout": 5.0}}), ["a"])
    assert capfd.readouterr().err == ""


def test_the_reason_of_a_single_failure_comes_out_of_the_worker(tmp_path):
    file = tmp_path / "some_fail.py"
    file.write_text(
        "from instructrec.rewards import FailedScore, Status\n"
        "def some_fail(completions, **columns):\n"
        "    late = FailedScore(Status.TIMEOUT, 'the server is away')\n"
        "    return [late if text == 'bad' else 1.0 for text in completions]\n"
    )
    rewards = make_rewards({"some": {"use": f"{file}:some_fail", "isolation": "worker"}})
    batch = rewards.score(["p"] * 3, ["a", "bad", "b"], {})
    assert batch.status["some"] == [Status.SCORED, Status.TIMEOUT, Status.SCORED]
    assert batch.messages["some"][1] == "the server is away"


@pytest.mark.slow
def test_a_worker_that_died_while_nobody_asked_costs_no_sample(isolated, gone):
    combined = isolated("of_process")
    pid = int(score(combined, ["a", "b"]).parts["r"][1])
    os.kill(pid, signal.SIGKILL)
    assert gone(pid)
    assert score(combined, ["a"]).status["r"] == [Status.SCORED]

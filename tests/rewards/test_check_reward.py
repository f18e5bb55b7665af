"""check_reward: every point can fail, says what to do, and lets good rewards pass."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from instructrec.envs.tasks.base import iterate, make_task
from instructrec.errors import DataError, RewardError
from instructrec.rewards import check_reward
from instructrec.rewards.check_points import COMPARISONS
from instructrec.rewards.registry import _BUILTINS
from instructrec.rewards.watchdog import deadline

PARTS = {"parts": {"exact_match": 1.0, "bleu": 1.0}}
NEEDED = {
    "weighted": {**PARTS, "reduce": "mean"},
    "gate": PARTS,
    "sequence": PARTS,
    "minimum": PARTS,
    "product": PARTS,
    "regex": {"pattern": "a+"},
    "json_schema": {"schema": {"type": "object"}},
    "length": {"maximum": 5},
    "language": {"language": "en"},
    # Its penalty takes something off the best answer of all, too: half of a single word's score.
    "meteor": {"synonyms": False, "gamma": 0},
}
"""Options without which a built-in reward has nothing to go by, or does not give full marks."""
GRAPH = '{"successors": {"b": "a", "c": "ab", "d": "bc"}, "goal": "a", "most_nodes": 5}'
DATA = {
    "numeric": [{"prompt": f"{n} + 3?", "reference": str(n + 3)} for n in range(4)],
    "multiple_choice": [
        {"prompt": "Which is red?", "choices": ["sky", "blood"], "reference": "B"},
        {"prompt": "Which is wet?", "choices": ["rain", "sand"], "reference": "A"},
    ],
    "constraints": [
        {"prompt": "Greet me.", "response": "Good day", "constraints": ["no_comma", "title"]},
        {"prompt": "Name two.", "response": "<<a>>, b", "constraints": ["no_comma", "title"]},
    ],
    "optimality": [
        {"prompt": node, "response": "a", "start": node, "graph": GRAPH} for node in "bcd"
    ],
}
"""Data for rewards that ours does not suit."""


def verdicts(reward, data=None, **options):
    return {p.name: (p.verdict, p.message) for p in check_reward(reward, data, **options).points}


# These need a model or a server, start a process first, or import a library that sets variables.
ON_THEIR_OWN = (
    "learned",
    "alignment",
    "code_execution",
    "classifier",
    "embedding_similarity",
    "llm_judge",
)
ON_THEIR_OWN += ("math_verify", "hf_metric", "reasoning_gym")
BUILT_IN = [name for name in _BUILTINS if name not in ON_THEIR_OWN]


def test_the_scorers_of_reasoning_gym_pass_on_problems_of_their_own():
    pytest.importorskip("reasoning_gym")
    task = make_task("reasoning_gym", generator="leg_counting", size=3)
    rows = [{"prompt": item.prompt, **item.columns} for item in iterate(task)]
    answers = [row | {"response": row["reference"]} for row in rows]
    check_reward("reasoning_gym", answers).require()


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_rewards_pass(name):
    report = check_reward(name, DATA.get(name), options=NEEDED.get(name)).require()
    assert len(report.points) == 15
    assert not [p for p in report.points if p.verdict == "warn" and p.name != "range"]


def good(completions, reference, **columns):
    return [float(c == r) for c, r in zip(completions, reference, strict=True)]


def test_a_good_function_passes_but_for_the_range_that_it_does_not_declare():
    data = [{"prompt": "a?", "reference": "a"}, {"prompt": "b?", "reference": "b"}]
    found = verdicts(good, data)
    assert {name for name, (verdict, _) in found.items() if verdict != "ok"} == {"range"}
    assert found["range"][0] == "warn"


# Rewards that go wrong in one way -----------------------------------------------------------------


def raises_on_long(completions, **columns):
    return [float(c[9]) if len(c) > 10_000 else 0.0 for c in completions]


def infinite(completions, **columns):
    return [float("inf") for _ in completions]


def too_short(completions, **columns):
    return [1.0]


def texts(completions, **columns):
    return ["1.0" for _ in completions]


def relative(completions, **columns):
    longest = max(len(c) for c in completions) or 1
    return [len(c) / longest for c in completions]


def by_position(completions, **columns):
    return [float(i) for i, _ in enumerate(completions)]


_generator = random.Random(0)


def draws(completions, **columns):
    return [_generator.random() for _ in completions]


def reseeds(completions, **columns):
    random.seed(0)
    return [random.random()] * len(completions)


def reseeds_numpy(completions, **columns):
    np.random.seed(1)
    return [0.0] * len(completions)


def moves(completions, **columns):
    os.environ["CHECK_REWARD_LEFT"] = str(time.monotonic_ns())
    return [0.0] * len(completions)


def vandal(completions, reference, **columns):
    for answers in reference:
        if isinstance(answers, list):
            answers.append("more")
    return [0.0 for _ in completions]


def praises_nothing(completions, reference, **columns):
    return [float(c == r or c == ":") for c, r in zip(completions, reference, strict=True)]


def breaks_on_gold(completions, reference, **columns):
    return [1 / (text != gold) for text, gold in zip(completions, reference, strict=True)]


def dislikes_gold(completions, reference, **columns):
    return [float(c != r) for c, r in zip(completions, reference, strict=True)]


_shared: list[str] = []
_busy = threading.Event()


def shares(completions, **columns):
    mine = threading.get_ident()
    _shared[:] = [str(mine)]
    time.sleep(0.01)
    return [float(_shared == [str(mine)])] * len(completions)


def slow(completions, **columns):
    time.sleep(0.11 * len(completions))
    return [0.0] * len(completions)


GOLD = [{"prompt": "p", "reference": "a"}, {"prompt": "q", "reference": "b"}]


@pytest.mark.parametrize(
    ("reward", "point", "verdict", "message"),
    [
        (too_short, "can be called", "fail", "returned 1 scores for 12"),
        (texts, "can be called", "fail", "expected a number or None"),
        (infinite, "finite and in range", "fail", "nonfinite"),
        (by_position, "order", "fail", "score each response by itself"),
        (relative, "batch and singles", "fail", "alone and"),
        (draws, "deterministic", "warn", "seed by the response's text"),
        (draws, "threads", "skip", "differ from call to call"),
        (lambda completions, **columns: [0.0] * len(completions), "pickling", "fail", "top level"),
        (shares, "threads", "fail", "threading.Lock"),
        (raises_on_long, "odd text", "fail", "a very long response"),
        (reseeds, "side effects", "fail", "the generator of random"),
        (reseeds_numpy, "side effects", "fail", "the generator of numpy"),
        (moves, "side effects", "fail", "environment variables"),
        (vandal, "arguments", "fail", "copy lists"),
    ],
)
def test_each_fault_is_found_and_explained(reward, point, verdict, message):
    found = verdicts(reward)
    assert found[point][0] == verdict
    assert message in found[point][1]
    report = check_reward(reward)
    assert report.ok == (verdict != "fail")
    if not report.ok:
        with pytest.raises(RewardError, match="fail "):
            report.require()


@pytest.mark.parametrize(
    ("reward", "point", "message"),
    [
        (praises_nothing, "worthless answers", "':' scores 1 where the expected answer 'a'"),
        (dislikes_gold, "expected answers", "must score at the top"),
        (breaks_on_gold, "expected answers", "fails on the expected answer 'a'"),
    ],
)
def test_answers_are_compared_with_the_expected_ones(reward, point, message):
    found = verdicts(reward, GOLD)
    assert found[point][0] == "fail"
    assert message in found[point][1]


@pytest.mark.slow
def test_a_slow_reward_is_told_what_helps():
    assert "isolation: worker" in verdicts(slow)["speed"][1]


def test_what_the_first_call_loads_is_not_called_slow():
    loaded = []

    def loads(completions, **columns):
        if not loaded:
            time.sleep(2.0)
        loaded.append(True)
        return [0.0 for _ in completions]

    assert verdicts(loads)["speed"][0] == "ok"


def test_columns_that_nobody_can_invent_are_asked_for():
    def by_kind(completions, kind, **columns):
        return [float(k == "x") for k in kind]

    assert "pass data" in verdicts(by_kind)["can be called"][1]
    found = verdicts(by_kind, [{"instruction": "p", "kind": "x"}])
    assert found["can be called"][0] == "ok"
    assert found["expected answers"][0] == "skip"


@pytest.mark.parametrize("column", ["answer", "solution", "target"])
def test_expected_answers_may_go_by_another_name(column):
    options = {"reference_column": column}
    assert verdicts("exact_match", options=options)["expected answers"][0] == "ok"


def test_rows_without_a_prompt_are_refused_by_name():
    point = verdicts("exact_match", [{"reference": "a"}])["can be called"]
    assert point[0] == "fail" and "found reference" in point[1]
    assert "no rows" in verdicts("exact_match", [])["can be called"][1]


def test_responses_of_the_data_are_used():
    data = [{"prompt": "p", "response": "7", "reference": "1"}]

    def fails_on_seven(completions, **columns):
        if "7" in completions:
            raise DataError("seven")
        return [0.0] * len(completions)

    assert verdicts(fails_on_seven, data)["can be called"] == ("fail", "seven")


def test_a_reward_that_cannot_be_made_is_one_point():
    report = check_reward("exact_mach")
    assert [p.verdict for p in report.points] == ["fail"]
    assert "Did you mean 'exact_match'" in str(report)


def test_an_async_reward_and_one_of_trl_pass():
    async def later(completions, **columns):
        return [1.0 for _ in completions]

    assert verdicts(later)["threads"][0] == "ok"
    assert check_reward("trl.rewards:think_format_reward").ok


# Rewards that cannot be judged, or not by our rows ------------------------------------------------


def test_a_reward_that_never_answers_ends_the_check():
    def hangs(completions, **columns):
        time.sleep(60)

    report = check_reward(hangs, timeout=0.2)
    assert isinstance(report.error, RewardError)
    assert verdicts(hangs, timeout=0.2) == {
        "can be called": ("fail", str(report.error)),
    }
    assert "it hangs: no answer within 0.2 s" in str(report.error)


def test_a_point_that_hangs_is_named_and_the_rest_left_out():
    def hangs_in_threads(completions, **columns):
        while threading.current_thread() is not threading.main_thread():
            time.sleep(0.01)
        return [1.0 for _ in completions]

    found = verdicts(hangs_in_threads, timeout=0.5)
    assert found["threads"][0] == "fail" and "it hangs" in found["threads"][1]
    assert found["odd text"] == ("skip", "not asked: it hung before")


def test_an_alarm_of_the_caller_still_rings():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with deadline(60):
            time.sleep(0.05)
        assert not rung
        time.sleep(0.5)
        assert rung
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def test_where_nothing_is_scored_nothing_is_called_fine():
    def raises(completions, **columns):
        raise ValueError("always")

    found = verdicts(raises, GOLD)
    assert found["finite and in range"][0] == "fail"
    for point in ("deterministic", *COMPARISONS, "odd text", "speed"):
        assert found[point] == ("skip", "no response was scored"), point


def test_a_constant_has_no_top():
    def zero(completions, reference, **columns):
        return [0.0 for _ in completions]

    found = verdicts(zero, GOLD)
    assert found["expected answers"][0] == "skip"
    assert found["worthless answers"][0] == "fail"


def test_rows_of_our_own_are_no_reason_to_call_a_reward_wrong():
    report = check_reward("meteor", options={"synonyms": False})
    assert report.ok
    found = {p.name: p for p in report.points}["expected answers"]
    assert found.verdict == "warn" and "the check's own rows" in found.message
    refused = check_reward("multiple_choice")
    assert isinstance(refused.error, DataError)
    assert "the check's own rows, whose answers are short texts" in str(refused.error)
    given = check_reward("multiple_choice", [{"prompt": "p", "reference": "Paris"}])
    assert "own rows" not in str(given.error)


def test_a_reward_that_reads_chat_messages_is_checked_as_one():
    def polite(completions, **columns):
        return [float("please" in completion[0]["content"]) for completion in completions]

    assert "set format: chat" in verdicts(polite)["finite and in range"][1]
    assert verdicts(polite, format="chat")["finite and in range"][0] == "ok"

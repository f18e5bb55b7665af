"""math_verify: known answers of the library, deadlines that hold, no dependence on the batch."""

from __future__ import annotations

import pickle
import threading
import time

import pytest

from instructrec.errors import ConfigError, DataError
from instructrec.rewards import Status, make_reward, make_rewards
from instructrec.rewards.check import check_reward

pytest.importorskip("math_verify")

NEVER_ENDS = ("10^{10^{10}}+1", "$9^{9^{9^{9}}}$")  # expected answer, response
KNOWN = [
    ("1/2", "so it is $\\frac{1}{2}$", 1.0),
    ("\\frac12", "0.5", 1.0),
    ("$\\frac{1}{2}$", "\\boxed{\\frac{1}{3}}", 0.0),
    ("{1,2}", "\\boxed{\\{2, 1\\}}", 1.0),
    ("\\{1,2\\}", "$\\{1,3\\}$", 0.0),
    ("[0,1)", "\\boxed{[0,1)}", 1.0),
    ("[0,1)", "\\boxed{[0,1]}", 0.0),
    ("(1,2)", "$(1,2)$", 1.0),
    ("x=5", "x = 5", 1.0),
    ("50%", "$50\\%$", 1.0),
    ("\\sqrt{8}", "$2\\sqrt2$", 1.0),
    ("x^2+2x+1", "$(x+1)^2$", 1.0),
    ("1,000", "1000", 1.0),
    ("72", "He has 72 apples.", 1.0),
    (["7", "8"], "The answer is 8", 1.0),
    ("72", "no number at all", 0.0),
    ("72", "", 0.0),
    ("x+1", "x+1", 0.0),
    ("x+1", "$x+1$", 1.0),
    ("Paris", "Paris", 0.0),
    ("Paris", "\\boxed{Paris}", 1.0),
    ("", "3", None),
    ("$$", "3", None),
    (None, "3", None),
]


@pytest.fixture(scope="module")
def reward():
    return make_reward("math_verify", timeout_s=10.0)


def score(reward, pairs):
    return reward(["p"] * len(pairs), [c for _, c, *_ in pairs], reference=[r for r, *_ in pairs])


def test_known_answers_in_a_batch_alone_and_in_any_order(reward):
    expected = [outcome for *_, outcome in KNOWN]
    assert score(reward, KNOWN) == expected
    assert [score(reward, [pair])[0] for pair in KNOWN] == expected
    assert score(reward, KNOWN[::-1]) == expected[::-1]


def test_it_scores_what_the_library_itself_says(reward):
    from math_verify import parse, verify

    for gold, response, _ in KNOWN[:3] + KNOWN[6:8]:
        own = parse(gold if "$" in gold else f"\\boxed{{{gold}}}", parsing_timeout=None)
        found = parse(response, parsing_timeout=None)
        assert score(reward, [(gold, response)]) == [verify(own, found, timeout_seconds=None)]


@pytest.mark.slow
def test_a_comparison_without_end_fails_alone_and_the_next_one_is_scored():
    rewards = make_rewards({"math_verify": {"options": {"timeout_s": 2.0}}})
    start = time.perf_counter()
    batch = rewards.score(
        ["p"] * 3, ["0.5", NEVER_ENDS[1], "3"], {"reference": ["1/2", NEVER_ENDS[0], "4"]}
    )
    assert time.perf_counter() - start < 60
    assert batch.status["math_verify"] == [Status.SCORED, Status.TIMEOUT, Status.SCORED]
    assert batch.messages["math_verify"][1] == "no answer within 2 s"
    assert batch.parts["math_verify"][[0, 2]].tolist() == [1.0, 0.0]
    assert batch.valid.tolist() == [True, False, True]


def test_it_works_in_threads(reward):
    results: dict[int, list] = {}

    def work(i: int) -> None:
        results[i] = score(reward, KNOWN)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(results[i] == [outcome for *_, outcome in KNOWN] for i in range(4))


@pytest.mark.parametrize(
    "text",
    ["\ud800", "\x00", "{" * 5000, "\\boxed{" * 300, "$" * 999, "\\frac{1}{0}", "1e999", "\n\n"],
)
def test_hostile_responses_end_in_one_of_the_three_outcomes(reward, text):
    rewards = make_rewards({"m": reward})
    batch = rewards.score(["p", "p"], [text, "0.5"], {"reference": ["1/2", "1/2"]})
    assert batch.parts["m"][1] == 1.0
    if batch.status["m"][0] == Status.SCORED:
        assert batch.parts["m"][0] == 0.0
    else:
        assert batch.messages["m"][0]


def test_it_passes_the_check_of_rewards():
    data = [{"prompt": f"{n}/2?", "reference": f"\\frac{{{n}}}{{2}}"} for n in (1, 3, 5)]
    check_reward("math_verify", data).require()


def test_it_can_be_scored_in_a_worker_of_its_own(reward):
    rewards = make_rewards({"math_verify": {"use": "math_verify", "isolation": "worker"}})
    batch = rewards.score(["p"] * 2, ["0.5", "3"], {"reference": ["1/2", "1/2"]})
    rewards.close()
    assert batch.total.tolist() == [1.0, 0.0]


def test_it_ends_its_process_when_closed_and_starts_another(reward):
    assert score(reward, KNOWN[:1]) == [1.0]
    make_rewards({"m": reward}).close()
    assert score(reward, KNOWN[:1]) == [1.0]


def test_it_pickles_without_its_process(reward):
    score(reward, KNOWN[:1])
    copy = pickle.loads(pickle.dumps(reward))
    assert score(copy, KNOWN[:3]) == [1.0, 1.0, 0.0]


def test_wrong_options_and_references_are_refused(reward):
    with pytest.raises(ConfigError, match=r"timeout_s = 0: expected more than 0"):
        make_reward("math_verify", timeout_s=0)
    with pytest.raises(DataError, match=r"the reference of sample 0 is 5"):
        reward(["p"], ["5"], reference=[5])

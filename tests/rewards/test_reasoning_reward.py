"""The scorers of reasoning-gym as a reward: what counts as the answer, and what may not happen."""

import importlib.util
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from instructrec.errors import ConfigError
from instructrec.rewards import make_reward, make_rewards, reasoning
from instructrec.rewards.base import Status

INSTALLED = importlib.util.find_spec("reasoning_gym") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="reasoning-gym is not installed")


def problem(generator, answer, options=None, **metadata):
    entry = {"question": "q", "answer": answer, "metadata": metadata}
    return reasoning.pack(generator, options or {}, entry)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(reasoning, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'instructrec\[reasoning-gym\]'"):
        make_reward("reasoning_gym")([], [], entry=[])


def test_a_problem_keeps_its_tuples_and_keys_as_text():
    entry = {
        "answer": None,
        "metadata": {1: (2, [np.int64(3), np.str_("four")]), "x": Fraction(1, 2)},
    }
    text = reasoning.pack("gcd", {"min_value": 1}, entry)
    kept = reasoning._unpacked(text)["entry"]
    assert kept == {"answer": None, "metadata": {1: (2, [3, "four"]), "x": "1/2"}}
    assert type(kept["metadata"][1]) is tuple


@needs_library
@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("12", 1.0),
        (" 12\n", 1.0),
        ("<answer>3</answer> no: <answer> 12 </answer>", 1.0),
        ("<answer>12</answer>, or <answer>3</answer>", 0.0),
        ("It is 12", 2 / 8),  # the library's own partial credit
        ("13", 0.0),
        ("", 0.0),
    ],
)
def test_the_answer_is_what_the_tag_holds_or_the_whole(response, score):
    reward = make_reward("reasoning_gym")
    assert reward(["p"], [response], entry=[problem("gcd", "12")]) == [pytest.approx(score)]


@needs_library
def test_the_tag_can_be_another_or_none():
    entry = [problem("gcd", "12")]
    boxed = make_reward("reasoning_gym", answer_tag="box")
    assert boxed(["p"], ["<box>12</box>"], entry=entry) == [1.0]
    plain = make_reward("reasoning_gym", answer_tag=None)
    assert plain(["p"], ["<answer>12</answer>"], entry=entry)[0] < 1


@needs_library
def test_an_answer_that_the_scorer_cannot_read_scores_nothing():
    entry = problem("prime_factorization", "2 × 3", number=6, factors=[2, 3])
    reward = make_reward("reasoning_gym")
    assert reward(["p"] * 2, ["2 × 3", "two"], entry=[entry] * 2) == [1.0, 0.0]


@needs_library
def test_a_scorer_that_fails_at_its_own_answer_is_a_failure():
    entry = problem("prime_factorization", "two", number=6)
    batch = make_rewards("reasoning_gym").score(["p"], ["three"], {"entry": [entry]})
    assert batch.status["reasoning_gym"] == [Status.RAISED]


@needs_library
def test_answers_that_are_evaluated_cannot_hang_the_run_or_run_code(tmp_path):
    entry = problem("puzzle24", "4*6*1*1", numbers=[4, 6, 1, 1])
    hanging, touched = "9**9**9**9**9", tmp_path / "touched"
    code = f"__import__('pathlib').Path({str(touched)!r}).touch()"
    rewards = make_rewards({"it": {"use": "reasoning_gym", "options": {"timeout_s": 2.0}}})
    batch = rewards.score(["p"] * 3, ["4*6*1*1", hanging, code], {"entry": [entry] * 3})
    assert batch.total[[0, 2]].tolist() == [1.0, 0.0]
    assert batch.status["it"][1] is Status.TIMEOUT
    assert not touched.exists()


@needs_library
def test_worker_processes_score_alike():
    entries = [problem("gcd", "12"), problem("gcd", "3")] * 4
    texts = ["12", "It is 3"] * 4
    isolated = {"use": "reasoning_gym", "isolation": "worker"}
    columns = {"entry": entries}
    there = make_rewards({"it": isolated}).score(["p"] * 8, texts, columns)
    here = make_rewards({"it": "reasoning_gym"}).score(["p"] * 8, texts, columns)
    np.testing.assert_array_equal(there.total, here.total)


def test_the_library_is_imported_with_the_first_use_only():
    assert "instructrec.rewards.reasoning" in sys.modules
    code = "import sys, instructrec.rewards.reasoning; sys.exit('reasoning_gym' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

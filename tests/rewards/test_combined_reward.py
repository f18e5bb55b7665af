"""The weighted sum: what a config may say, the outcomes of a sample, and what stops a run."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import sys

import numpy as np
import pytest

from instructrec.errors import CheckpointError, ConfigError, DataError, RewardError
from instructrec.rewards import (
    RewardBatch,
    Status,
    make_rewards,
    register_reward,
)


def constant(completions, *, value: float = 1.0, **columns):
    return [value for _ in completions]


def parsed(completions, **columns):
    """The number in the text; the word none is not applicable; anything else raises."""
    return [None if text == "none" else float(text) for text in completions]


@register_reward("combined_unit", range=(0, 1))
def unit(completions, **columns):
    return [float(text) for text in completions]


def score(rewards, completions, columns=None) -> RewardBatch:
    return make_rewards(rewards).score(["p"] * len(completions), completions, columns or {})


def test_parts_stay_raw_and_the_total_is_their_weighted_sum():
    batch = score(
        {"exact_match": 2.0, "bleu": 0.5, "parsed": {"use": parsed, "weight": -1}},
        ["3", "0.5"],
        {"reference": ["3", "7"]},
    )
    assert batch.parts["exact_match"].tolist() == [1.0, 0.0]
    assert batch.parts["bleu"].tolist() == [1.0, 0.0]
    assert batch.parts["parsed"].tolist() == [3.0, 0.5]
    assert batch.total.tolist() == [2.0 + 0.5 - 3.0, -0.5]
    assert batch.total.dtype == np.float64
    assert batch.valid.tolist() == [True, True]
    assert [batch.sample_status(i) for i in range(2)] == ["scored", "scored"]
    assert set(batch.seconds) == {"exact_match", "bleu", "parsed"}
    assert all(seconds >= 0 for seconds in batch.seconds.values())
    assert len(batch) == 2


def test_not_applicable_parts_are_left_out_without_rescaling():
    batch = score({"parsed": {"use": parsed, "weight": 3}, "constant": constant}, ["none", "2"])
    assert batch.total.tolist() == [1.0, 7.0]
    assert batch.status["parsed"] == [Status.NOT_APPLICABLE, Status.SCORED]
    assert math.isnan(batch.parts["parsed"][0])
    assert batch.sample_status(0) == "scored"


def test_renormalise_gives_the_weight_of_such_parts_to_the_others():
    rewards = {"parsed": {"use": parsed, "weight": -3}, "constant": constant, "renormalise": True}
    assert score(rewards, ["none", "2"]).total.tolist() == [4.0, -5.0]
    assert make_rewards(rewards).describe().endswith("(renormalised)")


@pytest.mark.parametrize("renormalise", [False, True])
def test_a_sample_to_which_nothing_applies_has_no_total(renormalise):
    batch = score({"parsed": parsed, "renormalise": renormalise}, ["none", "1"])
    assert batch.valid.tolist() == [False, True]
    assert batch.sample_status(0) == "not_applicable"
    assert batch.failures(0) == ""


def test_weight_zero_records_but_is_no_reason_to_train():
    rewards = {"parsed": parsed, "watched": {"use": constant, "weight": 0}}
    batch = score(rewards, ["none", "2"])
    assert batch.parts["watched"].tolist() == [1.0, 1.0]
    assert batch.valid.tolist() == [False, True]
    assert batch.total[1] == 2.0
    assert score({"constant": {"use": constant, "weight": 0}}, ["a"]).total.tolist() == [0.0]


def test_a_batch_that_raises_is_repeated_sample_by_sample():
    batch = score({"parsed": parsed, "constant": constant}, ["1", "oops", "none", "3"])
    assert batch.status["parsed"] == [
        Status.SCORED,
        Status.RAISED,
        Status.NOT_APPLICABLE,
        Status.SCORED,
    ]
    assert batch.messages["parsed"][1] == ("ValueError: could not convert string to float: 'oops'")
    assert batch.messages["parsed"][0] == ""
    assert batch.valid.tolist() == [True, False, True, True]
    assert np.isnan(batch.total[1])
    assert batch.parts["constant"].tolist() == [1.0] * 4
    assert batch.sample_status(1) == "failed"
    assert batch.failures(1) == (
        "parsed: raised: ValueError: could not convert string to float: 'oops'"
    )


def test_columns_are_cut_to_the_sample_when_a_batch_is_repeated():
    def strict(completions, reference, completion_ids, **columns):
        if "bad" in completions:
            raise RuntimeError("bad\nresponse")
        return [
            float(c == r) + len(i)
            for c, r, i in zip(completions, reference, completion_ids, strict=True)
        ]

    combined = make_rewards(strict)
    batch = combined.score(
        ["p"] * 3,
        ["a", "bad", "c"],
        {"reference": ["a", "b", "x"]},
        {"completion_ids": [[1], [1], []]},
    )
    assert batch.parts["strict"][[0, 2]].tolist() == [2.0, 0.0]
    assert batch.messages["strict"][1] == "RuntimeError: bad response"


def test_a_single_sample_that_raises_is_not_called_twice():
    calls = []

    def fails(completions, **columns):
        calls.append(len(completions))
        raise RuntimeError("no")

    score({"fails": fails}, ["a"])
    assert calls == [1]
    score({"fails": fails}, ["a", "b"])
    assert calls == [1, 2, 1, 1]


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("nan", Status.NONFINITE, "the score is nan"),
        ("inf", Status.NONFINITE, "the score is inf"),
        ("-inf", Status.NONFINITE, "the score is -inf"),
        ("1e38", Status.OUT_OF_RANGE, r"the score is 1e+38, outside the declared range [0, 1]"),
        ("-0.5", Status.OUT_OF_RANGE, r"the score is -0.5, outside the declared range [0, 1]"),
        ("1", Status.SCORED, ""),
        ("0", Status.SCORED, ""),
    ],
)
def test_scores_that_cannot_be_used_are_failures_with_a_reason(text, status, message):
    batch = score({"combined_unit": 1.0}, [text, "0.5"])
    assert batch.status["combined_unit"] == [status, Status.SCORED]
    assert batch.messages["combined_unit"] == [message, ""]
    assert batch.total[1] == 0.5
    assert batch.valid[0] == (status is Status.SCORED)
    assert np.isnan(batch.parts["combined_unit"][0]) == status.failed


def test_a_huge_score_counts_where_no_range_is_declared():
    batch = score({"parsed": parsed}, ["1e38", "-1e300"])
    assert batch.total.tolist() == [1e38, -1e300]


def test_a_sum_beyond_the_largest_float_is_a_failure_and_not_infinity():
    batch = score(
        {"a": parsed, "b": parsed, "watched": {"use": constant, "weight": 0}}, ["1e308", "1"]
    )
    assert batch.status["a"] == batch.status["b"] == [Status.OUT_OF_RANGE, Status.SCORED]
    assert batch.status["watched"] == [Status.SCORED, Status.SCORED]
    assert batch.sample_status(0) == "failed"
    assert "1e+308" in batch.messages["a"][0]
    assert batch.total[1] == 2.0


@pytest.mark.parametrize(
    "result", [[1.0], [1.0, 2.0, 3.0], "ab", ["1", 2], [[1], 2], {"a": 1}, 0.5]
)
def test_the_wrong_number_or_type_of_scores_always_stops(result):
    def wrong(completions, **columns):
        return result

    with pytest.raises(
        RewardError, match=r"reward 'wrong' returned .*(2 completions|list of 2|a number)"
    ):
        score({"wrong": wrong}, ["a", "b"])


def test_the_wrong_number_of_scores_stops_in_the_repetition_too():
    def wrong(completions, **columns):
        if len(completions) > 1:
            raise RuntimeError("try singles")
        return [1.0, 2.0]

    with pytest.raises(RewardError, match=r"'wrong' returned 2 scores for 1 completions"):
        score({"wrong": wrong}, ["a", "b"])


def test_a_wrong_setting_inside_a_reward_stops():
    def misconfigured(completions, **columns):
        raise ConfigError("no key was given")

    with pytest.raises(ConfigError, match=r"no key was given"):
        score({"misconfigured": misconfigured}, ["a", "b"])


def test_a_missing_column_names_the_reward_and_the_columns_that_exist():
    with pytest.raises(
        DataError, match=r"'bleu' needs the column 'reference'.*Columns: answer, id"
    ):
        score({"bleu": 1}, ["a"], {"answer": ["a"], "id": [1]})
    combined = make_rewards({"bleu": {"options": {"reference_column": "answer"}}})
    assert combined.required_columns == {"answer"}
    assert combined.score(["p"], ["a"], {"answer": ["a"]}).total.tolist() == [1.0]


def test_columns_can_be_checked_before_anything_is_generated():
    def by_tokens(completion_ids, answer, **columns):
        return [1.0]

    combined = make_rewards(by_tokens)
    combined.check_columns(["answer"])
    with pytest.raises(DataError, match=r"needs the column 'answer'.*Columns: reference"):
        combined.check_columns(["reference"])


@pytest.mark.parametrize(
    ("prompts", "columns", "name"),
    [
        (["p"], {"reference": ["a", "b"]}, "prompts has 1 values"),
        (["p", "p"], {"reference": ["a"]}, "reference has 1 values"),
        (["p", "p"], {"reference": "ab"}, "reference has 2 values"),
    ],
)
def test_lists_of_different_length_are_refused(prompts, columns, name):
    with pytest.raises(DataError, match=f"{name} for 2 completions"):
        make_rewards("exact_match").score(prompts, ["a", "b"], columns)


def test_an_empty_batch_calls_nothing():
    def fails(completions, **columns):
        raise AssertionError

    batch = make_rewards({"fails": fails, "exact_match": 1}).score([], [], {"reference": []})
    assert len(batch) == 0
    assert batch.total.shape == batch.valid.shape == (0,)
    assert batch.status == {"fails": [], "exact_match": []}


def test_a_reward_that_changes_its_arguments_does_not_disturb_the_next():
    def vandal(prompts, completions, reference, **columns):
        completions.sort()
        reference.clear()
        return [0.0] * 2

    completions, columns = ["b", "a"], {"reference": ["b", "a"]}
    batch = score({"vandal": vandal, "exact_match": 1}, completions, columns)
    assert batch.parts["exact_match"].tolist() == [1.0, 1.0]
    assert (completions, columns) == (["b", "a"], {"reference": ["b", "a"]})


def test_async_parts_are_scored_like_others():
    async def slow(completions, **columns):
        return [0.25 for _ in completions]

    assert score({"slow": slow, "constant": constant}, ["a", "b"]).total.tolist() == [1.25, 1.25]


def test_combined_rewards_survive_pickling():
    combined = make_rewards({"exact_match": 1, "parsed": {"use": parsed, "weight": 2}})
    twin = pickle.loads(pickle.dumps(combined))
    columns = {"reference": ["1", "x"]}
    for name in ("total", "parts", "status", "messages"):
        left, right = (
            getattr(c.score(["p"] * 2, ["1", "none"], columns), name) for c in (combined, twin)
        )
        np.testing.assert_equal(left, right)


class Counting:
    """A reward with state: each batch is worth one more."""

    def __init__(self, start: float = 0.0) -> None:
        self.count = start

    def __call__(self, completions, **columns):
        self.count += 1
        return [self.count for _ in completions]

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_the_state_of_rewards_is_saved_and_restored():
    value = {"counting": {"use": Counting, "options": {"start": 5.0}}, "exact_match": 1}
    combined, resumed = make_rewards(value), make_rewards(value)
    columns = {"reference": ["x"]}
    assert combined.score(["p"], ["a"], columns).total.tolist() == [6.0]
    resumed.load_state_dict(json.loads(json.dumps(combined.state_dict())))
    assert resumed.score(["p"], ["a"], columns).total.tolist() == [7.0]
    assert pickle.loads(pickle.dumps(combined)).score(["p"], ["a"], columns).total.tolist() == [7.0]
    assert make_rewards("exact_match").state_dict() == {}
    with pytest.raises(CheckpointError, match=r"state of the reward 'counting'.*has exact_match"):
        make_rewards("exact_match").load_state_dict(combined.state_dict())


def test_random_batches_agree_with_a_loop_over_samples():
    rng = np.random.default_rng(0)
    texts = [
        str(x) for x in rng.choice(["none", "oops", "nan", "2", "0.5", "1e309", "-3"], size=200)
    ]
    weights = {"a": 2.0, "b": -0.5, "c": 1.5}
    batch = score(
        {
            "a": {"use": parsed, "weight": 2.0},
            "b": {"use": constant, "weight": -0.5},
            "c": {"use": parsed, "weight": 1.5},
        },
        texts,
    )
    for i, text in enumerate(texts):
        one = score(
            {
                name: {"use": constant if name == "b" else parsed, "weight": weight}
                for name, weight in weights.items()
            },
            [text],
        )
        np.testing.assert_equal(batch.total[i], one.total[0])
        expected = {
            "none": -0.5,
            "2": 2 * 2 - 0.5 + 1.5 * 2,
            "0.5": 1 - 0.5 + 0.75,
            "-3": -6 - 0.5 - 4.5,
        }.get(text, math.nan)
        np.testing.assert_equal(batch.total[i], expected)
        assert batch.sample_status(i) == ("failed" if math.isnan(expected) else "scored")


def leaves(completions, **columns):
    """Ends the program, as a script that was made a reward does."""
    if any(text == "exit" for text in completions):
        sys.exit(0)
    return [1.0 for _ in completions]


async def leaves_later(completions, **columns):
    async def one(text):
        return leaves([text])[0]

    return list(await asyncio.gather(*map(one, completions)))


@pytest.mark.parametrize("reward", [leaves, leaves_later])
def test_a_reward_that_ends_the_program_has_failed_on_that_sample(reward):
    batch = score({"r": reward}, ["a", "exit", "b"])
    assert batch.status["r"] == [Status.SCORED, Status.RAISED, Status.SCORED]
    assert batch.messages["r"][1] == "SystemExit: 0"
    assert score({"r": reward}, ["a"]).total.tolist() == [1.0]  # and goes on to score


def reads_messages(completions, **columns):
    return [float("please" in completion[0]["content"]) for completion in completions]


def test_a_reward_that_reads_chat_messages_says_so_in_its_part():
    batch = score({"r": reads_messages}, ["please", "no"])
    assert "set format: chat for this reward" in batch.messages["r"][0]
    rewards = make_rewards({"r": {"use": reads_messages, "format": "chat"}})
    assert rewards.score(["p", "p"], ["please", "no"], {}).total.tolist() == [1.0, 0.0]
    assert rewards.spec["r"]["format"] == "chat"
    with pytest.raises(ConfigError, match=r"format = 'chatt'; expected text or chat. Did you mean"):
        make_rewards({"r": {"use": reads_messages, "format": "chatt"}})


def test_a_part_of_weight_zero_may_fail_without_costing_the_sample():
    watched = {"use": parsed, "weight": 0}
    batch = score({"constant": constant, "watched": watched}, ["1", "oops"])
    assert batch.status["watched"] == [Status.SCORED, Status.RAISED]
    assert batch.total.tolist() == [1.0, 1.0]
    assert [batch.sample_status(i) for i in range(2)] == ["scored", "scored"]
    nothing = score({"parsed": parsed, "watched": {"use": parsed, "weight": 0}}, ["none", "oops"])
    assert [nothing.sample_status(i) for i in range(2)] == ["not_applicable", "failed"]
    quiet = {"use": lambda completions, **columns: [None] * len(completions)}
    absent = score({"quiet": quiet, "watched": watched}, ["oops"])
    assert absent.sample_status(0) == "not_applicable"
    alone = score({"watched": watched}, ["1", "oops"])  # all of weight 0: all count
    assert alone.sample_status(1) == "failed" and not alone.valid[1]


def test_failures_of_a_part_of_weight_zero_do_not_count_towards_the_end_of_a_run():
    rewards = make_rewards({"constant": constant, "watched": {"use": parsed, "weight": 0}})
    rewards.at_update(1).score(["p"], ["oops"], {})
    assert rewards.failing_batches == {"constant": 0, "watched": 0}

"""Rewards made of rewards: what each adds up to, and how outcomes of parts travel upwards."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest

from instructrec.errors import ConfigError, DataError, RewardError
from instructrec.rewards import Status, make_reward, make_rewards
from instructrec.rewards.combinators import Combinator


def field(completions, *, at=0, **columns):
    """Number ``at`` of a text such as '1 0.5 na'; na is not applicable, any other word raises."""
    words = [text.split()[at] for text in completions]
    return [None if word == "na" else float(word) for word in words]


class Recording:
    """Remembers which responses it was asked about, and gives them all the same score."""

    def __init__(self, score=1.0):
        self.score, self.asked = score, []

    def __call__(self, completions, **columns):
        self.asked += completions
        return [self.score] * len(completions)


def part(at, **more):
    return {"use": field, "options": {"at": at}, **more}


def score(use, texts, **options):
    value = {"outer": {"use": use, "options": options}}
    return make_rewards(value).score(["p"] * len(texts), texts, {})


def totals(use, texts, **options):
    return score(use, texts, **options).total.tolist()


TWO = {"a": part(0, weight=2.0), "b": part(1)}


def test_weighted_is_a_sum_or_a_mean_over_the_parts_that_apply():
    texts = ["1 0.5", "na 0.5", "1 na"]
    assert totals("weighted", texts, parts=TWO) == [2.5, 0.5, 2.0]
    assert totals("weighted", texts, parts=TWO, reduce="mean") == pytest.approx([2.5 / 3, 0.5, 1])
    with_rest = {**TWO, "renormalise": True}
    assert totals("weighted", texts, parts=with_rest) == pytest.approx([2.5, 1.5, 3.0])


def test_a_negative_weight_takes_away_in_a_mean_too():
    parts = {"a": part(0), "b": part(1, weight=-1)}
    assert totals("weighted", ["1 0.5"], parts=parts, reduce="mean") == [0.25]


def test_parts_are_kept_raw_under_the_name_of_the_whole():
    batch = score("weighted", ["1 0.5", "2 na"], parts=TWO)
    assert list(batch.parts) == ["outer", "outer.a", "outer.b"]
    assert batch.parts["outer.a"].tolist() == [1.0, 2.0]
    np.testing.assert_equal(batch.parts["outer.b"], [0.5, math.nan])
    assert batch.status["outer.b"] == [Status.SCORED, Status.NOT_APPLICABLE]
    assert set(batch.seconds) == set(batch.parts)


@pytest.mark.parametrize("use", ["weighted", "minimum", "product", "sequence", "gate"])
def test_a_failed_part_fails_the_whole_and_says_which(use):
    batch = score(use, ["1 1", "1 oops"], parts={"a": part(0), "b": part(1)})
    assert batch.status["outer"] == [Status.SCORED, Status.RAISED]
    assert batch.messages["outer"][1].startswith("its part 'b' failed: ValueError")
    assert batch.valid.tolist() == [True, False]
    assert batch.sample_status(1) == "failed"
    assert "outer.b: raised: ValueError" in batch.failures(1)


@pytest.mark.parametrize("use", ["weighted", "minimum", "product", "sequence", "gate"])
def test_where_nothing_applies_the_whole_is_not_applicable(use):
    batch = score(use, ["na na", "1 1"], parts={"a": part(0), "b": part(1)})
    assert batch.status["outer"] == [Status.NOT_APPLICABLE, Status.SCORED]
    assert batch.sample_status(0) == "not_applicable"


@pytest.mark.parametrize(
    ("use", "expected"),
    [("minimum", [0.25, 0.5, -1.0]), ("product", [0.125, 0.5, -0.5])],
)
def test_minimum_and_product_by_hand(use, expected):
    parts = {"a": part(0), "b": part(1), "watched": part(2, weight=0)}
    assert totals(use, ["0.5 0.25 9", "na 0.5 0", "-1 0.5 -9"], parts=parts) == expected


def test_minimum_and_product_take_no_weights():
    for use in ("minimum", "product"):
        with pytest.raises(ConfigError, match=rf"part 'a' of a {use} has the weight 2"):
            make_reward(use, parts=TWO)


def test_a_product_beyond_the_largest_number_is_a_failure():
    batch = score("product", ["1e200 1e200"], parts={"a": part(0), "b": part(1)})
    assert batch.status["outer"] == [Status.OUT_OF_RANGE]
    assert math.isnan(batch.total[0])


# Gate and sequence --------------------------------------------------------------------------------


def test_a_gate_opens_from_its_threshold_on():
    parts = {"form": part(0), "a": part(1, weight=2.0), "b": part(2)}
    texts = ["1 0.5 1", "0.9 0.5 1", "na 1 1", "1 na 1"]
    options = {"parts": parts, "threshold": 1.0}
    np.testing.assert_equal(totals("gate", texts, **options), [2.0, 0.0, math.nan, 1.0])
    shut = totals("gate", texts, **options, closed=-1.0, reduce="mean")
    np.testing.assert_allclose(shut, [2 / 3, -1.0, math.nan, 1.0])


def test_the_condition_of_a_gate_may_be_any_part():
    parts = {"a": part(1), "form": part(0)}
    assert totals("gate", ["1 0.5", "0 0.5"], parts=parts, condition="form") == [0.5, 0.0]
    with pytest.raises(ConfigError, match=r"condition of a gate 'forn'. Did you mean 'form'"):
        make_reward("gate", parts=parts, condition="forn")
    with pytest.raises(ConfigError, match=r"has the part 'form' alone"):
        make_reward("gate", parts={"form": field})


def test_nothing_behind_a_closed_gate_is_called_or_can_fail():
    costly = Recording()
    parts = {"form": part(0), "costly": costly, "brittle": part(1)}
    batch = score("gate", ["1 0.5", "0 oops", "oops 0"], parts=parts)
    assert costly.asked == ["1 0.5"]
    np.testing.assert_equal(batch.total, [1.5, 0.0, math.nan])
    assert batch.status["outer.brittle"][1] is Status.NOT_APPLICABLE
    assert batch.status["outer"] == [Status.SCORED, Status.SCORED, Status.RAISED]


def test_a_sequence_counts_up_to_the_first_part_that_falls_short():
    parts = {"a": part(0), "b": part(1), "c": part(2, weight=2.0)}
    texts = ["1 1 1", "1 0.5 1", "0.5 1 1", "na 1 1", "1 na 0.5"]
    assert totals("sequence", texts, parts=parts) == [4.0, 1.5, 0.5, 3.0, 2.0]
    expected = [1.0, 1.5 / 4, 0.5 / 4, 1.0, 2 / 3]
    assert totals("sequence", texts, parts=parts, reduce="mean") == pytest.approx(expected)


def test_each_step_of_a_sequence_may_have_its_own_threshold():
    parts = {"a": part(0), "b": part(1)}
    assert totals("sequence", ["0.5 1"], parts=parts, threshold=0.5) == [1.5]
    assert totals("sequence", ["0.5 1"], parts=parts, threshold={"a": 0.4}) == [1.5]
    assert totals("sequence", ["0.5 1"], parts=parts, threshold={"b": 0.4}) == [0.5]
    with pytest.raises(ConfigError, match=r"part with a threshold 'x'"):
        make_reward("sequence", parts=parts, threshold={"x": 1.0})


def test_steps_that_are_not_reached_are_not_called():
    costly = Recording()
    score("sequence", ["1 x", "0 x"], parts={"a": part(0), "costly": costly})
    assert costly.asked == ["1 x"]


# Inside and outside -------------------------------------------------------------------------------


def test_combinators_stand_inside_combinators():
    inner = {"use": "minimum", "options": {"parts": {"b": part(1), "c": part(2)}}}
    batch = score("gate", ["1 0.5 0.25", "0 1 1"], parts={"a": part(0), "inner": inner})
    assert batch.total.tolist() == [0.25, 0.0]
    inside = ["outer.a", "outer.inner", "outer.inner.b", "outer.inner.c"]
    assert list(batch.parts) == ["outer", *inside]
    np.testing.assert_equal(batch.parts["outer.inner.c"], [0.25, math.nan])


def test_a_combinator_knows_the_columns_and_extras_of_its_parts():
    def by_tokens(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    combined = make_rewards(
        {"both": {"use": "weighted", "options": {"parts": {"exact_match": 1, "ids": by_tokens}}}}
    )
    assert combined.required_columns == {"reference"}
    with pytest.raises(DataError, match=r"'exact_match' needs the column 'reference'"):
        combined.check_columns(["answer"])
    with pytest.raises(DataError, match=r"'ids' needs 'completion_ids'"):
        combined.score(["p"], ["a"], {"reference": ["a"]})
    batch = combined.score(["p"], ["a"], {"reference": ["a"]}, {"completion_ids": [[1, 2]]})
    assert batch.total.tolist() == [3.0]


def test_parts_see_chats_as_they_asked_for_them():
    seen = []

    def chat(completions, **columns):
        seen.append(completions)
        return [1.0]

    parts = {"exact_match": 1, "think": "trl.rewards:think_format_reward", "chat": chat}
    messages = [{"role": "assistant", "content": "<think>a</think>b"}]
    reward = make_reward("weighted", parts=parts)
    assert reward(["p"], [messages], reference=["<think>a</think>b"]) == [3.0]
    assert seen == [["<think>a</think>b"]]


def test_as_a_plain_function_it_raises_where_a_part_failed():
    reward = make_reward("weighted", parts=TWO)
    assert reward(["p"] * 2, ["1 1", "na na"]) == [3.0, None]
    with pytest.raises(RewardError, match=r"its part 'b' failed: ValueError"):
        reward(["p"], ["1 oops"])


def test_its_specification_is_plain_and_it_survives_pickling():
    value = {
        "answer": {
            "use": "gate",
            "weight": 0.5,
            "options": {
                "parts": {"exact_match": 1.0, "bleu": {"use": "bleu", "weight": 2.0}},
                "threshold": 0.5,
            },
        }
    }
    combined = make_rewards(value)
    spec = json.loads(json.dumps(combined.spec))
    assert spec["answer"]["options"]["parts"] == {"exact_match": 1.0, "bleu": 2.0}
    for twin in (make_rewards(spec), pickle.loads(pickle.dumps(combined))):
        batch = twin.score(["p"] * 2, ["a b", "c"], {"reference": ["a b", "x"]})
        assert batch.total.tolist() == [1.0, 0.0]


def test_the_state_of_inner_parts_is_saved():
    class Counting:
        seen = 0

        def __call__(self, completions, **columns):
            self.seen += len(completions)
            return [float(self.seen)] * len(completions)

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    def sums():
        return make_rewards({"all": {"use": "weighted", "options": {"parts": {"n": Counting()}}}})

    first, resumed = sums(), sums()
    first.score(["p"], ["a"], {})
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert resumed.score(["p"], ["a"], {}).total.tolist() == [2.0]


@pytest.mark.parametrize("setting", [{"weight": {1: 0.0, 9: 1.0}}, {"normalise": "batch"}])
def test_what_belongs_to_the_outermost_rewards_is_refused_inside(setting):
    with pytest.raises(ConfigError, match=r"part 'a' of a weighted: .*outermost"):
        make_reward("weighted", parts={"a": part(0, **setting)})


def test_a_combinator_of_ones_own_has_to_say_what_its_total_is():
    class First(Combinator):
        """The score of the first part."""

        def total(self, batch):
            return batch.score(next(iter(self.combined.parts.values())))

    parts = {"a": part(0), "b": part(1)}
    assert First(parts).score_parts(["p"], ["0.5 1"], {}).scores.tolist() == [0.5]
    with pytest.raises(TypeError, match=r"abstract.*total"):
        Combinator(parts)

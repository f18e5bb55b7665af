"""Weights that change while a run goes on."""

from __future__ import annotations

import pytest

from instructrec.errors import ConfigError
from instructrec.rewards import make_rewards
from instructrec.rewards.schedule import parse_weight

RISING = {"exact_match": 1.0, "bleu": {"weight": {5: 0.0, 25: 2.0}}}


@pytest.mark.parametrize(
    ("update", "weight"), [(1, 0.0), (5, 0.0), (10, 0.5), (15, 1.0), (25, 2.0), (99, 2.0)]
)
def test_the_weight_moves_in_straight_lines_and_stays_outside(update, weight):
    assert make_rewards(RISING).at_update(update).weights == {"exact_match": 1.0, "bleu": weight}


def test_evaluations_weigh_by_the_last_point():
    assert make_rewards(RISING).weights == {"exact_match": 1.0, "bleu": 2.0}


def test_a_total_is_weighed_by_its_update():
    rewards = make_rewards({"exact_match": {"weight": {1: 1.0, 3: 3.0}}})
    columns = {"reference": ["yes"]}
    totals = [
        float(rewards.at_update(update).score(["?"], ["yes"], columns).total[0])
        for update in (1, 2, 3)
    ]
    assert totals == [1.0, 2.0, 3.0]


def test_the_rewards_of_all_updates_keep_one_state():
    class Counting:
        __name__ = "counting"
        seen = 0

        def __call__(self, completions, **_):
            self.seen += len(completions)
            return [0.0] * len(completions)

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    rewards = make_rewards({"counting": {"use": Counting(), "weight": {1: 0.0, 9: 1.0}}})
    rewards.at_update(1).score(["?"], ["a"], {})
    rewards.at_update(2).score(["?"], ["a"], {})
    assert rewards.state_dict() == {"counting": {"seen": 2}}


def test_what_it_says_of_itself_makes_it_again():
    rewards = make_rewards(RISING)
    assert rewards.describe() == "1 × exact_match + (0 at 5, 2 at 25) × bleu"
    assert make_rewards(rewards.spec).spec == rewards.spec
    assert make_rewards(rewards.spec).at_update(15).weights["bleu"] == 1.0


def test_keys_may_be_text_as_in_a_file_and_in_any_order():
    assert parse_weight("r", {"20": 1, "3": 0.5}).points == ((3, 0.5), (20, 1.0))


@pytest.mark.parametrize(
    "weight",
    [
        *({}, {"soon": 1.0}, {1: "high"}, {1: float("nan")}, {-1: 1.0}, {1: True}, {1: None}),
        *({1.5: 1.0}, {True: 1.0}, {1: 0.0, "1": 1.0}, "1", True),
    ],
)
def test_anything_else_is_refused_by_name(weight):
    with pytest.raises(ConfigError, match=r"rewards\.bleu\.weight = .*mapping from updates"):
        make_rewards({"bleu": {"weight": weight}})

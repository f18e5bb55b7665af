"""What the value of a run's ``rewards`` may be, and what each mistake in it answers."""

from __future__ import annotations

import json
import math

import pytest

from instructrec.errors import ConfigError
from instructrec.rewards import CombinedReward, RewardSpec, make_reward, make_rewards


@pytest.mark.parametrize(
    "value",
    [
        "exact_match",
        {"exact_match": 1},
        {"exact_match": "exact_match"},
        {"exact_match": "instructrec.rewards.exact:exact_match"},
        {"exact_match": {}},
        {"exact_match": {"weight": 1.0}},
        {"exact_match": {"use": "exact_match", "options": {}}},
        {"exact_match": RewardSpec(use="exact_match")},
        {"exact_match": RewardSpec()},
        make_reward("exact_match"),
        make_rewards("exact_match"),
    ],
)
def test_every_way_of_naming_one_reward_means_the_same(value):
    combined = make_rewards(value)
    assert isinstance(combined, CombinedReward)
    assert combined.names == ["exact_match"]
    assert combined.weights == {"exact_match": 1.0}
    assert combined.required_columns == {"reference"}
    assert combined.score(["p"], ["a"], {"reference": ["a"]}).total.tolist() == [1.0]


def test_one_reward_can_appear_twice_under_names_of_its_own():
    combined = make_rewards(
        {
            "strict": {"use": "exact_match", "options": {"normalise": "none"}},
            "loose": {"use": "exact_match", "weight": 0.5, "options": {"normalise": "squad"}},
        }
    )
    batch = combined.score(["p"], ["The cat"], {"reference": ["cat"]})
    assert {name: part.tolist() for name, part in batch.parts.items()} == {
        "strict": [0.0],
        "loose": [1.0],
    }
    assert combined.describe() == "1 × strict(normalise='none') + 0.5 × loose(normalise='squad')"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, r"rewards = \{\}: expected the name of a reward or a mapping"),
        ({"renormalise": True}, r"expected the name of a reward or a mapping"),
        (3, r"rewards = 3: expected"),
        (["exact_match"], r"rewards = \['exact_match'\]: expected"),
        ({"exact_mach": 1}, r"unknown reward 'exact_mach'.*Did you mean 'exact_match'"),
        ({"mine": {"weight": 1}}, r"unknown reward 'mine'"),
        ({"exact_match": True}, r"rewards.exact_match = True: expected a number"),
        ({"exact_match": None}, r"rewards.exact_match = None: expected a number"),
        ({"exact_match": [1]}, r"rewards.exact_match = \[1\]: expected a number"),
        ({"exact_match": math.nan}, r"rewards.exact_match.weight = nan: expected a finite number"),
        ({"exact_match": {"weight": "2"}}, r"weight = '2': expected a finite number"),
        ({"exact_match": {"weight": True}}, r"weight = True: expected a finite number"),
        (
            {"exact_match": {"wieght": 1}},
            r"unknown key 'wieght'. Did you mean 'weight'\? Keys: use",
        ),
        ({"exact_match": {"normalise": "squad"}}, r"normalise = 'squad'.* go under options"),
        ({"exact_match": {"on_eror": "mask"}}, r"unknown key 'on_eror'. Did you mean 'on_error'"),
        ({"exact_match": {"options": ["a"]}}, r"options = \['a'\]: expected a mapping"),
        ({"bleu": {"options": {"tokenise": "13a"}}}, r"'bleu' has no option 'tokenise'"),
        ({"total": "bleu"}, r"'total' is reserved: it stands for the sum"),
        ({"Exact": "bleu"}, r"reward name 'Exact': expected lower-case"),
        ({3: "bleu"}, r"reward name 3: expected lower-case"),
        ({"bleu": 1, "renormalise": 0.5}, r"rewards.renormalise = 0.5: expected true or false"),
    ],
)
def test_each_mistake_in_a_config_is_named(value, message):
    with pytest.raises(ConfigError, match=message):
        make_rewards(value)


def test_a_sum_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"at least one reward"):
        CombinedReward([])


def test_the_spec_is_plain_and_makes_an_equal_reward():
    value = {
        "exact_match": 2.0,
        "loose": {"use": "exact_match", "weight": 0.5, "options": {"normalise": "squad"}},
        "renormalise": True,
    }
    combined = make_rewards(value)
    assert combined.spec == value
    again = make_rewards(json.loads(json.dumps(combined.spec)))
    assert again.describe() == combined.describe()

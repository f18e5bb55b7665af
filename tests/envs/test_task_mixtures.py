"""Mixtures of tasks: shares, order, what is held out, and labels."""

from collections import Counter

import gymnasium as gym
import pytest

from instructrec.envs.tasks.base import iterate, labels_of, make_task
from instructrec.errors import ConfigError


def tasks_of(mixture, number=None):
    items = [mixture[i] for i in range(number or len(mixture))]
    return Counter(item.columns["task"] for item in items)


def test_training_has_the_weights_and_every_stretch_of_it_too():
    mixture = make_task("mixture", tasks={"parity": 3, "category": 1}, size=400)
    assert tasks_of(mixture) == {"parity": 300, "category": 100}
    for first in range(0, 400, 40):
        names = Counter(mixture[i].columns["task"] for i in range(first, first + 40))
        assert abs(names["parity"] - 30) <= 1


@pytest.mark.parametrize(
    ("temperature", "shares"),
    [(1, [800, 200]), (2, [667, 333]), (0.5, [941, 59]), (1e6, [500, 500])],
)
def test_temperature_makes_shares_more_or_less_equal(temperature, shares):
    mixture = make_task(
        "mixture", tasks={"parity": 4.0, "category": 1.0}, temperature=temperature, size=1000
    )
    counts = tasks_of(mixture)
    assert [counts["parity"], counts["category"]] == shares


def test_tasks_without_a_weight_have_the_shares_of_their_sizes():
    big = {"use": "category", "options": {"size": 300}}
    mixture = make_task("mixture", tasks={"big": big, "parity": {"options": {"size": 100}}})
    assert len(mixture) == 400
    assert tasks_of(mixture) == {"big": 300, "parity": 100}
    assert len({item.id for item in iterate(mixture)}) == 400


def test_a_small_task_comes_again_under_other_ids():
    part = {"options": {"size": 5}, "weight": 1.0}
    mixture = make_task("mixture", tasks={"parity": part, "category": 1.0}, size=40)
    parity = [item for item in iterate(mixture) if item.columns["task"] == "parity"]
    assert len(parity) == 20 and len({item.id for item in parity}) == 20
    assert len({item.prompt for item in parity}) == 5
    assert parity[5].id == f"{parity[0].id}@1"


def test_held_out_tasks_are_in_the_test_split_alone():
    options = {"tasks": ["parity", "category", "arithmetic"], "held_out": ["arithmetic"]}
    for split in ("train", "validation"):
        assert set(tasks_of(make_task("mixture", split=split, **options))) == {"parity", "category"}
    test = make_task("mixture", split="test", **options)
    sizes = {name: len(make_task(name, split="test")) for name in options["tasks"]}
    assert tasks_of(test) == sizes


def test_items_keep_their_columns_and_say_where_they_come_from():
    mixture = make_task("mixture", tasks=["skills", "parity"], split="test")
    assert {"exact", "schema", "task", "family", "item"} <= set(mixture.columns)
    for i in range(40):
        item = mixture[i]
        assert tuple(item.columns) == mixture.columns
        if item.columns["task"] == "parity":
            assert (item.columns["family"], item.columns["exact"]) == ("parity", None)
    assert mixture.rewards == {"exact_match": 1.0}
    alike = make_task("mixture", tasks=["skills", "counting"])
    assert alike.rewards == make_task("skills").rewards


def test_the_order_is_that_of_a_function_and_has_a_fingerprint():
    options = {"tasks": {"parity": 1, "category": 2}, "size": 90}
    one, other = make_task("mixture", **options), make_task("mixture", **options)
    assert [one[i] for i in range(90)] == [other[i] for i in reversed(range(90))][::-1]
    changed = [
        make_task("mixture", **{**options, "size": 91}),
        make_task("mixture", **options, temperature=2),
        make_task("mixture", **options, split="test"),
    ]
    assert len({task.fingerprint for task in [one, *changed]}) == 4


def test_the_info_of_an_environment_names_the_task():
    env = gym.make(
        "instructrec/Instruction-v0",
        task="mixture",
        task_options={"tasks": {"parity": 1, "category": 1}, "size": 10},
    )
    names = [env.reset(options={"index": i})[1]["task"] for i in range(10)]
    assert Counter(names) == {"parity": 5, "category": 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": []}, "expected names with weights"),
        ({"tasks": ["parity", "parity"]}, "each once"),
        ({"tasks": {"paritty": 1}}, r"tasks.paritty: unknown task 'paritty'. Did you mean"),
        ({"tasks": {"parity": -1}}, "the weight is -1; expected a number above 0"),
        ({"tasks": {"parity": {"wieght": 1}}}, "Did you mean 'weight'"),
        ({"tasks": ["parity"], "temperature": 0}, "temperature is 0"),
        ({"tasks": ["parity"], "temperature": "hot"}, "temperature is 'hot'"),
        ({"tasks": ["parity"], "held_out": ["parity"]}, "every task is held out"),
        ({"tasks": ["parity"], "held_out": ["pariti"]}, "not among the tasks. Did you mean"),
        ({"tasks": ["parity"], "size": 0}, "integer >= 1"),
    ],
)
def test_impossible_mixtures_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_task("mixture", **options)


def test_labels_are_those_of_the_task_that_an_item_belongs_to():
    mixture = make_task("mixture", tasks={"word": {"use": "parity", "weight": 3}, "category": 1})
    for index in range(8):
        assert labels_of(mixture, index) == mixture[index].columns

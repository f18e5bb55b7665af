"""Problems of reasoning-gym: every generator by name, its own scorer, fixed items and splits."""

import json
import os
import pickle
import random
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

import instructrec  # noqa: F401  (registers the id)
from instructrec.envs import make_task
from instructrec.envs.tasks.base import default_rewards, iterate
from instructrec.errors import ConfigError, DataError
from instructrec.rewards import make_rewards

pytest.importorskip("reasoning_gym")

from instructrec.envs.tasks.reasoning import HASH_DEPENDENT, MADE_AT_ONCE
from instructrec.rewards.reasoning import level_options, list_generators, reseeded

SMALL = {
    "composite": {"datasets": [{"name": "gcd"}, {"name": "puzzle24", "weight": 2.0}]},
    "futoshiki": {"min_board_size": 4, "max_board_size": 4},
    "intermediate_integration": {"problem_types": ["linear"], "problem_type_weights": [1.0]},
    "knight_swap": {"impossible_ratio": 0.0, "max_steps": 40},
    "zebra_puzzles": {"num_people": 3, "num_characteristics": 3},
}
"""Options of the generators that take seconds for an item of default size."""
LENIENT = {"game_of_life_halting"}
"""Generators whose scorer takes an answer that it cannot read for one of two possible ones."""
NO_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Generators whose problems come without a right answer: their scorers check what they get."""
REFUSED_LEVELS = {
    **{"caesar_cipher": {2, 3}, "modulo_grid": {1}, "rubiks_cube": {4}, "survo": {2, 3}},
    "knight_swap": {0, 1, 2, 3, 4},
}
"""Levels of the library's curricula that its generators refuse."""


@pytest.fixture(autouse=True)
def fixed_hashes(monkeypatch):
    """What is compared within one process depends on one hash seed only."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")


def scores(rewards, items, responses):
    columns = {"entry": [item.columns["entry"] for item in items]}
    return rewards.score([item.prompt for item in items], responses, columns).total


@pytest.mark.slow
def test_every_generator_gives_problems_that_its_own_scorer_scores():
    without, below, lenient = set(), set(), set()
    rewards = make_rewards(default_rewards(make_task("reasoning_gym")))
    for name in list_generators():
        task = make_task("reasoning_gym", generator=name, size=2, **SMALL.get(name, {}))
        items = list(iterate(task))
        again = make_task("reasoning_gym", generator=name, size=3, **SMALL.get(name, {}))
        assert [again[i] for i in (1, 0)] == items[::-1]
        assert all(item.prompt and item.columns["family"] == name for item in items)
        references = [item.columns["reference"] for item in items]
        if None in references:
            without.add(name)
        right = scores(rewards, items, [reference or "" for reference in references])
        if (right != 1.0).any() and name not in without:
            below.add(name)
        wrong = scores(rewards, items, ["no such answer \x00 {[('"] * 2)
        assert np.isfinite(wrong).all(), name
        if (wrong == 1.0).any():
            lenient.add(name)
    assert (without, below, lenient) == (NO_ANSWER, set(), LENIENT)


@pytest.mark.slow
def test_items_are_those_of_the_library_for_a_seed():
    from reasoning_gym import create_dataset

    differ = set()
    for name in set(list_generators()) - {"composite"}:
        options = SMALL.get(name, {})
        made = create_dataset(name, seed=0, size=1, **options)
        expected = create_dataset(name, seed=12345, size=1, **options)[0]
        if reseeded(made, 12345)[0]["question"] != expected["question"]:
            differ.add(name)
    assert differ == MADE_AT_ONCE - {"composite"}


@pytest.mark.slow
def test_the_items_of_every_process_are_the_same():
    program = (
        "import json, os, sys\n"
        "os.environ['PYTHONHASHSEED'] = '0'\n"  # read by the check alone: Python has begun
        "from instructrec.envs import make_task\n"
        "from instructrec.rewards.reasoning import list_generators\n"
        "small = json.loads(sys.argv[1])\n"
        "items = lambda name: make_task('reasoning_gym', generator=name, size=2,"
        " **small.get(name, {}))\n"
        "print(json.dumps({n: [[t[i].prompt, t[i].columns['entry']] for i in (0, 1)]"
        " for n in list_generators() for t in [items(n)]}))\n"
    )

    def run(seed):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program, json.dumps(SMALL)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])

    one, other, third = run("1"), run("2"), run("3")
    differ = {name for name in one if not one[name] == other[name] == third[name]}
    assert differ <= HASH_DEPENDENT
    assert {"isomorphic_strings", "ransom_note"} <= differ


@pytest.mark.slow
def test_every_level_of_the_librarys_curricula_gives_problems():
    from reasoning_gym.factory import CURRICULA

    refused = {}
    for name, kind in CURRICULA.items():
        for level in range(max(len(a.levels) for a in kind().attributes.values())):
            try:
                options = level_options(name, level, {})
            except ConfigError:
                refused.setdefault(name, set()).add(level)
                continue
            assert json.loads(json.dumps(options)) is not None
    assert refused == REFUSED_LEVELS


@pytest.mark.parametrize("name", sorted(HASH_DEPENDENT))
def test_items_that_depend_on_the_hash_seed_need_a_fixed_one(name, monkeypatch):
    monkeypatch.delenv("PYTHONHASHSEED")
    with pytest.raises(ConfigError, match="PYTHONHASHSEED=0"):
        make_task("reasoning_gym", generator=name, **SMALL.get(name, {}))


def test_splits_share_no_prompt_whatever_the_seed():
    def prompts(split, seed):
        task = make_task(
            "reasoning_gym",
            generator="leg_counting",
            split=split,
            seed=seed,
            size=150,
            max_animals=3,
        )
        return {item.prompt for item in iterate(task)}

    found = {split: prompts(split, 0) | prompts(split, 1) for split in ("train", "test")}
    found["validation"] = prompts("validation", 5)
    assert not found["train"] & found["test"]
    assert not found["validation"] & (found["train"] | found["test"])
    assert prompts("train", 0) != prompts("train", 1)


def test_options_levels_and_split_decide_the_fingerprint():
    def fingerprint(**changes):
        return make_task("reasoning_gym", **{"generator": "chain_sum", **changes}).fingerprint

    changes = [{}, {"max_terms": 3}, {"levels": [0]}, {"levels": [0, 1]}, {"split": "test"}]
    changes += [{"seed": 1}, {"size": 9}, {"generator": "gcd"}]
    assert len({fingerprint(**change) for change in changes}) == len(changes)
    assert fingerprint() == fingerprint(size=4096)


def test_options_and_levels_are_those_of_the_generator():
    task = make_task("reasoning_gym", min_terms=5, max_terms=5, min_digits=1, max_digits=1)
    assert all(task[i].prompt.count(" + ") + task[i].prompt.count(" - ") == 4 for i in range(9))
    task = make_task("reasoning_gym", levels=[0, 2], allow_negation=True)
    assert [task[i].columns["level"] for i in range(4)] == [0, 2, 0, 2]
    assert [task.labels(i) for i in range(2)] == [
        {"family": "chain_sum", "level": level} for level in (0, 2)
    ]
    assert "'allow_negation': True, 'max_digits': 1" in task[0].columns["entry"]
    assert "'max_digits': 3" in task[1].columns["entry"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "chain_sums"}, "unknown generator 'chain_sums'. Did you mean 'chain_sum'"),
        ({"max_term": 3}, "has no option 'max_term'. Did you mean 'max_terms'"),
        ({"min_terms": 9, "max_terms": 2}, "max_terms must be >= min_terms"),
        ({"min_terms": {1}}, "expected plain values"),
        ({"levels": [99]}, "has the levels 0 to"),
        ({"levels": []}, "expected a list of one or more"),
        ({"levels": [1, 1]}, "each once"),
        ({"levels": [0], "max_digits": 9}, "'max_digits' of 'chain_sum' is set by the level"),
        ({"generator": "gsm_symbolic", "levels": [0]}, "has no levels"),
        ({"generator": "knight_swap", "levels": [0]}, "level 0: .*min_nodes must be >= 6"),
        ({"generator": "composite"}, "at least one dataset"),
        ({"seed": 1, "split": "tests"}, "unknown split"),
    ],
)
def test_what_the_library_does_not_know_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make_task("reasoning_gym", **options)


def test_a_split_without_problems_says_so():
    task = make_task("reasoning_gym", generator="chain_sum", split="test")
    task._options = {None: {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    assert task[0]
    options = {"min_animals": 1, "max_animals": 1, "min_instances": 1, "max_instances": 1}
    split = "validation"
    task = make_task("reasoning_gym", generator="leg_counting", split=split, size=40, **options)
    assert len({task[i].prompt for i in range(40)}) < 40  # few problems come again


def test_no_global_generator_is_touched():
    task = make_task("reasoning_gym", generator="pool_matrix")  # seeds numpy's
    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tobytes()
    first = task[0]
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before
    assert make_task("reasoning_gym", generator="pool_matrix")[0] == first


def test_the_task_is_plain_data():
    task = make_task("reasoning_gym", generator="gcd", levels=[0, 1])
    twin = pickle.loads(pickle.dumps(task))
    assert (twin[3], twin.fingerprint) == (task[3], task.fingerprint)


def test_the_environment_takes_generators_options_and_levels():
    env = gym.make(
        "instructrec/ReasoningGym-v0",
        task_options={"generator": "gcd", "levels": [1]},
        split="validation",
    )
    _, info = env.reset(seed=1)
    answer = env.unwrapped.instruction.columns["reference"]
    assert info["instruction_id"].startswith("gcd-validation-0-")
    _, reward, terminated, _, info = env.step(f"I think <answer> {answer} </answer>.")
    assert (reward, terminated) == (1.0, True)
    assert info["reward_parts"] == {"reasoning_gym": 1.0}


def test_what_is_no_problem_is_refused_with_its_column_named():
    rewards = make_rewards("reasoning_gym")
    with pytest.raises(DataError, match="column 'entry'"):
        rewards.score(["p"], ["1"], {"entry": ["{'answer': 3}"]})

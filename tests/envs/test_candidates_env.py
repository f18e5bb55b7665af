"""A choice among candidates: where they come from, how they are shown, what the choice earns."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from instructrec.envs import CandidatesEnv, CandidatesVectorEnv, Instruction
from instructrec.errors import ConfigError, DataError

ID = "instructrec/Candidates-v0"


class Rows:
    """A task of given rows."""

    name, split, fingerprint = "rows", "train", "rows"

    def __init__(self, *rows):
        self.rows, self.columns = rows, tuple(rows[0])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return Instruction(f"row-{index}", f"Question {index}?", self.rows[index])


def length(completions, **columns):
    """How long a response is."""
    return [float(len(text)) for text in completions]


def shown(env, index):
    env.reset(options={"index": index})
    return env.texts[1:]


def test_the_observation_is_the_instruction_with_its_numbered_candidates():
    task = Rows({"options": ["a", "two\nlines", "ccc"]})
    env = CandidatesEnv(
        task, num_candidates=3, candidates="options", shuffle=False, reward={"length": length}
    )
    observation, _ = env.reset(seed=0)
    assert observation == "Question 0?\n\n0: a\n1: two\nlines\n2: ccc"
    assert env.texts == ("Question 0?", "a", "two\nlines", "ccc")
    _, reward, terminated, truncated, info = env.step(np.int64(2))
    assert (reward, terminated, truncated) == (3.0, True, False)
    assert info["response"] == "ccc" and info["reward_parts"] == {"length": 3.0}


def test_of_a_longer_list_the_first_candidates_count_in_an_order_of_their_own():
    task = Rows(*({"options": list("abcdef"), "reference": "a"} for _ in range(40)))
    env = CandidatesEnv(task, candidates="options")
    orders = {shown(env, index) for index in range(40)}
    assert all(sorted(order) == ["a", "b", "c", "d"] for order in orders) and len(orders) > 10


def test_drawn_candidates_are_the_reference_and_three_others_at_any_number():
    env = gym.make(ID, task="closed_answers").unwrapped
    places = []
    for index in range(200):
        texts = shown(env, index)
        right = env.instruction.columns["reference"]
        assert len({text.casefold() for text in texts}) == 4
        places.append(texts.index(right))
        assert env.step(places[-1])[1] == 1.0
    counts = np.bincount(places, minlength=4)
    assert counts.min() > 30  # of 200, 50 are expected at each number


def test_candidates_depend_on_seed_and_index_alone():
    first, again = CandidatesEnv(), CandidatesEnv()
    other = CandidatesEnv(candidate_seed=1)
    again.reset(seed=99)
    forwards = [shown(first, index) for index in range(20)]
    backwards = [shown(again, index) for index in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert forwards != [shown(other, index) for index in range(20)]


def test_no_other_accepted_answer_is_a_distractor():
    rows = [{"reference": ["Yes", "yep"]}, {"reference": "YEP"}, {"reference": "no"}]
    env = CandidatesEnv(Rows(*rows, {"reference": None}), num_candidates=2)
    for _ in range(5):
        assert sorted(shown(env, 0)) == ["Yes", "no"]
    with pytest.raises(DataError, match=r"row-3.*has no reference"):
        env.reset(options={"index": 3})


def test_another_column_may_hold_the_answer():
    env = CandidatesEnv(
        Rows({"gold": "x"}, {"gold": "y"}), num_candidates=2, reference="gold", reward=length
    )
    assert sorted(shown(env, 1)) == ["x", "y"]


def test_a_large_task_is_not_read_to_its_end():
    class Large(Rows):
        read = 0

        def __len__(self):
            return 10**6

        def __getitem__(self, index):
            self.read += 1
            return Instruction(str(index), "?", {"reference": str(index)})

    task = Large({"reference": ""})
    CandidatesEnv(task)
    assert task.read <= 4096


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_candidates": 1}, ConfigError, "num_candidates = 1"),
        ({"num_candidates": True}, ConfigError, "num_candidates = True"),
        ({"candidate_seed": -1}, ConfigError, "candidate_seed = -1"),
        ({"shuffle": False}, ConfigError, "would always be number 0"),
        ({"candidates": "option"}, DataError, "no column 'option'.*'options'"),
        ({"reference": "gold"}, DataError, "no column 'gold'"),
        ({"num_candidates": 3}, DataError, "2 different answers"),
    ],
)
@pytest.mark.parametrize("kind", [CandidatesEnv, CandidatesVectorEnv])
def test_wrong_settings_are_refused(kind, options, error, message):
    rows = [{"options": ["a", "b"], "reference": text} for text in ("a", "b", "A")]
    with pytest.raises(error, match=message):
        kind(task=Rows(*rows), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a"], "has 1 candidates"),
        (None, "has 0 candidates"),
        ([1, 2], "expected a text or a list"),
        (["a", "\ud800"], "half of a surrogate"),
        (["a", "b" * 100], "larger max_chars"),
    ],
)
def test_a_row_without_usable_candidates_is_named(options, message):
    env = CandidatesEnv(
        Rows({"options": options}),
        num_candidates=2,
        candidates="options",
        max_chars=50,
        reward=length,
    )
    with pytest.raises(DataError, match=f"row-0.*{message}|{message}.*row-0"):
        env.reset(seed=0)
    with pytest.raises(ResetNeeded):
        env.step(0)


@pytest.mark.parametrize("action", [-1, 4, np.int64(9)])
def test_there_is_no_candidate_of_another_number(action):
    env, envs = gym.make(ID).unwrapped, gym.make_vec(ID, num_envs=2)
    env.reset(seed=0)
    envs.reset(seed=0)
    with pytest.raises(DataError, match="0 to 3"):
        env.step(action)
    with pytest.raises(DataError, match="0 to 3"):
        envs.step([0, action])


def test_copies_that_are_not_stepped_may_have_any_action():
    envs = CandidatesVectorEnv(3, autoreset_mode="DISABLED")
    _, told = envs.reset(seed=0)
    assert told["task_index"].shape == (3,)
    _, _, over, _, info = envs.step([0, 77, None], active=[True, False, False])
    assert over.tolist() == [True, False, False]
    assert isinstance(info["response"][0], str) and info["response"][1] is None


def test_the_spec_holds_plain_values_that_make_the_same_again():
    env = gym.make(ID, task="parity", num_candidates=2, candidate_seed=5)
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert json.loads(env.spec.to_json())["kwargs"]["num_candidates"] == 2
    assert again.reset(seed=1)[0] == env.reset(seed=1)[0]

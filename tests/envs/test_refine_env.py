"""Several tries: Gymnasium's rules, rewards of turns, the message, and vector == scalar."""

import itertools
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import instructrec  # noqa: F401  (registers the ids)
from instructrec.envs.refine import Attempt, RefineEnv, RefineRules, RefineVectorEnv
from instructrec.errors import ConfigError, RewardError

MODES = ["SAME_STEP", "DISABLED", "NEXT_STEP"]


def marks(completions, **columns):
    """The number that a response is; nothing applies to 'none', and 'bad' fails."""
    if "bad" in completions:
        raise ValueError("bad text")
    return [None if text == "none" else float(text) for text in completions]


def make_scalar(**kwargs):
    return RefineEnv(**{"task": "parity", "task_options": {"size": 60}, "reward": marks, **kwargs})


def make_vector(num_envs, mode="SAME_STEP", **kwargs):
    options = {"task": "parity", "task_options": {"size": 60}, "reward": marks, **kwargs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NEXT_STEP has a test of its own
        return RefineVectorEnv(num_envs, autoreset_mode=mode, **options)


def play(env, *answers, seed=0):
    """Steps through an episode; the outcome of every step."""
    env.reset(seed=seed)
    return [env.step(answer) for answer in answers]


@pytest.mark.parametrize("turn_reward", ["improvement", "last"])
def test_gymnasiums_checker_finds_nothing_to_say(turn_reward):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("instructrec/Refine-v0", turn_reward=turn_reward).unwrapped)


def test_full_marks_end_the_episode_at_once():
    ((after, reward, terminated, truncated, info),) = play(make_scalar(), "1")
    assert (after, reward, terminated, truncated) == ("", 1.0, True, False)
    assert (info["turn"], info["score"]) == (1, 1.0)


def test_other_answers_are_told_their_reward_until_the_last_turn():
    env = make_scalar(max_turns=2)
    (message, _, terminated, truncated, info), last = play(env, "0.25", "0.5")
    expected = "Your answer was: 0.25\nIts reward is 0.25 of 1.00. Try again."
    assert (message, terminated, truncated, info["turn"]) == (expected, False, False, 1)
    assert last[0] == "" and last[2] is True and last[3] is False
    assert last[4]["turn"] == 2
    with pytest.raises(ResetNeeded, match="over"):
        env.step("1")
    assert env.reset(seed=1) and env.step("0.25")[2] is False


@pytest.mark.parametrize(
    ("turn_reward", "expected"),
    [("improvement", [0.5, -0.25, 0.5]), ("last", [0.0, 0.0, 0.75])],
)
def test_the_return_is_the_reward_of_the_last_answer(turn_reward, expected):
    outcomes = play(make_scalar(turn_reward=turn_reward), "0.5", "0.25", "0.75")
    assert [reward for _, reward, *_ in outcomes] == expected
    assert [info["score"] for *_, info in outcomes] == [0.5, 0.25, 0.75]
    assert [info["reward_parts"]["marks"] for *_, info in outcomes] == [0.5, 0.25, 0.75]
    assert sum(expected) == 0.75


def test_full_marks_are_the_positive_weights_or_what_is_given():
    parts = {"a": {"use": marks, "weight": 2.0}, "b": {"use": marks, "weight": -1.0}}
    assert make_scalar(reward=parts).rules.full_marks == 2.0
    assert play(make_scalar(full_marks=0.5), "0.5")[0][2] is True


def test_a_sum_that_ends_a_rounding_below_full_marks_has_them():
    rules = RefineRules(full_marks=1.0, max_chars=1000)
    assert rules.judge(Attempt(), "x", math.nextafter(1.0, 0.0))[1] is None
    assert rules.judge(Attempt(), "x", 0.999)[1] is not None


def test_a_long_answer_is_cut_in_the_message_but_not_its_reward():
    env = make_scalar(max_chars=100)
    message = play(env, "0." + "1" * 90)[0][0]
    assert len(message) == 100 and message.endswith("1\nIts reward is 0.11 of 1.00. Try again.")
    assert message in env.observation_space


def test_an_answer_without_a_reward_ends_the_episode():
    ((after, reward, terminated, _, info),) = play(make_scalar(), "none")
    assert (after, terminated, info["reward_status"]) == ("", True, "not_applicable")
    assert math.isnan(reward)
    with pytest.raises(RewardError, match="bad text"):
        play(make_scalar(), "0", "bad")
    env = make_vector(3, "DISABLED")
    env.reset(seed=0)
    _, rewards, terminated, _, info = env.step(["bad", "none", "0.5"])
    assert np.isnan(rewards).tolist() == [True, True, False]
    assert terminated.tolist() == [True, True, False]
    assert info["reward_status"].tolist() == ["failed", "not_applicable", "scored"]


def test_rendering_shows_the_whole_dialogue():
    env = make_scalar(render_mode="ansi")
    question, _ = env.reset(seed=0)
    message = env.step("0.5")[0]
    env.step("1")
    lines = ["instruction: " + question, "response: 0.5", "environment: " + message, "response: 1"]
    assert env.render() == "\n".join(lines)


def assert_contains(ours, theirs):
    """What a batched info tells of a copy, ours tells too; SAME_STEP adds ended copies' rewards."""
    for name, expected in theirs.items():
        if isinstance(expected, dict):
            assert_contains(ours[name], expected)
            continue
        told = theirs.get("_" + name, np.ones(len(expected), dtype=bool))
        assert ours[name].dtype == expected.dtype, name
        if not name.startswith("_"):
            np.testing.assert_array_equal(ours[name][told], expected[told], err_msg=name)
        elif name.removeprefix("_") in ("turn", "score", "final_obs", "task_index"):
            np.testing.assert_array_equal(ours[name], expected, err_msg=name)
        else:
            assert not (expected & ~ours[name]).any(), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("turn_reward", ["improvement", "last"])
def test_the_vector_form_equals_scalar_copies(mode, turn_reward):
    kwargs = {"task": "parity", "task_options": {"size": 60}, "reward": marks}
    kwargs |= {"turn_reward": turn_reward, "max_turns": 3}
    ours = make_vector(5, mode, **kwargs)
    theirs = SyncVectorEnv([lambda: RefineEnv(**kwargs)] * 5, autoreset_mode=AutoresetMode[mode])
    answers = itertools.cycle(["0.5", "1", "0.25", "none", "0", "0.75", "0.1"])
    for seed in (3, None):
        (obs, info), (their_obs, their_info) = ours.reset(seed=seed), theirs.reset(seed=seed)
        assert obs == their_obs
        assert_contains(info, their_info)
    turns = set()
    for _ in range(12):
        actions = tuple(next(answers) for _ in range(5))
        our_step, their_step = ours.step(actions), theirs.step(actions)
        assert our_step[0] == their_step[0]
        for array, expected in zip(our_step[1:4], their_step[1:4], strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
        assert_contains(our_step[4], their_step[4])
        turns |= set(our_step[4].get("turn", np.zeros(0)).tolist())
        over = our_step[2]
        if mode == "DISABLED" and over.any():
            options = {"reset_mask": over}
            (obs, info), (their_obs, their_info) = (
                e.reset(options=options) for e in (ours, theirs)
            )
            assert obs == their_obs
            assert_contains(info, their_info)
    assert {1, 2} <= turns
    assert [g.random() for g in ours.np_random] == [g.random() for g in theirs.np_random]


def test_make_vec_picks_the_vector_form():
    env = gym.make_vec("instructrec/Refine-v0", num_envs=2, task="arithmetic", max_turns=4)
    assert isinstance(env, RefineVectorEnv) and env.rules.max_turns == 4
    assert env.task.name == "arithmetic"


def test_active_copies_alone_are_stepped_and_scored_with_one_call():
    sizes = []

    def counting(completions, **columns):
        sizes.append(len(completions))
        return marks(completions)

    env = make_vector(4, "DISABLED", reward=counting)
    env.reset(seed=0)
    _, _, over, *_ = env.step(["1", "0.5", "0", "1"])
    assert over.tolist() == [True, False, False, True]
    obs, rewards, terminated, truncated, info = env.step(["", "0.75", "1", ""], active=~over)
    assert sizes == [4, 2] and len(env.last_batch) == 2
    assert rewards.tolist() == [0.0, 0.25, 1.0, 0.0]
    assert terminated.tolist() == [False, False, True, False] and not truncated.any()
    assert info["_turn"].tolist() == [False, True, True, False]
    assert [bool(text) for text in obs] == [False, True, False, False]
    with pytest.raises(ResetNeeded, match=r"copies \[0\]"):
        env.step(["1"] * 4, active=[True, True, False, False])


def test_active_is_refused_where_every_copy_is_stepped():
    env = make_vector(2)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="autoreset_mode='DISABLED'"):
        env.step(["1", "1"], active=[True, False])
    env = make_vector(2, "DISABLED")
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"active is .*shape \(2,\)"):
        env.step(["1", "1"], active=[True])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_turns": 0}, "max_turns = 0"),
        ({"max_turns": 2.5}, "max_turns = 2.5"),
        ({"full_marks": math.inf}, "full_marks"),
        ({"full_marks": "all"}, "full_marks = 'all'"),
        ({"turn_reward": "improvment"}, "Did you mean 'improvement'"),
    ],
)
def test_wrong_settings_are_refused_when_the_environment_is_made(options, message):
    for make in (make_scalar, lambda **kwargs: make_vector(2, **kwargs)):
        with pytest.raises(ConfigError, match=message):
            make(**options)

"""What holds for every environment of ours, whatever the registry comes to have."""

import json
import math
import random
import warnings
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit, TransformReward
from gymnasium.wrappers import vector as vector_wrappers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import instructrec  # noqa: F401  (registers the ids)
from instructrec.errors import ConfigError, InstructRecError

NEEDS = {"instructrec/ReasoningGym-v0": "reasoning_gym"}
"""Ids that work only with a package of an extra."""
IDS = sorted(
    name
    for name in gym.registry
    if name.startswith("instructrec/") and (name not in NEEDS or find_spec(NEEDS[name]))
)
MODES = ["SAME_STEP", "DISABLED", "NEXT_STEP"]
SEEDS = 20
ONE_MEGABYTE = 2**20
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))
HOSTILE = [
    "",
    "\x00\x07\x1b[31m\r\n",
    "\u202eright to left\u202c\u2066\u200b\ufeff",
    "half \ud83d of a pair \udfff",
    "{" * 5000,
    "x" * ONE_MEGABYTE,
    "中😀" * (ONE_MEGABYTE // 7),
]


def make_vector(name, num_envs, mode="SAME_STEP"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NEXT_STEP warns that it wastes responses
        return gym.make_vec(name, num_envs=num_envs, autoreset_mode=mode)


def make_scalar(name):
    return gym.make(name, disable_env_checker=True).unwrapped


def right_answer(env):
    """The first reference of what a scalar environment shows; a sample where there is none."""
    reference = getattr(env, "instruction", None) and env.instruction.columns.get("reference")
    if reference is None or not isinstance(env.action_space, spaces.Text):
        return env.action_space.sample()
    return reference if isinstance(reference, str) else reference[0]


def actions_for(theirs, rng):
    """Right, wrong, empty and hostile answers, or samples where actions are no text."""
    return tuple(
        right_answer(env)
        if rng.random() < 0.4 or not isinstance(env.action_space, spaces.Text)
        else rng.choice(["", "wrong", "0 1 2", "\ud800 é\x00", '{"name": 1'])
        for env in theirs.envs
    )


def of_copy(info, i):
    """What a batched info tells of one copy."""
    told = {}
    for name, values in info.items():
        if name.startswith("_") or not info.get("_" + name, np.ones(i + 1, bool))[i]:
            continue
        told[name] = of_copy(values, i) if isinstance(values, dict) else values[i]
    return told


def assert_tells(ours, theirs, num_envs, mode):
    """With SAME_STEP our info tells the rewards of an ended episode at the top as well."""
    for i in range(num_envs):
        mine, expected = of_copy(ours, i), of_copy(theirs, i)
        if mode == "SAME_STEP":
            mine = {name: value for name, value in mine.items() if name in expected}
        np.testing.assert_equal(mine, expected)


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker_finds_nothing_to_say(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(name).unwrapped)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", IDS)
def test_the_vector_form_equals_scalar_copies(name, mode):
    size = 4
    ours = make_vector(name, size, mode)
    theirs = SyncVectorEnv([lambda: make_scalar(name)] * size, autoreset_mode=AutoresetMode[mode])
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.action_space == theirs.action_space
    for seed in range(SEEDS):
        rng = random.Random(seed)
        ours_out, theirs_out = ours.reset(seed=seed), theirs.reset(seed=seed)
        for env in theirs.envs:
            env.action_space.seed(seed)
        assert data_equivalence(ours_out[0], theirs_out[0])
        assert_tells(ours_out[1], theirs_out[1], size, mode)
        for _ in range(4):
            actions = actions_for(theirs, rng)
            ours_out, theirs_out = ours.step(actions), theirs.step(actions)
            assert data_equivalence(ours_out[0], theirs_out[0])
            assert ours_out[0] in ours.observation_space
            for array, expected in zip(ours_out[1:4], theirs_out[1:4], strict=True):
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array, expected)
            assert_tells(ours_out[4], theirs_out[4], size, mode)
            over = ours_out[2] | ours_out[3]
            if mode == "DISABLED" and over.any():
                resets = [env.reset(options={"reset_mask": over}) for env in (ours, theirs)]
                assert data_equivalence(resets[0][0], resets[1][0])
                assert_tells(resets[0][1], resets[1][1], size, mode)
        drawn = [[g.random() for g in env.np_random] for env in (ours, theirs)]
        assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", IDS)
def test_no_global_generator_is_touched(name):
    torch = pytest.importorskip("torch")

    def state():
        return (
            random.getstate(),
            np.random.get_state()[1].tobytes(),
            torch.get_rng_state().tolist(),
        )

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    before = state()
    scalar, ours = make_scalar(name), make_vector(name, 3)
    for seed in (5, None):
        scalar.reset(seed=seed)
        ours.reset(seed=seed)
        scalar.step(right_answer(scalar))
        ours.step(tuple(ours.single_action_space.sample() for _ in range(3)))
        ours.action_space.sample()
    assert state() == before


def assert_takes(env, text):
    """Any text is an answer: its reward is a number, and the info can be written down."""
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(text)
    assert observation in env.observation_space
    assert math.isfinite(reward) or info["reward_status"] == "not_applicable"
    assert type(terminated) is bool and type(truncated) is bool
    json.dumps(info).encode("utf-8")


@pytest.mark.parametrize("name", IDS)
def test_hostile_text_is_answered_like_any_other(name):
    env, ours = make_scalar(name), make_vector(name, 2)
    if not isinstance(env.action_space, spaces.Text):
        pytest.skip("actions are no text")

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(ANY_TEXT)
    def check(text):
        assert_takes(env, text)
        ours.reset(seed=0)
        observations, *_ = ours.step((text, "x"))
        assert observations in ours.observation_space

    check()
    for text in HOSTILE:
        assert_takes(env, text)
        ours.reset(seed=0)
        assert ours.step((text, text))[0] in ours.observation_space


@pytest.mark.parametrize("action", [None, 3.5, b"bytes", ["text"], {"text": 1}])
@pytest.mark.parametrize("name", IDS)
def test_what_is_no_action_is_refused_by_a_documented_error(name, action):
    env, ours = make_scalar(name), make_vector(name, 2)
    env.reset(seed=0)
    ours.reset(seed=0)
    with pytest.raises((TypeError, InstructRecError)):
        env.step(action)
    with pytest.raises((TypeError, InstructRecError)):
        ours.step((action, action))


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_worker_processes_give_what_scalar_copies_give(name):
    def make(kind, **options):
        return kind(
            [lambda: make_scalar(name)] * 2, autoreset_mode=AutoresetMode.SAME_STEP, **options
        )

    theirs = make(SyncVectorEnv)
    try:
        workers = make(AsyncVectorEnv)
    except TypeError as error:  # conversations: Gymnasium says that they fit into no shared memory
        assert "shared_memory" in str(error)
        workers = make(AsyncVectorEnv, shared_memory=False)
    try:
        shown = []
        for seed in (0, None):
            (obs, _), (expected, _) = workers.reset(seed=seed), theirs.reset(seed=seed)
            assert data_equivalence(obs, expected)
            for _ in range(2):
                actions = tuple(right_answer(env) for env in theirs.envs)
                step, expected = workers.step(actions), theirs.step(actions)
                assert data_equivalence(step[0], expected[0])
                assert step[0] in workers.observation_space
                np.testing.assert_array_equal(step[1], expected[1])
                assert_tells(step[4], expected[4], 2, "SAME_STEP")
                shown.append(repr(step[0]))
        assert len(set(shown)) > 1
    finally:
        workers.close()


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_wrappers_work(name):
    env = TimeLimit(make_scalar(name), 1)
    env.reset(seed=0)
    *_, truncated, _ = env.step(right_answer(env.unwrapped))
    assert truncated is True
    env = TransformReward(RecordEpisodeStatistics(make_scalar(name)), lambda reward: 2 * reward)
    env.reset(seed=0)
    earned, over, info = [], False, {}
    while not over:
        _, reward, terminated, truncated, info = env.step(right_answer(env.unwrapped))
        over = terminated or truncated
        earned.append(reward)
    assert info["episode"]["r"] * 2 == pytest.approx(sum(earned), nan_ok=True)
    assert info["episode"]["l"] == len(earned)


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_vector_wrappers_work(name):
    env = vector_wrappers.TransformReward(
        vector_wrappers.RecordEpisodeStatistics(make_vector(name, 2)), lambda rewards: 2 * rewards
    )
    twins = SyncVectorEnv(
        [lambda: RecordEpisodeStatistics(make_scalar(name))] * 2,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    listed = vector_wrappers.DictInfoToList(make_vector(name, 2))
    for wrapped in (env, twins, listed):
        wrapped.reset(seed=0)
    finished = 0
    for _ in range(12):
        actions = tuple(right_answer(twin.unwrapped) for twin in twins.envs)
        _, rewards, _, _, info = env.step(actions)
        _, expected, _, _, theirs = twins.step(actions)
        infos = listed.step(actions)[-1]
        np.testing.assert_array_equal(rewards, 2 * expected)
        assert len(infos) == 2
        if "final_info" not in theirs:
            continue
        for i in np.flatnonzero(theirs["_final_info"]).tolist():
            ended = theirs["final_info"]["episode"]
            assert info["episode"]["r"][i] == pytest.approx(ended["r"][i], nan_ok=True)
            assert info["episode"]["l"][i] == ended["l"][i]
            assert infos[i]["reward_status"] == info["reward_status"][i]
            finished += 1
    assert finished


@pytest.mark.parametrize("limit", [1, 2, -1])
@pytest.mark.parametrize("name", IDS)
def test_a_time_limit_cuts_our_vector_environment_as_copies_by_gymnasium(name, limit):
    ours = gym.make_vec(name, num_envs=2, max_episode_steps=limit)
    twins = gym.make_vec(
        name,
        num_envs=2,
        max_episode_steps=limit,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )
    actions = (0, 1) if "Candidates" in name else ("?", "?")
    shown = [env.reset(seed=0)[0] for env in (ours, twins)]
    assert shown[0] == shown[1]
    for _ in range(5):
        steps = [env.step(actions) for env in (ours, twins)]
        assert steps[0][0] == steps[1][0]
        for mine, theirs in zip(steps[0][1:4], steps[1][1:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    if limit == 1:
        assert steps[0][3].all()


@pytest.mark.parametrize("limit", [0, -2, 1.5, True])
def test_a_time_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match="max_episode_steps = "):
        gym.make_vec(IDS[0], num_envs=2, max_episode_steps=limit)

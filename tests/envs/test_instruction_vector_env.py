"""The vector environment: equal to its scalar copies, one reward call, honest about failures."""

import copy
import itertools
import math
import random
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

import instructrec  # noqa: F401  (registers the ids)
from instructrec.envs.instruction import InstructionEnv
from instructrec.envs.tasks.base import make_task
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import ConfigError, DataError
from instructrec.rewards.combine import make_rewards

IDS = sorted(name for name in gym.registry if name.startswith("instructrec/"))
OTHERWISE = ("Chat", "Tool", "Candidates", "ReasoningGym")  # asked or judged in another way
ANSWERED_ONCE = [name for name in IDS if not any(kind in name for kind in OTHERWISE)]
MODES = ["SAME_STEP", "DISABLED", "NEXT_STEP"]


def only_short(completions, **columns):
    return [float(len(text)) if len(text) < 6 else None for text in completions]


def fails_on_bad(completions, **columns):
    if any("bad" in text for text in completions):
        raise ValueError("bad text")
    return [1.0 for _ in completions]


REWARD = {"exact_match": 1.0, "short": {"use": only_short, "weight": 0.25}}


def make_vector(num_envs, mode="SAME_STEP", **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NEXT_STEP has a test of its own
        return InstructionVectorEnv(num_envs, autoreset_mode=mode, **kwargs)


def make_sync(num_envs, mode, **kwargs):
    return SyncVectorEnv(
        [lambda: InstructionEnv(**kwargs)] * num_envs, autoreset_mode=AutoresetMode[mode]
    )


def answers(env, step):
    """Responses that are right, wrong and too long in turn."""
    texts = []
    for i, instruction in enumerate(env.instructions):
        choices = [instruction.columns["reference"], "wrong", "much too long", "\ud800"]
        texts.append(choices[(i + step) % 4])
    return tuple(texts)


def assert_contains(ours, theirs):
    """Every entry of a batched info has the same type of values in ours."""
    for name, expected in theirs.items():
        if isinstance(expected, dict):
            assert_contains(ours[name], expected)
        else:
            assert ours[name].dtype == expected.dtype, name
            np.testing.assert_array_equal(ours[name], expected, err_msg=name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(20))
def test_it_equals_scalar_copies_for_every_seed_and_mode(mode, seed):
    kwargs = {"task": "closed_answers", "reward": REWARD, "task_options": {"size": 60}}
    ours, theirs = make_vector(5, mode, **kwargs), make_sync(5, mode, **kwargs)
    for (obs, info), (their_obs, their_info) in [
        (ours.reset(seed=seed), theirs.reset(seed=seed)),
        (ours.reset(), theirs.reset()),
    ]:
        assert obs == their_obs
        assert_contains(info, their_info)
        assert info.keys() == their_info.keys()
    for step in range(4):
        actions = answers(ours, step)
        ours_out, theirs_out = ours.step(actions), theirs.step(actions)
        assert ours_out[0] == theirs_out[0]
        for array, expected in zip(ours_out[1:4], theirs_out[1:4], strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
        assert_contains(ours_out[4], theirs_out[4])
        if mode == "DISABLED":
            mask = np.array([True, False, True, True, False])
            for part in (mask, ~mask):
                ours_reset = ours.reset(options={"reset_mask": part})
                theirs_reset = theirs.reset(options={"reset_mask": part})
                assert ours_reset[0] == theirs_reset[0]
                assert_contains(ours_reset[1], theirs_reset[1])
    assert ours.np_random_seed == theirs.np_random_seed
    assert [g.random() for g in ours.np_random] == [g.random() for g in theirs.np_random]


@pytest.mark.parametrize("name", ANSWERED_ONCE)
def test_make_vec_picks_it_and_scores_right_answers(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make_vec(name, num_envs=4, split="validation")
    assert isinstance(env, InstructionVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space
    assert obs == tuple(instruction.prompt for instruction in env.instructions)
    right = [instruction.columns["reference"] for instruction in env.instructions]
    obs, rewards, terminated, truncated, info = env.step(right)
    assert rewards.tolist() == [1.0] * 4 and rewards.dtype == np.float64
    assert terminated.all() and not truncated.any()
    part = "skill" if "Skills" in name else "exact_match"
    assert info["reward_parts"][part].tolist() == [1.0] * 4
    assert obs == tuple(instruction.prompt for instruction in env.instructions)


def test_make_vec_passes_the_autoreset_mode_and_other_arguments_on():
    env = gym.make_vec(
        "instructrec/Parity-v0", num_envs=2, autoreset_mode="DISABLED", reward="bleu"
    )
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert env.reward.names == ["bleu"]


def test_gymnasiums_own_vector_env_works_too():
    env = gym.make_vec("instructrec/Parity-v0", num_envs=2, vectorization_mode="sync")
    assert isinstance(env, SyncVectorEnv)
    assert env.reset(seed=0)[0] == make_vector(2, task="parity").reset(seed=0)[0]


def test_a_batch_is_scored_with_one_call():
    sizes = []

    def counting(completions, **columns):
        sizes.append(len(completions))
        return [0.5 for _ in completions]

    env = make_vector(16, reward=counting)
    env.reset(seed=0)
    for _ in range(3):
        env.step(["x"] * 16)
    assert sizes == [16, 16, 16]


def test_a_failed_reward_is_nan_and_its_neighbours_keep_theirs():
    env = make_vector(3, reward={"exact_match": 1.0, "fragile": fails_on_bad})
    env.reset(seed=0)
    _, rewards, terminated, _, info = env.step(["fine", "bad", "fine"])
    assert np.isnan(rewards).tolist() == [False, True, False]
    assert info["reward_status"].tolist() == ["scored", "failed", "scored"]
    assert info["reward_parts"]["_fragile"].tolist() == [True, False, True]
    assert info["reward_parts"]["_exact_match"].tolist() == [True, True, True]
    assert terminated.all()
    assert "bad text" in env.last_batch.messages["fragile"][1]
    assert env.last_batch.valid.tolist() == [True, False, True]


def test_a_response_to_which_nothing_applies_is_told_apart_from_a_failure():
    env = make_vector(2, reward=only_short)
    env.reset(seed=0)
    _, rewards, _, _, info = env.step(["short", "much too long"])
    assert rewards[0] == 5.0 and math.isnan(rewards[1])
    assert info["reward_status"].tolist() == ["scored", "not_applicable"]


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED"])
def test_the_last_batch_belongs_to_the_last_step(mode):
    env = make_vector(3, mode, task="parity")
    assert env.last_batch is None
    env.reset(seed=0)
    right = [instruction.columns["reference"] for instruction in env.instructions]
    _, rewards, *_ = env.step([right[0], "no", right[2]])
    assert env.last_batch.total.tolist() == rewards.tolist() == [1.0, 0.0, 1.0]
    assert env.last_batch.parts["exact_match"].tolist() == [1.0, 0.0, 1.0]


def test_extras_reach_the_rewards_that_ask_for_them():
    def num_tokens(completions, completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    env = make_vector(2, reward=num_tokens)
    env.reset(seed=0)
    _, rewards, *_ = env.step(["a", "b"], extras={"completion_ids": [[1, 2], [3]]})
    assert rewards.tolist() == [2.0, 1.0]


def test_indices_choose_the_instructions_and_draw_nothing():
    env, twin = make_vector(3, task="parity"), make_vector(3, task="parity")
    obs, info = env.reset(seed=1, options={"index": [5, 0, 5]})
    assert info["task_index"].tolist() == [5, 0, 5]
    assert obs == tuple(env.task[i].prompt for i in [5, 0, 5])
    assert env.reset(options={"index": np.array([1, 2, 3])})[1]["task_index"].tolist() == [1, 2, 3]
    assert env.reset(options={"index": 8})[1]["task_index"].tolist() == [8, 8, 8]
    assert env.reset()[0] == twin.reset(seed=1)[0]


def test_a_mask_with_indices_resets_only_its_copies():
    env = make_vector(3, "DISABLED", task="parity")
    env.reset(seed=0, options={"index": [1, 2, 3]})
    env.step(["x"] * 3)
    mask = np.array([True, False, True])
    obs, info = env.reset(options={"index": [7, -1, 9], "reset_mask": mask})
    assert obs == (env.task[7].prompt, "", env.task[9].prompt)
    assert info["_task_index"].tolist() == mask.tolist()
    with pytest.raises(ResetNeeded, match=r"copies \[1\]"):
        env.step(["x"] * 3)


def test_lists_of_seeds_seed_the_copies_one_by_one():
    env = make_vector(3)
    assert env.reset(seed=[4, 9, 4])[0][0] == env.reset(seed=[9, 9, 4])[0][2]
    assert env.reset(seed=4)[0] == env.reset(seed=[4, 5, 6])[0]


def test_no_global_generator_is_touched():
    def state():
        return random.getstate(), np.random.get_state()[1].tobytes()

    random.seed(0)
    np.random.seed(0)
    before = state()
    env = make_vector(4)
    env.reset(seed=5)
    env.step(["x"] * 4)
    env.reset()
    assert state() == before


def test_steps_need_a_reset():
    with pytest.raises(ResetNeeded):
        make_vector(2).step(["a", "b"])
    with pytest.raises(ResetNeeded):
        make_vector(2, "NEXT_STEP").step(["a", "b"])
    env = make_vector(2, "DISABLED")
    env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    with pytest.raises(ResetNeeded):
        env.step(["a", "b"])


def test_next_step_warns_that_it_wastes_responses():
    with pytest.warns(UserWarning, match="every second response"):
        InstructionVectorEnv(2, autoreset_mode="NextStep")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_envs": 0}, ConfigError, "integer >= 1"),
        ({"autoreset_mode": "SAME"}, ConfigError, "unknown autoreset mode 'SAME'"),
        ({"task": "paritty"}, ConfigError, "Did you mean 'parity'"),
        ({"reward": "exact_mach"}, ConfigError, "Did you mean 'exact_match'"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        InstructionVectorEnv(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": [1, 2]}, "2 seeds for 3"),
        ({"seed": 1.5}, "seed = 1.5: expected an integer, or 3 of them"),
        ({"seed": "abc"}, "seed = 'abc': expected an integer"),
        ({"seed": np.array(1)}, "expected an integer, or 3 of them"),
        ({"options": {"index": [1, 2]}}, "one for each of the 3"),
        ({"options": {"index": "123"}}, "one for each of the 3"),
        ({"options": {"index": [0, 1, 10_000]}}, "integer from 0 to 4095"),
        ({"options": {"reset_mask": [True, False]}}, "bool array of shape"),
        ({"options": {"reset_mask": np.zeros(3, dtype=bool)}}, "at least one True"),
        ({"options": {"reset_mask": np.ones(3)}}, "bool array"),
        ({"options": {"mask": 1}}, "expected only"),
    ],
)
def test_wrong_resets_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_vector(3).reset(**arguments)


def test_seeds_may_be_an_array():
    shown = [make_vector(3).reset(seed=seed)[0] for seed in (np.array([5, 1, 3]), [5, 1, 3])]
    assert shown[0] == shown[1]


@pytest.mark.parametrize(
    ("actions", "extras"),
    [(["a"], None), (["a"] * 4, None), ("abc", None), (["a"] * 3, {"completion_ids": [[1]]})],
)
def test_a_wrong_number_of_responses_or_extras_is_refused(actions, extras):
    env = make_vector(3)
    env.reset(seed=0)
    with pytest.raises(DataError, match="expected 3"):
        env.step(actions, extras)


def test_it_works_under_gymnasiums_vector_wrappers():
    env = RecordEpisodeStatistics(make_vector(2, task="parity"))
    env.reset(seed=0)
    right = [instruction.columns["reference"] for instruction in env.unwrapped.instructions]
    *_, info = env.step(tuple(right))
    assert info["episode"]["r"].tolist() == [1.0, 1.0]
    listed = DictInfoToList(make_vector(2, task="parity"))
    listed.reset(seed=0)
    *_, infos = listed.step(("x", "y"))
    assert [info["reward_status"] for info in infos] == ["scored", "scored"]


def test_its_spec_holds_objects_without_copying_them():
    class Precious:
        name, split, columns, fingerprint = "p", "train", ("reference", "family", "item"), "p"

        def __len__(self):
            return 10

        def __getitem__(self, index):
            return make_task("parity")[index]

        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    task, rewards = Precious(), make_rewards("exact_match")
    env = gym.make_vec("instructrec/Instruction-v0", num_envs=2, task=task, reward=rewards)
    again = gym.make_vec(copy.deepcopy(env.spec))
    assert again.task is task and again.reward is rewards and again.num_envs == 2


def test_copies_wander_apart():
    env = make_vector(8)
    obs, _ = env.reset(seed=0)
    assert len(set(obs)) >= 7
    seen = {tuple(env.reset()[0]) for _ in itertools.repeat(None, 5)}
    assert len(seen) == 5


def test_gymnasiums_worker_processes_carry_text_without_shared_memory():
    env = gym.make_vec(
        "instructrec/Parity-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"shared_memory": False, "autoreset_mode": "SameStep"},
    )
    try:
        assert env.reset(seed=3)[0] == make_vector(2, task="parity").reset(seed=3)[0]
        assert env.step(("odd", "odd"))[1].shape == (2,)
    finally:
        env.close()

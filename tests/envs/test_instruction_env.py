"""The scalar environment: Gymnasium's rules, seeding, rewards and what it refuses."""

import copy
import json
import math
import pickle
import random
import warnings
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import instructrec  # noqa: F401  (registers the ids)
from instructrec.envs.instruction import InstructionEnv
from instructrec.envs.tasks.base import Instruction, make_task
from instructrec.errors import ConfigError, DataError, RewardError
from instructrec.rewards.combine import make_rewards
from instructrec.rewards.registry import register_reward

REGISTERED = sorted(name for name in gym.registry if name.startswith("instructrec/"))
NEEDS = {"instructrec/ReasoningGym-v0": "reasoning_gym"}
"""Ids that work only with a package of an extra."""
IDS = [name for name in REGISTERED if name not in NEEDS or find_spec(NEEDS[name])]
SHOWS_MORE = ("Chat", "Tool", "Candidates")  # messages, tools, and what there is to choose from
ANSWERED_ONCE = [name for name in IDS if not any(kind in name for kind in SHOWS_MORE)]
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


class ListTask:
    """A task over a list of instructions."""

    name, split, fingerprint = "list", "train", "list"

    def __init__(self, *instructions, columns=("reference",)):
        self.instructions, self.columns = instructions, columns

    def __len__(self):
        return len(self.instructions)

    def __getitem__(self, index):
        return self.instructions[index]


def only(prompt="Say hi", **columns):
    columns = columns or {"reference": "hi"}
    return ListTask(Instruction("only-0", prompt, columns), columns=tuple(columns))


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def even_length_only(completions, **columns):
    return [float(len(text)) if len(text) % 2 == 0 else None for text in completions]


def broken(completions, **columns):
    raise ValueError("no luck today")


def not_a_number(completions, **columns):
    return [math.nan for _ in completions]


def needs_style(completions, style, **columns):
    return [float(s in c) for c, s in zip(completions, style, strict=True)]


def test_there_are_ids_for_any_task_and_one_for_each_built_in_task():
    assert [name.removeprefix("instructrec/").removesuffix("-v0") for name in REGISTERED] == [
        "Arithmetic",
        "Candidates",
        "Category",
        "Chat",
        "ClosedAnswers",
        "CompareNumbers",
        "Instruction",
        "OddOneOut",
        "Parity",
        "ReasoningGym",
        "Refine",
        "Skills",
        "SwapWords",
        "Tool",
    ]


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_checker_finds_nothing_to_say(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(name)
        check_env(env.unwrapped)
        check_env(gym.make(name, render_mode="ansi", split="test").unwrapped)


@pytest.mark.parametrize("name", ANSWERED_ONCE)
def test_the_right_answer_earns_the_reward_and_ends_the_episode(name):
    env = gym.make(name)
    observation, info = env.reset(seed=3)
    instruction = env.unwrapped.instruction
    assert observation == instruction.prompt
    assert info == {
        "task_index": info["task_index"],
        "instruction_id": instruction.id,
    }
    after, reward, terminated, truncated, info = env.step(instruction.columns["reference"])
    assert (after, reward) == ("", 1.0)
    assert terminated is True and truncated is False
    judged = {"skill", "skill.exact_match"} if "Skills" in name else {"exact_match"}
    judged = {"reasoning_gym"} if "ReasoningGym" in name else judged
    assert info["reward_parts"] == dict.fromkeys(judged, 1.0)
    assert info["reward_status"] == "scored"
    env.reset(seed=3)
    assert env.step("surely wrong")[1] == 0.0


def test_weighted_rewards_are_summed_and_their_raw_parts_reported():
    env = gym.make(
        "instructrec/Arithmetic-v0",
        reward={"exact_match": 1.0, "length": {"use": length, "weight": 0.5}},
    )
    env.reset(seed=1)
    _, reward, _, _, info = env.step("four")
    assert reward == 2.0
    assert info["reward_parts"] == {"exact_match": 0.0, "length": 4.0}
    assert all(type(value) is float for value in info["reward_parts"].values())


def test_the_same_seed_gives_the_same_episodes_and_another_seed_others():
    def episodes(seed):
        env = InstructionEnv()
        return [env.reset(seed=seed)[0]] + [env.reset()[0] for _ in range(20)]

    assert episodes(7) == episodes(7)
    assert episodes(7) != episodes(8)


def test_no_global_generator_is_touched():
    def state():
        return random.getstate(), np.random.get_state()[1].tobytes()

    random.seed(0)
    np.random.seed(0)
    before = state()
    env = gym.make("instructrec/ClosedAnswers-v0")
    env.reset(seed=5)
    env.step("x")
    env.reset()
    assert state() == before


def test_an_index_option_chooses_the_instruction_and_draws_nothing():
    env = InstructionEnv("parity", task_options={"size": 50})
    twin = InstructionEnv("parity", task_options={"size": 50})
    assert env.reset(seed=1, options={"index": 7})[0] == env.task[7].prompt
    assert env.reset(options={"index": np.int64(9)})[1]["task_index"] == 9
    assert env.reset()[0] == twin.reset(seed=1)[0]


@pytest.mark.parametrize("index", [-1, 50, "3", 1.0, [1]])
def test_an_index_outside_the_task_is_refused(index):
    env = InstructionEnv("parity", task_options={"size": 50})
    with pytest.raises(ConfigError, match="integer from 0 to 49"):
        env.reset(options={"index": index})


def test_an_unknown_reset_option_is_refused():
    with pytest.raises(ConfigError, match="indx"):
        InstructionEnv("parity").reset(options={"indx": 3})


@settings(max_examples=60)
@given(ANY_TEXT)
def test_hostile_text_is_scored_without_harm(text):
    env = InstructionEnv(only(), reward={"exact_match": 1, "bleu": 1, "length": length})
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(text)
    assert (observation, terminated, truncated) == ("", True, False)
    assert math.isfinite(reward)
    json.dumps(info).encode("utf-8")


def test_lone_surrogates_reach_the_reward_as_question_marks():
    seen = []

    def spy(completions, **columns):
        seen.extend(completions)
        return [0.0 for _ in completions]

    env = InstructionEnv(only(), reward=spy)
    env.reset()
    env.step("a\ud800b")
    assert seen == ["a?b"]


def test_a_response_beyond_max_chars_is_cut_and_reported():
    env = InstructionEnv(only(), reward=length, max_chars=10)
    env.reset()
    _, reward, _, _, info = env.step("x" * 11)
    assert reward == 10.0 and info["action_truncated"] is True
    env.reset()
    assert "action_truncated" not in env.step("x" * 10)[4]


def test_a_prompt_beyond_max_chars_is_an_error_that_names_it():
    env = InstructionEnv(only("x" * 11), max_chars=10)
    with pytest.raises(DataError, match=r"'only-0' has 11 characters.*10"):
        env.reset()


def test_a_prompt_that_is_no_unicode_is_an_error_that_names_it():
    env = InstructionEnv(only("half \ud83d of a pair"))
    with pytest.raises(DataError, match="'only-0' holds half of a surrogate pair"):
        env.reset()


@pytest.mark.parametrize("action", [None, 3, b"bytes", ["text"]])
def test_an_action_that_is_no_string_is_refused(action):
    env = InstructionEnv(only())
    env.reset()
    with pytest.raises(TypeError, match="as a string"):
        env.step(action)


@pytest.mark.parametrize(
    ("reward", "message"), [(broken, "no luck today"), (not_a_number, "nonfinite")]
)
def test_a_failed_reward_raises_and_never_becomes_a_number(reward, message):
    env = InstructionEnv(only(), reward=reward)
    env.reset()
    with pytest.raises(RewardError, match=message) as caught:
        env.step("x")
    assert "only-0" in str(caught.value)


def test_a_part_that_does_not_apply_is_absent():
    env = InstructionEnv(only(), reward={"exact_match": 1.0, "even": even_length_only})
    env.reset()
    assert env.step("odd")[4]["reward_parts"] == {"exact_match": 0.0}
    env.reset()
    assert env.step("even")[4]["reward_parts"] == {"exact_match": 0.0, "even": 4.0}


def test_a_response_to_which_no_reward_applies_has_no_number():
    env = InstructionEnv(only(), reward=even_length_only)
    env.reset()
    _, reward, terminated, _, info = env.step("odd")
    assert math.isnan(reward) and terminated is True
    assert info["reward_status"] == "not_applicable" and info["reward_parts"] == {}


def test_a_missing_column_is_found_when_the_environment_is_made():
    with pytest.raises(DataError, match="style"):
        InstructionEnv(only(), reward=needs_style)
    env = InstructionEnv(only(reference="r", style="kind"), reward=needs_style)
    env.reset()
    assert env.step("very kind")[1] == 1.0


def test_conversations_are_observed_as_text_and_given_to_chat_rewards_as_messages():
    seen = {"text": [], "chat": []}

    def text_spy(prompts, completions, **columns):
        seen["text"].extend(prompts)
        return [1.0 for _ in completions]

    @register_reward("chat_spy_of_the_env_tests", format="chat", override=True)
    def chat_spy(prompts, completions, **columns):
        seen["chat"].extend(prompts)
        return [1.0 for _ in completions]

    conversation = ({"role": "user", "content": "Hi"}, {"role": "tool", "content": "4"})
    rewards = {"text": text_spy, "chat": {"use": "chat_spy_of_the_env_tests"}}
    env = InstructionEnv(only(conversation), reward=rewards)
    assert env.reset()[0] == "user: Hi\ntool: 4"
    env.step("x")
    assert seen["text"] == ["user: Hi\ntool: 4"]
    assert seen["chat"] == [[dict(message) for message in conversation]]
    seen["chat"][0][0]["content"] = "changed"
    assert env.reset()[0] == "user: Hi\ntool: 4"


def test_steps_need_an_episode():
    env = InstructionEnv(only())
    with pytest.raises(ResetNeeded):
        env.step("x")
    env.reset()
    env.step("x")
    with pytest.raises(ResetNeeded, match="over"):
        env.step("x")


def test_infos_share_nothing_that_can_be_changed():
    env = InstructionEnv(only(), reward={"exact_match": 1.0})
    env.reset()
    first = env.step("hi")[4]
    first["reward_parts"]["exact_match"] = -5.0
    env.reset()
    assert env.step("hi")[4]["reward_parts"] == {"exact_match": 1.0}


def test_ansi_rendering_shows_instruction_and_response():
    env = gym.make("instructrec/Instruction-v0", task=only(), render_mode="ansi")
    env.reset()
    assert env.render() == "instruction: Say hi"
    env.step("hello")
    assert env.render() == "instruction: Say hi\nresponse: hello"
    assert InstructionEnv(only()).render() is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"task": "paritty"}, ConfigError, "Did you mean 'parity'"),
        ({"split": "tset"}, ConfigError, "Did you mean 'test'"),
        ({"reward": "exact_mach"}, ConfigError, "Did you mean 'exact_match'"),
        ({"task_options": {"sizes": 3}}, ConfigError, "no option 'sizes'"),
        ({"task": "missing.jsonl"}, DataError, "does not exist"),
        ({"task": 3}, ConfigError, "expected a name"),
        ({"task": only(), "split": "test"}, ConfigError, "split='test'"),
        ({"task": only(), "task_options": {"size": 1}}, ConfigError, "given by name"),
        ({"render_mode": "human"}, ConfigError, "ansi"),
    ],
)
def test_wrong_arguments_are_refused_when_the_environment_is_made(options, error, message):
    with pytest.raises(error, match=message):
        InstructionEnv(**options)


def test_a_data_file_is_a_task(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "Capital of France?", "reference": "Paris"}\n')
    env = gym.make("instructrec/Instruction-v0", task=str(path), split="all")
    assert env.reset()[0] == "Capital of France?"
    assert env.step("Paris")[1] == 1.0


def test_a_spec_of_names_can_be_written_pickled_and_made_again():
    env = gym.make("instructrec/Parity-v0", split="test", reward={"exact_match": 1.0, "bleu": 0.5})
    spec = type(env.spec).from_json(env.spec.to_json())
    for again in (gym.make(spec), gym.make(pickle.loads(pickle.dumps(env.spec)))):
        assert again.unwrapped.task.fingerprint == env.unwrapped.task.fingerprint
        assert again.reset(seed=2) == env.reset(seed=2)
        assert again.step("odd") == env.step("odd")


def test_reading_the_spec_copies_neither_the_task_nor_the_rewards():
    class Precious(ListTask):
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    task, rewards = Precious(only()[0]), make_rewards("exact_match")
    env = gym.make("instructrec/Instruction-v0", task=task, reward=rewards)
    copied = copy.deepcopy(env.spec)
    assert env.unwrapped.task is task and env.unwrapped.reward is rewards
    again = gym.make(copied)
    assert again.unwrapped.task is task and again.unwrapped.reward is rewards


def test_ready_tasks_are_shared_when_they_are_copied():
    for task in (make_task("parity"), make_task("closed_answers")):
        assert copy.deepcopy({"task": task})["task"] is task

"""Answers with tools: what the policy is told, results and errors, the trace, vector == scalar."""

from __future__ import annotations

import itertools
import json
import warnings

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import instructrec  # noqa: F401  (registers the ids)
from instructrec.envs.tasks.base import Instruction, labels_of, make_task
from instructrec.envs.tool_calls import Call
from instructrec.envs.tool_use import DescribedTask, ToolEnv, ToolVectorEnv
from instructrec.errors import ConfigError, DataError, PolicyError

CALL = "<tool>calculator(2 * 21)</tool>"
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


def make(**changes):
    return ToolEnv(**{"observe": "last", **changes})


def play(env, *answers, seed=0):
    """Steps through an episode; the outcome of every step."""
    env.reset(seed=seed)
    return [env.step(answer) for answer in answers]


@pytest.mark.parametrize("observe", ["conversation", "last"])
def test_gymnasiums_checker_finds_nothing_to_say(observe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("instructrec/Tool-v0", observe=observe, tools="calendar").unwrapped)


def test_a_call_gets_its_result_and_an_answer_without_one_ends_the_episode():
    env = make()
    env.reset(seed=0)
    right = env.instruction.columns["reference"]
    first, last = play(env, CALL, right)
    assert first[:4] == ("Result: 42", 0.0, False, False)
    assert last[:4] == ("", 1.0, True, False)
    assert (last[4]["num_calls"], last[4]["num_errors"], last[4]["ended_by"]) == (1, 0, "done")


def test_several_calls_of_an_answer_are_made_in_order_up_to_a_number():
    (outcome,) = play(make(max_calls=2), f"{CALL} {CALL.replace('2', '3')} {CALL}")
    assert outcome[0] == "Result: 42\nResult: 93\nError: only 2 calls are made in one answer"
    assert outcome[4]["num_calls"] == 2


def nested(depth):
    """A call in JSON with so many lists in one another."""
    arguments = '{"expression": ' + "[" * depth + "]" * depth + "}"
    return f'<tool_call>{{"name": "calculator", "arguments": {arguments}}}</tool_call>'


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("<tool>calculater(1)</tool>", "unknown tool 'calculater'. Did you mean 'calculator'?"),
        ("<tool>calculator(1/0)</tool>", "division by zero"),
        ("<tool>calculator()</tool>", "'expression' is missing"),
        ("<tool>", "expected <tool>name(arguments)</tool>"),
        ("<tool_call>{}</tool_call>", "expected {"),
        (nested(600), "the call is nested too deeply, at most 32 levels"),
        (nested(900), "the call is nested too deeply"),
    ],
)
def test_a_bad_call_is_told_and_never_raises(answer, message):
    (obs, _, terminated, truncated, info), *_ = play(make(), answer)
    assert obs.startswith("Error: ") and message in obs and not terminated and not truncated
    assert (info["num_calls"], info["num_errors"]) == (1, 1)


def test_an_episode_of_calls_alone_is_truncated():
    outcomes = play(make(max_turns=2), CALL, CALL)
    assert [outcome[2:4] for outcome in outcomes] == [(False, False), (False, True)]
    assert outcomes[-1][0] == "Result: 42" and outcomes[-1][4]["ended_by"] == "turns"


def test_the_reward_sees_the_trace():
    seen = []

    def asked(completions, trace, **columns):
        seen.append(trace[0])
        return [float(any(call["tool"] == "calculator" for call in trace[0]))]

    outcomes = play(make(reward=asked), f"{CALL}<tool>weekday(x)</tool>", "42")
    assert [reward for _, reward, *_ in outcomes] == [0.0, 1.0]
    made = {"turn": 1, "tool": "calculator", "arguments": {"expression": "2 * 21"}}
    unknown = {"turn": 1, "tool": "weekday", "arguments": "x", "result": None}
    assert seen[1][0] == {**made, "result": "42", "error": None}
    assert seen[1][1].items() >= unknown.items() and "unknown tool" in seen[1][1]["error"]
    seen[1][0]["arguments"].clear()
    seen[1].clear()
    assert play(make(reward=asked), CALL, "42")[1][1] == 1.0
    with pytest.raises(DataError, match="needs the column 'trace'"):
        gym.make("instructrec/Parity-v0", reward=asked)


def test_the_tools_stand_before_the_instruction():
    plain = make_task("arithmetic")[0].prompt
    env = make(tools=["calculator", "weekday"])
    shown, _ = env.reset(options={"index": 0})
    assert shown == (
        "You can use tools. Write <tool>name(arguments)</tool> and wait for the result.\n"
        "calculator(expression: str): Computes an arithmetic expression.\n"
        "weekday(day: str): Names the day of the week of a date.\n\n" + plain
    )
    assert make(describe="none").reset(options={"index": 0})[0] == plain
    lines = make(describe="schemas", tools="calendar").reset(options={"index": 0})[0].split("\n")
    names = [json.loads(line)["function"]["name"] for line in lines[1:4]]
    assert names == ["weekday", "days_between", "add_days"] and "<tool_call>" in lines[0]


def test_labels_of_a_described_task_are_known_without_making_an_item():
    class Costly:
        name, split, columns = "costly", "train", ("level",)

        def labels(self, index):
            return {"level": index}

    assert labels_of(DescribedTask(Costly(), "Use tools. "), 3) == {"level": 3}


def test_a_described_task_is_another_task_with_the_same_columns():
    task = make_task("parity")
    described, other = DescribedTask(task, "Use tools. "), DescribedTask(task, "Use them. ")
    assert len(described) == len(task) and described.columns == task.columns
    assert len({described.fingerprint, other.fingerprint, task.fingerprint}) == 3
    assert DescribedTask(task, "Use tools. ").fingerprint == described.fingerprint
    messages = ({"role": "system", "content": "Hi."}, {"role": "user", "content": "Odd?"})

    class Talk:
        name, split, columns, fingerprint = "talk", "all", (), "f"

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Instruction("t", messages)

    prompt = DescribedTask(Talk(), "Use tools. ")[0].prompt
    assert [m["content"] for m in prompt] == ["Use tools. Hi.", "Odd?"]


@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED", "NEXT_STEP"])
def test_the_vector_form_equals_scalar_copies(mode, assert_equal_to_scalars):
    options = {"tools": ["calculator", "calendar"], "max_turns": 3, "task_options": {"size": 60}}
    answers = itertools.cycle([CALL, "42", "<tool>", CALL * 2, "<tool>weekday(2024-01-01)", "57"])
    outcomes = assert_equal_to_scalars(
        lambda size, **mode: ToolVectorEnv(size, **options, **mode),
        lambda: ToolEnv(**options),
        mode,
        answers,
    )
    assert any(step[2].any() for step in outcomes) and any(step[3].any() for step in outcomes)


def test_make_vec_picks_the_vector_form():
    env = gym.make_vec("instructrec/Tool-v0", num_envs=2, tools=["calendar"], split="test")
    assert isinstance(env, ToolVectorEnv) and env.task.split == "test" and env.max_turns == 4


def test_another_way_to_write_calls_can_be_read(tmp_path):
    path = tmp_path / "format.py"
    path.write_text(
        "from instructrec.envs import Call\n"
        "def compute(text):\n"
        "    return [Call('calculator', text[1:])] if text.startswith('=') else []\n"
    )
    outcomes = play(make(parse=f"{path}:compute"), "=2*21", CALL)
    assert outcomes[0][0] == "Result: 42" and outcomes[1][2] is True
    assert play(make(parse=lambda text: [Call("nothing")]), "x")[0][0].startswith("Error: unknown")
    with pytest.raises(PolicyError, match="parse failed on the answer 'x': ZeroDivisionError"):
        play(make(parse=lambda text: 1 / 0), "x")
    for wrong in ("calculator(1)", Call("calculator", None)):
        with pytest.raises(PolicyError, match="parse failed on the answer 'x': TypeError: it ret"):
            play(make(parse=lambda text, wrong=wrong: [wrong]), "x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deadline_s": 0}, "deadline_s = 0: expected a number above 0"),
        ({"deadline_s": True}, "deadline_s = True"),
        ({"max_calls": 1.5}, "max_calls = 1.5: expected an integer"),
        ({"max_result_chars": -1}, "max_result_chars = -1"),
        ({"describe": "schema"}, "Did you mean 'schemas'"),
        ({"parse": 7}, "parse = 7"),
        ({"tools": "abacus"}, "unknown tool 'abacus'"),
        ({"max_turns": 0}, "max_turns = 0"),
    ],
)
def test_wrong_settings_are_refused_when_the_environment_is_made(options, message):
    for build in (make, lambda **changes: ToolVectorEnv(2, **changes)):
        with pytest.raises(ConfigError, match=message):
            build(**options)


def echo(text: str) -> str:
    """Gives a text back."""
    return text


def keep(value: list) -> str:
    """Takes a list."""
    return str(len(value))


ENV = make(tools=["calculator", "calendar", echo], task_options={"size": 20}, max_chars=2000)


@given(
    st.lists(ANY_TEXT, min_size=1, max_size=3),
    st.sampled_from(["<tool>echo({})</tool>", "<tool>calculator({})</tool>", "<tool>{}", "{}"]),
)
def test_hostile_answers_stay_in_the_space(texts, shape):
    ENV.reset(seed=0)
    for text in texts:
        obs, *_, over, _, _ = ENV.step(shape.replace("{}", text))
        assert obs in ENV.observation_space
        if over:
            break


@given(st.integers(1, 900), st.sampled_from(["json", "text", "object", "python"]))
@settings(max_examples=60)
def test_nested_calls_are_made_up_to_a_depth_and_told_beyond(depth, shape):
    lists = "[" * depth + "]" * depth
    objects = '{"a":' * (depth // 4) + "1" + "}" * (depth // 4)
    given_as = {
        "json": (f'{{"value": {lists}}}', depth > 30),  # within the call and its arguments
        "text": (json.dumps(f'{{"value": {lists}}}'), depth > 31),
        "object": (f'{{"value": [{objects}]}}', depth // 4 > 29),
    }
    if shape == "python":
        call, too_deep = f"<tool>keep({lists})</tool>", depth > 32
    else:
        arguments, too_deep = given_as[shape]
        call = f'<tool_call>{{"name": "keep", "arguments": {arguments}}}</tool_call>'
    obs, *_ = play(make(tools=[keep]), call)[0]
    told = "expected list" if shape == "python" else "the call is nested too deeply"
    assert obs.startswith("Error: ") and told in obs if too_deep else obs.startswith("Result: ")


def test_what_a_parser_of_ones_own_found_may_be_nested_too():
    deep = []
    for _ in range(2000):
        deep = [deep]
    (outcome,) = play(make(tools=[keep], parse=lambda text: [Call("keep", {"value": deep})]), "x")
    assert outcome[0].startswith("Error: the call is nested too deeply")


def test_a_huge_answer_costs_no_more_than_its_limit():
    for answer in (CALL * 100_000, "<tool>" * 200_000, "<tool_call>[" + "[" * 10**6):
        (obs, *_), *_ = play(make(), answer)
        assert obs.startswith(("Result: 42\n", "Error: ")) and len(obs) < 1000

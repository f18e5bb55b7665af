"""What a reward function is handed, async functions, pickling, and TRL in both directions."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import threading
from decimal import Decimal

import numpy as np
import pytest

from instructrec.errors import ConfigError, DataError, RewardError
from instructrec.rewards import BoundReward, make_reward, make_rewards
from instructrec.rewards.calling import check_scores

CHAT = [{"role": "assistant", "content": "<think>a</think>b"}]


def length(completions, **columns):
    return [float(len(text)) for text in completions]


def test_functions_get_the_parameters_that_they_name():
    seen = {}

    def named(completions, answer, hint=None, *, size=2):
        seen.update(completions=completions, answer=answer, hint=hint, size=size)
        return [1.0]

    columns = {"answer": ["a"], "size": ["large"], "other": [1], "hint": ["h"]}
    make_reward(named)(["p"], ["c"], **columns)
    # `size` is keyword-only and so an option: a column of that name does not reach it.
    assert seen == {"completions": ["c"], "answer": ["a"], "hint": ["h"], "size": 2}


def test_functions_with_columns_get_everything():
    seen = {}

    def everything(**columns):
        seen.update(columns)
        return [1.0]

    make_reward(everything)(["p"], ["c"], answer=["a"], completion_ids=[[1]])
    assert seen == {
        "prompts": ["p"],
        "completions": ["c"],
        "answer": ["a"],
        "completion_ids": [[1]],
    }


def test_a_set_option_wins_over_a_column_of_its_name():
    def scaled(completions, scale=1.0):
        return [scale for _ in completions]

    assert make_reward(scaled, scale=0.5)(["p"], ["c"], scale=[9.0]) == [0.5]


def test_another_column_can_feed_a_parameter():
    reward = make_reward("exact_match", reference_column="answer")
    assert reward.required_columns == ("answer",)
    assert reward(["p"], ["a"], answer=["a"], reference=["b"]) == [1.0]


def test_a_column_read_out_of_columns_can_be_renamed_too():
    from instructrec.rewards import register_reward

    @register_reward("calling_reads_gold", requires=("gold",))
    def reads(completions, **columns):
        return [float(c == g) for c, g in zip(completions, columns["gold"], strict=True)]

    reward = make_reward("calling_reads_gold", gold_column="answer")
    assert reward.required_columns == ("answer",)
    assert reward(["p"], ["a"], answer=["a"]) == [1.0]


def test_a_missing_column_names_the_columns_that_exist():
    with pytest.raises(
        DataError,
        match=r"the column 'reference'.*mean 'references'\? Columns: family, references\.",
    ):
        make_reward("exact_match")(["p"], ["c"], references=["a"], family=["f"])


def test_token_ids_that_nobody_has_are_named():
    def by_tokens(completion_ids, **columns):
        return [float(len(ids)) for ids in completion_ids]

    assert make_reward(by_tokens)(["p"], ["c"], completion_ids=[[1, 2]]) == [2.0]
    with pytest.raises(DataError, match=r"'by_tokens' needs 'completion_ids'.*token ids"):
        make_reward(by_tokens)(["p"], ["c"])


def test_text_rewards_see_text_and_chat_rewards_see_messages():
    from instructrec.rewards import register_reward

    seen = []

    @register_reward("calling_chat", format="chat")
    def chat(prompts, completions, **columns):
        seen.append((prompts, completions))
        return [1.0]

    def text(prompts, completions, **columns):
        seen.append((prompts, completions))
        return [1.0]

    messages = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "yo"}]
    for reward in (make_reward(chat), make_reward(text)):
        reward(["hi"], ["yo"])
        reward([messages[0]], [messages[1]])
    as_chat = ([messages[0]], [messages[1]])
    assert seen == [as_chat, as_chat, (["hi"], ["yo"]), (["hi"], ["yo"])]


async def slow_length(completions, **columns):
    await asyncio.sleep(0.001)
    return [float(len(text)) for text in completions]


class AsyncLength:
    async def __call__(self, completions, **columns):
        return await slow_length(completions)


@pytest.mark.parametrize("reward", [slow_length, AsyncLength])
def test_async_rewards_are_awaited(reward):
    assert make_reward(reward)(["p", "p"], ["a", "bc"]) == [1.0, 2.0]


def test_async_rewards_work_where_a_loop_runs_already_as_in_a_notebook():
    async def cell():
        return make_reward(slow_length)(["p"], ["abc"])

    assert asyncio.run(cell()) == [3.0]


def test_async_rewards_keep_one_loop_for_their_clients():
    loops = []

    async def remembers(completions, **columns):
        loops.append(asyncio.get_running_loop())
        return [1.0]

    reward = make_reward(remembers)
    reward(["p"], ["c"])
    thread = threading.Thread(target=reward, args=(["p"], ["c"]))
    thread.start()
    thread.join()
    assert len(loops) == 2
    assert loops[0] is loops[1]


def test_exceptions_of_async_rewards_arrive():
    async def fails(completions, **columns):
        raise KeyError("inside")

    with pytest.raises(KeyError, match=r"inside"):
        make_reward(fails)(["p"], ["c"])


def test_an_async_reward_that_would_wait_for_itself_is_an_error():
    inner = make_reward(slow_length)

    async def nested(completions, **columns):
        return inner(completions, completions)

    with pytest.raises(RewardError, match=r"await the other function"):
        make_reward(nested)(["p"], ["c"])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("0.5", r"returned '0.5' \(str\); expected a list of 2 numbers"),
        (0.5, r"\(float\); expected a list of 2"),
        (None, r"\(NoneType\); expected a list of 2"),
        ({"a": 1, "b": 2}, r"\(dict\); expected a list of 2"),
        ((x for x in (1, 2)), r"\(generator\); expected a list of 2"),
        ([1.0], "returned 1 scores for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 scores for 2 completions"),
        ([], "returned 0 scores for 2 completions"),
        (["0.5", 1.0], r"returned '0.5' \(str\) for completion 0"),
        ([1.0, [2.0]], r"\(list\) for completion 1; expected a number or None"),
        ([1.0, 2j], r"\(complex\) for completion 1"),
        ([1.0, np.str_("0.5")], r"\(str_?\) for completion 1"),
        ([Decimal("sNaN"), 1.0], r"\(Decimal\) for completion 0"),
        (np.ones((2, 1)), r"\(list\) for completion 0"),
        (np.float64(1.0), r"\(float64\); expected a list of 2"),
    ],
)
def test_results_of_the_wrong_type_or_length_are_refused(result, message):
    with pytest.raises(RewardError, match=f"reward 'r' .*{message}"):
        check_scores("r", result, 2)


def test_lists_tuples_arrays_and_their_number_types_are_accepted():
    assert check_scores("r", [1, None], 2) == [1.0, None]
    assert check_scores("r", (True, np.float32(0.5)), 2) == [1.0, 0.5]
    assert check_scores("r", np.array([1, 2]), 2) == [1.0, 2.0]
    assert check_scores("r", [10**400, -(10**400)], 2) == [float("inf"), float("-inf")]


def test_rewards_survive_pickling_and_copying(tmp_path):
    path = tmp_path / "pickled_reward.py"
    path.write_text(
        "def long(completions, *, least=3, **columns):\n"
        "    return [float(len(c) >= least) for c in completions]\n"
        "class Fixed:\n"
        "    def __init__(self, value):\n        self.value = value\n"
        "    def __call__(self, completions, **columns):\n"
        "        return [self.value for c in completions]\n"
    )
    rewards = [
        make_reward("exact_match", normalise="casefold"),
        make_reward(length),
        make_reward(f"{path}:long", least=2),
        make_reward(f"{path}:Fixed", value=0.5),
    ]
    from instructrec.rewards.loading import load_object

    rewards.append(make_reward(load_object(f"{path}:long")))
    for reward in rewards:
        for twin in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
            assert isinstance(twin, BoundReward)
            assert twin.describe() == reward.describe()
            assert twin(["p"], ["Ab"], reference=["ab"]) == reward(["p"], ["Ab"], reference=["ab"])


def test_rewards_of_trl_work_and_see_messages():
    reward = make_reward("trl.rewards:think_format_reward")
    assert reward.info.format == "chat"
    assert reward(["p", "p"], ["<think>a</think>b", "b"]) == [1.0, 0.0]
    assert reward(["p"], [CHAT]) == [1.0]


def test_factories_of_trl_take_their_options_and_token_ids():
    reward = make_reward("trl.rewards:get_repetition_penalty_reward", ngram_size=2)
    assert reward(["p"] * 2, ["c"] * 2, completion_ids=[[1, 2, 3, 4], [5, 5, 5, 5, 5]]) == [
        0.0,
        -0.75,
    ]
    combined = make_rewards(
        {
            "overlong": {
                "use": "trl.rewards:get_soft_overlong_punishment",
                "options": {"max_completion_len": 100, "soft_punish_cache": 20},
            }
        }
    )
    batch = combined.score(["p"], ["c"], {}, extras={"completion_ids": [[1] * 90]})
    assert batch.total.tolist() == [-0.5]


def test_a_missing_package_of_a_trl_reward_is_a_failure_with_its_message():
    pytest.importorskip("trl")
    try:
        import math_verify  # noqa: F401

        pytest.skip("math_verify is installed")
    except ImportError:
        pass
    combined = make_rewards(
        {
            "maths": {
                "use": "trl.rewards:accuracy_reward",
                "options": {"solution_column": "reference"},
            }
        }
    )
    assert combined.required_columns == {"reference"}
    batch = combined.score(["p"], ["c"], {"reference": ["1"]})
    assert "math_verify" in batch.messages["maths"][0]
    assert batch.sample_status(0) == "failed"


def test_our_rewards_work_with_the_arguments_of_a_trl_trainer():
    reward = make_reward("exact_match")
    completions = [[{"role": "assistant", "content": "Paris"}], CHAT]
    scores = reward(
        prompts=[[{"role": "user", "content": "Capital?"}]] * 2,
        completions=completions,
        completion_ids=[[1], [2]],
        reference=["Paris", "Paris"],
        trainer_state=object(),
        log_extra=lambda *a: None,
        log_metric=lambda *a: None,
    )
    assert scores == [1.0, 0.0]


class Leaving:
    """Ends the program when it is made."""

    def __init__(self):
        sys.exit("no model here")

    def __call__(self, completions, **columns):
        return [0.0]


def test_a_constructor_that_ends_the_program_is_a_wrong_setting():
    with pytest.raises(ConfigError, match=r"making it called sys\.exit\(no model here\)"):
        make_reward(Leaving)

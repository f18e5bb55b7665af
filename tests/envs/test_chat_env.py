"""Conversations: Gymnasium's rules, budgets, rewards of turns, and vector == scalar."""

from __future__ import annotations

import itertools
import json
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

import instructrec  # noqa: F401  (registers the ids)
from instructrec.envs.chat import ChatEnv, ChatVectorEnv
from instructrec.envs.turn_rewards import LastTurn
from instructrec.errors import ConfigError, DataError, RewardError

MODES = ["SAME_STEP", "DISABLED", "NEXT_STEP"]


def marks(completions, **columns):
    """The number that a response is; nothing applies to a text without one, and 'bad' fails."""
    if "bad" in completions:
        raise ValueError("bad text")
    return [float(t) if t.replace(".", "").isdigit() else None for t in completions]


def echo(messages, columns):
    """Says how many messages there were, and has nothing more to say to 'bye'."""
    last = messages[-1]["content"]
    return None if last == "bye" else f"{len(messages)} messages, the last is {last}"


def settings(**changes):
    return {"task": "parity", "task_options": {"size": 60}, "reward": marks, **changes}


def make(**changes):
    return ChatEnv(**settings(**changes))


def play(env, *answers, seed=0):
    """Steps through an episode; the outcome of every step."""
    env.reset(seed=seed)
    return [env.step(answer) for answer in answers]


@pytest.mark.parametrize("observe", ["conversation", "last"])
def test_gymnasiums_checker_finds_nothing_to_say(observe):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("instructrec/Chat-v0", observe=observe).unwrapped)
        check_env(gym.make("instructrec/Chat-v0", observe=observe, turn_reward="each").unwrapped)


def test_the_conversation_grows_by_the_answer_and_the_users_reply():
    env = make(user=["Sure?", "Really?"])
    question, _ = env.reset(seed=0)
    assert [m["role"] for m in question] == ["user"] and question in env.observation_space
    observed = [env.step(text)[0] for text in ("1", "0", "0.5")]
    said = [question[0]["content"], "1", "Sure?", "0", "Really?", "0.5"]
    assert [m["content"] for m in observed[-1]] == said
    assert [m["role"] for m in observed[-1]] == ["user", "assistant"] * 3
    assert observed[0] == observed[-1][:3] and observed[1] == observed[-1][:5]
    assert all(obs in env.observation_space for obs in observed)


def test_the_last_message_alone_may_be_observed():
    outcomes = play(make(user=["Sure?"], observe="last"), "1", "0")
    assert [obs for obs, *_ in outcomes] == ["Sure?", ""]


def test_the_user_ends_an_episode_and_a_budget_cuts_it():
    outcomes = play(make(user=echo), "1", "bye")
    assert [(t, c) for _, _, t, c, _ in outcomes] == [(False, False), (True, False)]
    assert outcomes[-1][4]["ended_by"] == "done" and "ended_by" not in outcomes[0][4]
    env = make(user=echo, max_turns=2)
    outcomes = play(env, "1", "0.5")
    obs, reward, terminated, truncated, info = outcomes[-1]
    assert (reward, terminated, truncated, info["ended_by"]) == (0.5, False, True, "turns")
    assert obs[-1] == {"role": "user", "content": "4 messages, the last is 0.5"}
    with pytest.raises(ResetNeeded, match="over"):
        env.step("1")
    outcomes = play(make(user=echo, max_turns=2), "1", "bye")  # both at once: it is complete
    assert outcomes[-1][2:4] == (True, False)
    assert all(type(flag) is bool for flag in outcomes[-1][2:4])


def test_the_size_of_a_conversation_is_counted_by_characters_or_by_what_is_given():
    env = make(user=["1234", "1234"], observe="last", max_tokens=1000)
    question, _ = env.reset(seed=0)
    for budget, ended in [(len(question) + 5, "tokens"), (len(question) + 6, None)]:
        ((*_, truncated, info),) = play(
            make(user=["1234", "1234"], observe="last", max_tokens=budget), "1"
        )
        assert (truncated, info.get("ended_by")) == (ended is not None, ended)
    words = {"count_tokens": lambda text: len(text.split())}
    wordy = make(user=["one two", "end"], max_tokens=len(question.split()) + 3, **words)
    assert play(wordy, "1")[0][4]["ended_by"] == "tokens"


@pytest.mark.parametrize(
    ("turn_reward", "expected"), [("last", [0.0, 0.0, 0.75]), ("each", [0.5, 0.0, 0.75])]
)
def test_the_last_answer_or_every_answer_earns_its_reward(turn_reward, expected):
    outcomes = play(make(user=["a", "b"], turn_reward=turn_reward), "0.5", "what?", "0.75")
    assert [reward for _, reward, *_ in outcomes] == expected
    assert [info.get("score") for *_, info in outcomes] == [0.5, None, 0.75]
    assert [info["turn"] for *_, info in outcomes] == [1, 2, 3]


def test_a_failed_reward_ends_the_episode_and_a_missing_one_only_in_the_last_turn():
    with pytest.raises(RewardError, match="bad text"):
        play(make(), "bad")
    ((_, reward, terminated, _, info),) = play(make(user=[]), "none")
    assert math.isnan(reward) and terminated and "score" not in info
    env = ChatVectorEnv(3, **settings(autoreset_mode="DISABLED"))
    env.reset(seed=0)
    _, rewards, terminated, truncated, info = env.step(["bad", "none", "0.5"])
    assert np.isnan(rewards).tolist() == [True, False, False] and rewards[1] == 0.0
    assert terminated.tolist() == [True, False, False] and not truncated.any()
    assert info["reward_status"].tolist() == ["failed", "not_applicable", "scored"]


def test_rewards_see_the_conversation_and_where_it_stands():
    seen = []

    def spy(prompts, completions, turn, is_last, conversation, **columns):
        seen.append((prompts[0], completions[0], turn[0], is_last[0], conversation[0]))
        return [0.0]

    env = make(user=["Sure?"], reward=spy, observe="last")
    question, _ = env.reset(seed=0)
    env.step("a")
    env.step("b")
    texts = [question, "a", "Sure?", "b"]
    roles = ["user", "assistant"] * 2
    whole = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    transcript = "\n".join(f"{m['role']}: {m['content']}" for m in whole[:3])
    assert seen == [
        (question, "a", 1, False, whole[:3]),
        (transcript, "b", 2, True, whole),
    ]


def test_every_turn_may_have_a_reference_of_its_own(tmp_path):
    path = tmp_path / "talk.jsonl"
    rows = [
        {"prompt": "One?", "reference": ["1", "2"], "then": ["Two?", "Three?"]},
        {"prompt": "Hi", "reference": ["Hi"], "then": []},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"task": str(path), "split": "all", "user": "then", "turn_reward": "each"}
    env = ChatEnv(**options, turn_columns=["reference"])
    env.reset(options={"index": 0})
    outcomes = [env.step(text) for text in ("1", "2", "3")]
    assert [reward for _, reward, *_ in outcomes[:2]] == [1.0, 1.0]
    assert math.isnan(outcomes[2][1])  # there is no third reference
    env.reset(options={"index": 1})
    assert env.step("Hi")[1:4] == (1.0, True, False)
    flat = ChatEnv("parity", turn_columns=["reference"])
    flat.reset(seed=0)
    with pytest.raises(DataError, match="one value for each answer"):
        flat.step("odd")


def test_rewards_inside_of_last_turn_are_not_called_for_other_answers():
    calls = []

    def costly(completions, **columns):
        calls.append(list(completions))
        return [1.0] * len(completions)

    parts = {"brief": marks, "end": {"use": LastTurn, "options": {"parts": {"costly": costly}}}}
    env = make(user=["Sure?"], reward=parts, turn_reward="each")
    outcomes = play(env, "0.25", "0.5")
    assert [reward for _, reward, *_ in outcomes] == [0.25, 1.5]
    assert calls == [["0.5"]]
    assert outcomes[0][4]["reward_parts"] == {"brief": 0.25}
    assert outcomes[1][4]["reward_parts"] == {"brief": 0.5, "end": 1.0, "end.costly": 1.0}
    vector = ChatVectorEnv(2, **settings(user=echo, reward=parts, autoreset_mode="DISABLED"))
    vector.reset(seed=0)
    assert vector.step(["bye", "0.5"])[1].tolist() == [1.0 + 0.0, 0.0] and calls[1:] == [["bye"]]
    with pytest.raises(DataError, match="which answer is the last"):
        gym.make("instructrec/Parity-v0", reward=parts)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("observe", ["conversation", "last"])
def test_the_vector_form_equals_scalar_copies(mode, observe, assert_equal_to_scalars):
    options = settings(user=echo, observe=observe, max_turns=3, turn_reward="each", max_tokens=120)
    answers = itertools.cycle(["0.5", "bye", "0." + "1" * 60, "what", "0", "0.75", "1"])
    outcomes = assert_equal_to_scalars(
        lambda size, **mode: ChatVectorEnv(size, **options, **mode),
        lambda: ChatEnv(**options),
        mode,
        answers,
    )
    kinds = set()
    for *_, info in outcomes:
        ended = info.get("final_info", info).get("ended_by", np.array([]))
        kinds |= {kind for kind in ended.tolist() if kind}
    assert kinds == {"done", "turns", "tokens"}


def test_make_vec_picks_the_vector_form_which_asks_the_user_once_for_all():
    sizes = []

    class Counts:
        def respond(self, prompts, columns=None, sampling=None):
            sizes.append(len(prompts))
            return type("R", (), {"texts": ["more"] * len(prompts)})

    env = gym.make_vec("instructrec/Chat-v0", num_envs=3, user=Counts(), max_turns=4)
    assert isinstance(env, ChatVectorEnv) and env.max_turns == 4
    env.reset(seed=0)
    env.step(["a"] * 3)
    assert sizes == [3]
    assert env.spec is not None  # reading it copies no policy


def test_active_copies_alone_are_stepped():
    env = ChatVectorEnv(3, **settings(user=echo, autoreset_mode="DISABLED", observe="last"))
    env.reset(seed=0)
    before, _, over, *_ = env.step(["bye", "1", "1"])
    after, _, terminated, _, info = env.step(["", "bye", "0"], active=~over)
    assert terminated.tolist() == [False, True, False] and info["turn"].tolist() == [0, 2, 2]
    assert after[0] == before[0] == "" and after[2] == "4 messages, the last is 0"


def test_what_was_observed_is_not_changed_later_nor_shared():
    env = ChatVectorEnv(2, **settings(autoreset_mode="DISABLED"))
    first, _ = env.reset(seed=0)
    first[0][0]["content"] = "spoilt"
    later, *_ = env.step(["1", "1"])
    assert later[0][0]["content"] != "spoilt"


HOSTILE = [
    "",
    "\x00",
    "\u202e\u2066abc",
    "\ud800",
    "a\udfffb",
    "😀" * 3,
    "x" * 200_000,
    "{}\n\r\x1b[",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_answers_and_replies_stay_in_the_space(text):
    env = make(user=lambda messages, columns: text, max_chars=1000, max_turns=3)
    for obs, *_ in play(env, text, text):
        assert obs in env.observation_space
        json.dumps(obs).encode()
    env = make(user=[text], observe="last", max_chars=1000)
    assert play(env, text)[0][0] in env.observation_space


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_turns": 0}, ConfigError, "max_turns = 0"),
        ({"max_turns": None}, ConfigError, "max_turns = None"),
        ({"max_tokens": 1.5}, ConfigError, "max_tokens = 1.5"),
        ({"turn_reward": "lats"}, ConfigError, "Did you mean 'last'"),
        ({"observe": "all"}, ConfigError, "unknown observe 'all'"),
        ({"count_tokens": 3}, ConfigError, "count_tokens = 3"),
        ({"turn_columns": "reference"}, ConfigError, "list of names"),
        ({"turn_columns": ["refrence"]}, DataError, "Did you mean 'reference'"),
    ],
)
def test_wrong_settings_are_refused_when_the_environment_is_made(options, error, message):
    for build in (make, lambda **changes: ChatVectorEnv(2, **settings(**changes))):
        with pytest.raises(error, match=message):
            build(**options)


def test_a_column_with_a_name_that_rewards_are_told_by_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "reference": "b", "turn": 1}\n')
    with pytest.raises(DataError, match=r"column 'turn'.*rename"):
        ChatEnv(str(path), split="all")

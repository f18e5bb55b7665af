"""Who carries a conversation on: scripts, columns, functions and policies."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from instructrec.envs.chat import ChatEnv, ChatVectorEnv
from instructrec.envs.conversation import Conversation, Reply
from instructrec.envs.tasks.base import Instruction, make_task
from instructrec.envs.users import PolicyUser, make_user
from instructrec.errors import ConfigError, DataError, PolicyError

TASK = make_task("parity")


def talk(turn=1, **columns):
    """A conversation whose last answer is 'Odd.'."""
    item = Instruction("i", "Is 3 odd?", {"reference": "odd", **columns})
    asked = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 3 odd?"})
    return Conversation(item, asked, answer="Odd.", turn=turn)


def said(user, *conversations, task=TASK):
    return [reply.text for reply in make_user(user, task).reply(conversations)]


def test_a_script_says_one_message_after_each_answer():
    assert said(["a", "b"], talk(1), talk(2), talk(3)) == ["a", "b", None]
    assert said([], talk(1)) == [None]


def test_a_column_holds_several_messages_or_one_or_none():
    task = SimpleNamespace(columns=("then",))
    conversations = [talk(2, then=["a", "b"]), talk(1, then="only"), talk(1, then=None)]
    assert said("then", *conversations, task=task) == ["b", "only", None]
    with pytest.raises(DataError, match="instruction 'i' is '7'"):
        said("then", talk(1, then=7), task=task)
    with pytest.raises(DataError, match=r"'thn', which the data lacks. Did you mean 'then'"):
        make_user("thn", task)


def test_a_function_gets_the_messages_and_the_columns():
    seen = []

    def user(messages, columns):
        seen.append((messages, columns))
        messages.clear()
        return "more"

    conversation = talk(level=3)
    assert said(user, conversation) == ["more"]
    assert len(conversation.messages) == 3  # it got a copy
    assert seen[0][1] == {"reference": "odd", "level": 3}


def test_functions_policies_and_classes_come_from_files(tmp_path):
    path = tmp_path / "people.py"
    path.write_text(
        "from types import SimpleNamespace\n"
        "def polite(messages, columns):\n"
        "    return 'Thanks for: ' + messages[-1]['content']\n"
        "class Model:\n"
        "    def respond(self, prompts, columns=None, sampling=None):\n"
        "        return SimpleNamespace(texts=['hm'] * len(prompts))\n"
        "class Broken:\n"
        "    def __init__(self, path): pass\n"
    )
    assert said(f"{path}:polite", talk()) == ["Thanks for: Odd."]
    assert said(f"{path}:Model", talk(), talk()) == ["hm", "hm"]
    with pytest.raises(ConfigError, match=r"Broken\(\) raised TypeError"):
        make_user(f"{path}:Broken", TASK)
    with pytest.raises(ConfigError, match="Did you mean 'polite'"):
        make_user(f"{path}:polit", TASK)


def test_a_policy_reads_a_transcript_and_ends_the_conversation_with_a_word():
    asked = []

    def respond(prompts, columns):
        asked.append((prompts, columns))
        return SimpleNamespace(texts=["Why?", "Bye [END]", "  "])

    user = PolicyUser(SimpleNamespace(respond=respond))
    assert said(user, talk(), talk(), talk()) == ["Why?", None, None]
    ((prompts, columns),) = asked
    assert prompts[0].endswith("\n\nUser: Is 3 odd?\nAssistant: Odd.\nUser:")
    assert "write [END]" in prompts[0] and "Be brief" not in prompts[0]
    assert columns == {"reference": ["odd"] * 3}
    with pytest.raises(PolicyError, match="3 responses to 1 conversations"):
        said(user, talk())


def test_a_user_that_breaks_its_contract_is_named():
    def raises(messages, columns):
        raise KeyError("mood")

    with pytest.raises(PolicyError, match="'raises' failed on instruction 'i': KeyError"):
        said(raises, talk())
    with pytest.raises(PolicyError, match=r"said '7' \(int\)"):
        said(lambda messages, columns: 7, talk())
    nobody = SimpleNamespace(reply=lambda conversations: [])
    env = ChatEnv("parity", user=nobody)
    env.reset(seed=0)
    with pytest.raises(PolicyError, match="0 replies to 1 conversations"):
        env.step("odd")


@pytest.fixture
def silent():
    """A user that says nothing until the test is over."""
    over = threading.Event()
    yield lambda messages, columns: over.wait(60) and None
    over.set()


def test_a_user_that_hangs_is_given_up(silent):
    policy = SimpleNamespace(respond=lambda prompts, columns: silent([], {}))
    ready = SimpleNamespace(reply=lambda conversations: silent([], {}))
    for user in (silent, policy, ready):
        env = ChatVectorEnv(
            2, task="parity", user=user, user_deadline_s=0.05, autoreset_mode="DISABLED"
        )
        env.reset(seed=0)
        late = r"gave no reply to 2 conversations: it took longer than 0.05 s\. .*user_deadline_s"
        with pytest.raises(PolicyError, match=late):
            env.step(["odd", "even"])


def test_what_a_user_says_or_raises_in_time_is_what_counts():
    def user(messages, columns):
        if messages[-1]["content"] == "quit":
            raise KeyboardInterrupt
        return f"{len(messages)} messages"

    for limit in (5.0, None):
        env = ChatEnv("parity", user=user, user_deadline_s=limit, observe="last")
        env.reset(seed=0)
        assert env.step("odd")[0] == "2 messages"
        with pytest.raises(KeyboardInterrupt):
            env.step("quit")


@pytest.mark.parametrize("limit", [0, -1.0, float("inf"), float("nan"), "soon", True])
def test_a_deadline_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match="user_deadline_s = "):
        ChatEnv("parity", user_deadline_s=limit)


def test_a_ready_user_is_taken_as_it_is():
    user = SimpleNamespace(reply=lambda conversations: [Reply("x") for _ in conversations])
    assert make_user(user, TASK) is user


@pytest.mark.parametrize("user", [None, 7, ["a", 7], {"a": 1}])
def test_what_is_no_user_is_refused(user):
    with pytest.raises(ConfigError, match="expected a list of messages"):
        make_user(user, TASK)

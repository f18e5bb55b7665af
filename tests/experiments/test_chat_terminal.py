"""Talking to policies through a pipe: commands, scores, two at once, text that cannot steer."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from instructrec.errors import ConfigError, PolicyError
from instructrec.experiments import evaluate_policy
from instructrec.experiments.chat_session import Lessons, Speaker
from instructrec.experiments.chat_terminal import Chat, ChatConfig, run_chat
from instructrec.experiments.config import EvaluateConfig
from instructrec.policies.base import Responses
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling

CONFIG = ChatConfig(max_new_tokens=12)


def talked(text: str, capsys: pytest.CaptureFixture[str], *policies: str, **options: Any) -> str:
    config = ChatConfig(**({"max_new_tokens": 12} | options))
    run_chat(policies or ("tiny@1",), config, io.StringIO(text))
    return capsys.readouterr().out


def speaker(model: str = "tiny@1", tokens: int = 12) -> Speaker:
    config = PolicyConfig(model, dtype="float32", device="cpu")
    return Speaker(model, load_policy(config, sampling=Sampling(tokens, 0.0)))


def test_an_answer_streams_and_is_what_the_policy_answers() -> None:
    talking, pieces = speaker(), []
    answer = talking.answer([{"role": "user", "content": "Hello"}], pieces.append)
    assert answer.text == talking.policy.respond(["Hello"]).texts[0] != ""
    assert len(pieces) > 3 and "".join(pieces).strip().startswith(answer.text[:3])
    assert talking.messages[-1] == {"role": "assistant", "content": answer.text}
    assert answer.tokens == 12 and answer.ended_by == "length"


class Parrot:
    """A policy that cannot tell pieces, such as one behind a server."""

    name = "parrot"

    def respond(self, prompts: Any, columns: Any = None, sampling: Any = None) -> Responses:
        return Responses([f"You said: {chat[-1]['content']}" for chat in prompts])


def test_a_policy_that_cannot_stream_tells_its_answer_at_once() -> None:
    pieces: list[str] = []
    answer = Speaker("parrot", Parrot()).answer([{"role": "user", "content": "Hi"}], pieces.append)
    assert pieces == ["You said: Hi"] == [answer.text]
    assert answer.ended_by == "eos" and answer.tokens is None


class Mute:
    """A policy that cannot answer."""

    name = "mute"

    def respond(self, prompts: Any, columns: Any = None, sampling: Any = None) -> Responses:
        raise PolicyError("no voice")


def test_policies_stay_in_step_when_one_of_them_cannot_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    speakers = [Speaker("parrot", Parrot()), Speaker("mute", Mute())]
    plan = evaluate_policy.make_plan("tiny@1", EvaluateConfig(), None)
    Chat(speakers, plan, io.StringIO("Hi\n")).run()
    assert "error: no voice" in capsys.readouterr().out
    assert [one.messages for one in speakers] == [[], []]


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on() -> None:
    talking, pieces = speaker(), []

    def impatient(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    answer = talking.answer([{"role": "user", "content": "Hello"}], impatient)
    assert answer.ended_by == "stopped" and answer.text == "".join(pieces).strip()
    again = talking.answer([{"role": "user", "content": "Go on"}], pieces.append)
    assert again.ended_by == "length" and len(talking.messages) == 4


def test_a_pipe_is_answered_until_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    out = talked("Hello\n/new\n/help\n\n/quit\nnever said\n", capsys)
    assert out.startswith("tiny@1") and "> Hello" in out and "a new conversation" in out
    assert "(cut: --max_new_tokens allows more, 12 tokens" in out and "never said" not in out
    assert out.count("/task [NAME [SPLIT]]") == 2


def test_a_task_shows_what_the_answers_earn(capsys: pytest.CaptureFixture[str]) -> None:
    out = talked("/task parity\n/task\n", capsys, "tiny@1", "tiny@2")
    assert out.count("reference  ") == 2 and "1 × exact_match" in out
    assert "tiny@1: " in out and "tiny@2: " in out
    first, second = (line for line in out.splitlines() if line.startswith("[parity-test"))
    assert first != second


class Counter:
    """A policy that tells its answer in pieces, with what could steer a terminal among them."""

    def __init__(self, word: str) -> None:
        self.name = self.word = word

    def respond(self, prompts: Any, columns: Any = None, sampling: Any = None) -> Responses:
        return Responses([f"{self.word}-one {self.word}-two [bold]\x1b[2J" for _ in prompts])


def test_two_answers_stand_beside_each_other_where_the_terminal_is_wide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "100"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    plan = evaluate_policy.make_plan("tiny@1", EvaluateConfig(), None)
    speakers = [Speaker(name, Counter(name)) for name in ("left", "right")]
    Chat(speakers, plan, io.StringIO("Hi\n")).run()
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed).splitlines()
    head, answer = (lines[max(i for i, line in enumerate(lines) if word in line)]
                    for word in ("left  ", "left-one"))  # fmt: skip
    middle = head.index("right")
    assert 45 <= middle <= 55 and 45 <= answer.index("right-one") <= middle
    assert answer.count("[bold]\\x1b[2J") == 2  # markup and control characters as they are
    assert sum("(left: " in line or "(right: " in line for line in lines) == 2


def test_two_answers_follow_each_other_where_it_is_narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "50"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    plan = evaluate_policy.make_plan("tiny@1", EvaluateConfig(), None)
    Chat([Speaker(n, Counter(n)) for n in ("left", "right")], plan, io.StringIO("Hi\n")).run()
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "-one" in line] == [
        f"{name}: {name}-one {name}-two [bold]\\x1b[2J" for name in ("left", "right")
    ]


def test_mistakes_end_a_command_and_not_the_conversation(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = talked("/tsk\n/task nothing_like_it\n//not a command\n" + "long " * 200 + "\n", capsys)
    assert "unknown command '/tsk'. Did you mean '/task'?" in out
    assert "unknown task 'nothing_like_it'" in out
    assert "do not fit" in out or "window" in out
    assert out.count("tokens/s") == 1


def test_control_characters_of_an_answer_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = talked("Hello\n", capsys, temperature=1.0, max_new_tokens=200)
    assert "\\x" in out  # the untrained model draws such bytes
    assert not set(out) & {chr(i) for i in (*range(10), *range(11, 32), 127)}


def test_policies_without_a_model_and_crowds_are_refused() -> None:
    for policies, message in ((("oracle",), "no model"), (("tiny",) * 3, "3 policies")):
        with pytest.raises(ConfigError, match=message):
            run_chat(policies, CONFIG, io.StringIO(""))


def test_lessons_come_round_and_score_like_an_evaluation() -> None:
    lessons = Lessons("parity", "test")
    first = lessons.draw()
    right = dict(lessons.scored(first, str(first.columns["reference"])))
    assert right == {"reward": "1.000", "1 × exact_match": "1.000"}
    assert dict(lessons.scored(first, "no idea"))["reward"] == "0.000"
    for _ in range(len(lessons.task) - 1):
        lessons.draw()
    assert lessons.draw().id == first.id

"""Where a conversation stands, when it ends, and what an answer in it earns."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

from gymnasium import spaces

from instructrec.envs.episode import clean_action
from instructrec.envs.spaces import UnicodeText
from instructrec.envs.tasks.base import Instruction, Message
from instructrec.errors import ConfigError, DataError, PolicyError, unknown_name
from instructrec.rewards.watchdog import within

TurnReward = Literal["last", "each"]
"""What a turn earns; see `ChatRules.turn_reward`."""
Observe = Literal["conversation", "last"]
"""What is observed: the messages so far, or the last of them as text."""
EndedBy = Literal["done", "turns", "tokens"]
"""Why a conversation is over: nothing is left to say (terminated), or a budget (truncated)."""


@dataclass(frozen=True)
class Conversation:
    """Where an episode stands."""

    instruction: Instruction
    """What it began with."""
    asked: tuple[Message, ...]
    """The messages that the policy answers, or has answered last."""
    answer: str | None = None
    """The last answer; None before the first."""
    reply: str | None = None
    """What was said to it; None before the first answer, and where nothing was left to say."""
    turn: int = 0
    """Answers so far."""
    size: int = 0
    """Tokens (or characters) of all messages."""
    ended_by: EndedBy | None = None
    """Why it is over; None while it goes on."""
    trace: tuple[Mapping[str, Any], ...] = field(default=())
    """What tools were called with and gave back, in order."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages so far."""
        said: tuple[Message, ...] = ()
        if self.answer is not None:
            said = ({"role": "assistant", "content": self.answer},)
        if self.reply is not None:
            said += ({"role": "user", "content": self.reply},)
        return self.asked + said

    @property
    def truncated(self) -> bool:
        """Whether a budget ended it."""
        return self.ended_by in ("turns", "tokens")


@dataclass(frozen=True)
class Reply:
    """What is said to an answer."""

    text: str | None
    """The next message of the user; None: nothing, the conversation is over."""
    trace: tuple[Mapping[str, Any], ...] = ()
    """Calls of tools that the answer made."""


class Partner(Protocol):
    """Who talks with the policy.

    One whose attribute ``keeps_time`` is true answers at once, or has a deadline of its own.
    """

    def reply(self, conversations: Sequence[Conversation]) -> Sequence[Reply]:
        """Replies to the last answer of each conversation; the same reply to the same one."""
        ...


@dataclass(frozen=True)
class ChatRules:
    """When a conversation ends, and what an answer earns.

    Raises:
        ConfigError: A setting is out of its range.
    """

    max_chars: int
    """Longest reply; the rest is cut off."""
    max_turns: int = 8
    """Answers after which an episode is truncated."""
    max_tokens: int | None = None
    """Size of a conversation from which on it is truncated; None: no such limit."""
    count_tokens: Callable[[str], int] = len
    """Size of a text; characters unless a tokenizer counts."""
    turn_reward: TurnReward = "last"
    """``last``: only the last answer earns its reward. ``each``: every answer earns its own."""
    turn_columns: tuple[str, ...] = ()
    """Columns that hold a list with one value for each answer, e.g. its reference."""
    user_deadline_s: float | None = 600.0
    """Longest time, in seconds, that a partner may take for its replies; None: no such limit."""

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_tokens"):
            value = getattr(self, name)
            if value is None and name == "max_tokens":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} = {value!r}: expected an integer >= 1.")
        if self.turn_reward not in get_args(TurnReward):
            known = get_args(TurnReward)
            raise ConfigError(unknown_name("turn_reward", str(self.turn_reward), known))
        limit = self.user_deadline_s
        is_number = isinstance(limit, int | float) and not isinstance(limit, bool)
        if limit is not None and not (is_number and 0 < limit < math.inf):
            raise ConfigError(
                f"user_deadline_s = {limit!r}: expected seconds, above 0, or null for no limit."
            )
        if not callable(self.count_tokens):
            raise ConfigError(
                f"count_tokens = {self.count_tokens!r}: expected a function from a text to its "
                "number of tokens, 'module:function' or 'file.py:function'."
            )

    def start(self, instruction: Instruction) -> Conversation:
        """Returns the conversation that an instruction begins."""
        prompt = instruction.prompt
        asked = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        size = sum(self.count_tokens(message["content"]) for message in asked)
        return Conversation(instruction, asked, size=size)

    def hear(
        self, partner: Partner, before: Sequence[Conversation], answers: Sequence[str]
    ) -> list[Conversation]:
        """Carries conversations on by an answer and the reply to it.

        Args:
            partner: Who replies, to all of them together.
            before: Where they stood.
            answers: One for each of them.

        Raises:
            PolicyError: The partner replied to another number of conversations, or with what is
                no text, or not in time.
        """
        heard = [
            replace(c, asked=c.messages, answer=answer, reply=None, turn=c.turn + 1)
            for c, answer in zip(before, answers, strict=True)
        ]
        replies = self._replies(partner, heard) if heard else []
        if len(replies) != len(heard):
            raise PolicyError(
                f"{partner!r} gave {len(replies)} replies to {len(heard)} conversations: expected "
                "one each."
            )
        return [self._after(c, reply) for c, reply in zip(heard, replies, strict=True)]

    def _replies(self, partner: Partner, heard: Sequence[Conversation]) -> Sequence[Reply]:
        """Asks a partner, and waits for it no longer than it may take."""
        limit = self.user_deadline_s
        if limit is None or getattr(partner, "keeps_time", False):
            return partner.reply(heard)
        try:
            return within(limit, lambda: partner.reply(heard))
        except TimeoutError as error:
            raise PolicyError(
                f"{partner!r} gave no reply to {len(heard)} conversations: {error}. Mend it, or "
                "raise user_deadline_s where it needs that long."
            ) from error

    def _after(self, heard: Conversation, reply: Reply) -> Conversation:
        trace = heard.trace + reply.trace
        if reply.text is None:
            return replace(heard, trace=trace, ended_by="done")
        text = clean_action(reply.text, self.max_chars)[0]
        size = heard.size + self.count_tokens(heard.answer or "") + self.count_tokens(text)
        ended_by: EndedBy | None = None
        if heard.turn >= self.max_turns:
            ended_by = "turns"
        elif self.max_tokens is not None and size >= self.max_tokens:
            ended_by = "tokens"
        return replace(heard, trace=trace, reply=text, size=size, ended_by=ended_by)

    def context(self, heard: Conversation) -> tuple[Instruction, dict[str, Any]]:
        """What an answer is scored as an answer to, and what else rewards are told.

        Raises:
            DataError: A column of ``turn_columns`` holds no list.
        """
        instruction, turn = heard.instruction, heard.turn
        columns = {name: self._of_turn(instruction, name, turn) for name in self.turn_columns}
        prompt = instruction.prompt if turn == 1 else heard.asked
        asked = replace(instruction, prompt=prompt, columns={**instruction.columns, **columns})
        return asked, {
            "turn": turn,
            "is_last": heard.ended_by is not None,
            "conversation": plain_messages(heard.messages),
            "trace": plain_trace(heard.trace),
        }

    def judge(
        self, heard: Conversation, total: float, *, failed: bool = False
    ) -> tuple[float, str | None, dict[str, Any]]:
        """Rewards an answer; see `InstructionEnv.judge`.

        Args:
            heard: Where the episode stands, the reply to the answer included.
            total: The weighted reward of the answer; NaN where there is none.
            failed: Whether it failed, which ends the episode.
        """
        info: dict[str, Any] = {"turn": heard.turn}
        if heard.ended_by is not None:
            info["ended_by"] = heard.ended_by
        if total == total:
            info["score"] = total
        if failed:
            return total, None, info
        if heard.ended_by is not None:
            return total, heard.reply, info
        pays = self.turn_reward == "each" and total == total
        return total if pays else 0.0, heard.reply, info

    @staticmethod
    def _of_turn(instruction: Instruction, name: str, turn: int) -> Any:
        """The value of a turn, counted from 1; None behind the last one."""
        values = instruction.columns.get(name)
        if values is None:
            return None
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise DataError(
                f"the column {name!r} of instruction {instruction.id!r} is {str(values)[:80]!r}; "
                "turn_columns need a list with one value for each answer."
            )
        return values[turn - 1] if turn <= len(values) else None


def conversation_space(max_chars: int) -> spaces.Sequence:
    """The space of conversations: tuples of messages with ``role`` and ``content``."""
    text = UnicodeText(max_chars)
    return spaces.Sequence(spaces.Dict({"content": text, "role": text}))


def plain_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages that nobody else holds, with role and content alone."""
    return [{"content": m["content"], "role": m["role"]} for m in messages]


def plain_trace(trace: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Calls that nobody else holds."""
    return [copy.deepcopy(dict(call)) for call in trace]


def check_observe(observe: str) -> None:
    """Raises ConfigError when there is no such kind of observation."""
    if observe not in get_args(Observe):
        raise ConfigError(unknown_name("observe", str(observe), get_args(Observe)))

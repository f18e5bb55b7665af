"""Simulated users: who replies to the policy's answers, and when they have nothing more to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from instructrec.envs.conversation import Conversation, Partner, Reply, plain_messages
from instructrec.envs.episode import release
from instructrec.envs.tasks.base import Task
from instructrec.errors import ConfigError, DataError, InstructRecError, PolicyError, did_you_mean
from instructrec.rewards.loading import load_object

DEFAULT_USER = ("Are you sure?",)
"""What is said to every first answer unless a user is given; then the conversation is over."""

PERSONA = (
    "You are the user in the conversation below. Write only the user's next message. When the user "
    "has nothing more to say, write {end}."
)
"""What a policy is told that plays the user."""

UserFunction = Callable[[list[dict[str, str]], dict[str, Any]], str | None]
"""A user as a function: from the messages so far and the instruction's columns to the next message,
or None when there is none. The same arguments should give the same message, so that runs repeat."""
UserLike = str | Sequence[str] | UserFunction | Partner | Any
"""A user, or what `make_user` makes one from."""


class ScriptedUser:
    """Says the same messages in every conversation.

    Args:
        messages: One after each answer.
    """

    keeps_time = True

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = tuple(messages)

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """The next message of the script; nothing behind its end."""
        return [_line(self.messages, c.turn) for c in conversations]


class ColumnUser:
    """Says what a column of the instruction holds: a list of messages, one text, or nothing.

    Args:
        column: The column.
    """

    keeps_time = True

    def __init__(self, column: str) -> None:
        self.column = column

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """The next message of the column.

        Raises:
            DataError: It holds something else.
        """
        return [_line(self._script(c), c.turn) for c in conversations]

    def _script(self, conversation: Conversation) -> Sequence[str]:
        item = conversation.instruction
        value = item.columns.get(self.column)
        script = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(script, Sequence) or not all(isinstance(m, str) for m in script):
            raise DataError(
                f"the column {self.column!r} of instruction {item.id!r} is {str(value)[:80]!r}; "
                "expected the user's messages: a list of texts, one text, or nothing."
            )
        return script


class FunctionUser:
    """Asks a function for the next message.

    Args:
        function: Called as ``function(messages, columns)``; returns a text, or None for the end.
        name: What it is called in errors.
    """

    def __init__(self, function: UserFunction, name: str | None = None) -> None:
        self.function = function
        self.name = name or getattr(function, "__name__", repr(function))

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """What the function says.

        Raises:
            PolicyError: It raised, or returned what is neither a text nor None.
        """
        return [Reply(self._call(c)) for c in conversations]

    def _call(self, conversation: Conversation) -> str | None:
        columns = dict(conversation.instruction.columns)
        try:
            said = self.function(plain_messages(conversation.messages), columns)
        except InstructRecError:
            raise
        except Exception as error:
            raise PolicyError(
                f"the simulated user {self.name!r} failed on instruction "
                f"{conversation.instruction.id!r}: {type(error).__name__}: {error}. Mend it."
            ) from error
        if said is not None and not isinstance(said, str):
            raise PolicyError(
                f"the simulated user {self.name!r} said {str(said)[:80]!r} "
                f"({type(said).__name__}); expected a text, or None when it has no more to say."
            )
        return said


class PolicyUser:
    """Has another policy play the user, asked once for all conversations of a step.

    It gets one message: what it is to do, and the conversation as a transcript.

    Args:
        policy: Anything with ``respond(prompts, columns)`` whose result has ``texts``.
        persona: What it is told; ``{end}`` stands for the next argument.
        end: A message that contains it ends the conversation.
    """

    def __init__(self, policy: Any, *, persona: str = PERSONA, end: str = "[END]") -> None:
        self.policy, self.end = policy, end
        self.persona = persona.replace("{end}", end)

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """What the policy says; an empty message ends the conversation too.

        Raises:
            PolicyError: It gave another number of responses than it was asked for.
        """
        prompts = [self._prompt(c) for c in conversations]
        names = {name for c in conversations for name in c.instruction.columns}
        columns = {n: [c.instruction.columns.get(n) for c in conversations] for n in names}
        texts = list(self.policy.respond(prompts, columns).texts)
        if len(texts) != len(prompts):
            raise PolicyError(
                f"the simulated user gave {len(texts)} responses to {len(prompts)} conversations: "
                "respond() must answer each once."
            )
        over = [self.end in text or not text.strip() for text in texts]
        return [Reply(None if o else text) for text, o in zip(texts, over, strict=True)]

    def _prompt(self, conversation: Conversation) -> str:
        spoken = {"user": "User", "assistant": "Assistant"}
        lines = [
            f"{spoken[m['role']]}: {m['content']}"
            for m in conversation.messages
            if m["role"] in spoken
        ]
        return "\n".join([self.persona, "", *lines, "User:"])


def make_user(user: UserLike, task: Task) -> Partner:
    """Makes the simulated user of a task.

    Args:
        user: A list of messages; the name of a column with such a list; ``module:attr`` or
            ``file.py:attr`` (a function, a policy, or a class of either); a function; a policy
            (anything with ``respond``); or a ready user (anything with ``reply``).
        task: Whose columns it may read.

    Raises:
        ConfigError: It is none of these, or cannot be imported.
        DataError: The task has no such column.
    """
    user = release(user)
    name = None
    if isinstance(user, str):
        if ":" not in user:
            return ColumnUser(_checked_column(user, task.columns))
        user, name = _loaded(user), user
    if isinstance(user, Sequence) and not isinstance(user, str):
        if all(isinstance(message, str) for message in user):
            return ScriptedUser(user)
    elif hasattr(user, "reply"):
        return user
    elif hasattr(user, "respond"):
        return PolicyUser(user)
    elif callable(user):
        return FunctionUser(user, name)
    raise ConfigError(
        f"user = {user!r}: expected a list of messages, the name of a column, a function, "
        "'module:attr', 'file.py:attr' or a policy."
    )


def _loaded(spec: str) -> Any:
    found = load_object(spec)
    if not isinstance(found, type):
        return found
    try:
        return found()
    except Exception as error:
        raise ConfigError(
            f"user = {spec!r}: {found.__name__}() raised {type(error).__name__}: {error}. A class "
            "is made without arguments; give a ready object or a function otherwise."
        ) from error


def _checked_column(name: str, columns: Sequence[str]) -> str:
    if name not in columns:
        raise DataError(
            f"the user's messages are to come from the column {name!r}, which the data lacks."
            f"{did_you_mean(name, columns)} Columns: {', '.join(sorted(columns)) or 'none'}. A "
            "function is given as 'module:function' or 'file.py:function'."
        )
    return name


def _line(script: Sequence[str], turn: int) -> Reply:
    return Reply(script[turn - 1] if turn <= len(script) else None)

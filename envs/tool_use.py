"""Answers with tools: the policy may call functions and read their results before it answers."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

from instructrec.envs.builtin_tools import ToolLike, make_tools
from instructrec.envs.chat import ChatEnv, ChatVectorEnv
from instructrec.envs.conversation import Conversation, Reply
from instructrec.envs.episode import TaskLike, release, resolve_task
from instructrec.envs.tasks.base import Instruction, Task, default_rewards, labels_of
from instructrec.envs.tool_calls import Call, clean, parse_calls
from instructrec.envs.tools import Tool
from instructrec.errors import ConfigError, PolicyError, unknown_name
from instructrec.rewards.loading import load_object

Describe = Literal["signatures", "schemas", "none"]
"""How the instruction tells of the tools; see `ToolEnv`."""
Parse = Callable[[str], Sequence[Call]]
"""Finds the calls in an answer."""

RESULT, ERROR = "Result: {}", "Error: {}"
"""What is said to a call, a line each."""
SIGNATURES = (
    "You can use tools. Write <tool>name(arguments)</tool> and wait for the result.\n{}\n\n"
)
"""What stands before the instruction, with a line for each tool."""
SCHEMAS = (
    'You can use tools. Write <tool_call>{{"name": ..., "arguments": {{...}}}}</tool_call> and '
    "wait for the result.\n{}\n\n"
)
"""The same with JSON schemas."""


class Toolbox:
    """Replies to an answer with what the tools that it calls give back.

    An answer without a call is the final one. A call that cannot be made is told to the policy and
    never raises.

    Args:
        tools: Name -> tool.
        deadline_s: Longest time of one call, in seconds.
        max_result_chars: Longest result.
        max_calls: Most calls of one answer.
        parse: Finds the calls.

    Raises:
        ConfigError: A limit is out of its range.
    """

    keeps_time = True

    def __init__(
        self,
        tools: Mapping[str, Tool],
        *,
        deadline_s: float = 2.0,
        max_result_chars: int = 500,
        max_calls: int = 4,
        parse: Parse = parse_calls,
    ) -> None:
        _check_limit("deadline_s", deadline_s, (int, float))
        _check_limit("max_result_chars", max_result_chars, (int,))
        _check_limit("max_calls", max_calls, (int,))
        self.tools = dict(tools)
        self.deadline_s, self.max_result_chars = deadline_s, max_result_chars
        self.max_calls, self.parse = max_calls, parse

    def reply(self, conversations: Sequence[Conversation]) -> list[Reply]:
        """Results of the calls in each last answer, in order; nothing to an answer without any.

        Raises:
            PolicyError: A ``parse`` of one's own raised.
        """
        return [self._reply(c) for c in conversations]

    def _reply(self, conversation: Conversation) -> Reply:
        calls = self._calls(conversation.answer or "")
        if not calls:
            return Reply(None)
        trace = [self._made(call, conversation.turn) for call in calls[: self.max_calls]]
        lines = [
            ERROR.format(made["error"]) if made["result"] is None else RESULT.format(made["result"])
            for made in trace
        ]
        if len(calls) > self.max_calls:
            lines.append(ERROR.format(f"only {self.max_calls} calls are made in one answer"))
        return Reply("\n".join(lines), tuple(trace))

    def _calls(self, answer: str) -> Sequence[Call]:
        if self.parse is parse_calls:
            return parse_calls(answer)
        try:
            calls = list(self.parse(answer))
            for call in calls:
                if not isinstance(call, Call) or not isinstance(call.arguments, str | Mapping):
                    raise TypeError(f"it returned {call!r}")
            return calls
        except Exception as error:
            raise PolicyError(
                f"parse failed on the answer {answer[:80]!r}: {type(error).__name__}: {error}. It "
                "must return a list of Call for any text."
            ) from error

    def _made(self, call: Call, turn: int) -> dict[str, Any]:
        """Makes a call; returns what the trace holds of it."""
        made: dict[str, Any] = {"turn": turn, "tool": call.tool, "arguments": ""}
        made |= {"result": None, "error": None}
        try:
            made["arguments"] = clean(call.arguments)
            if call.error:
                raise ValueError(call.error)
            if call.tool not in self.tools:
                raise ValueError(unknown_name("tool", call.tool[:80], self.tools))
            tool = self.tools[call.tool]
            made["arguments"] = tool.bind(made["arguments"])
            made["result"] = tool.call(made["arguments"], self.deadline_s, self.max_result_chars)
        except (ValueError, RecursionError) as error:
            made["error"] = str(error)[: self.max_result_chars]
        return made

    def describe(self, how: Describe) -> str:
        """What stands before an instruction: the tools, and how they are called.

        Raises:
            ConfigError: There is no such way, or a tool has no schema.
        """
        if how not in get_args(Describe):
            raise ConfigError(unknown_name("describe", str(how), get_args(Describe)))
        if how == "none":
            return ""
        tools = self.tools.values()
        if how == "signatures":
            return SIGNATURES.format("\n".join(f"{t.signature}: {t.description}" for t in tools))
        return SCHEMAS.format("\n".join(json.dumps(tool.schema) for tool in tools))


class DescribedTask:
    """A task with a text before each instruction: in front of its first message.

    Args:
        task: The task.
        text: The text.
    """

    def __init__(self, task: Task, text: str) -> None:
        self._task, self._text = task, text
        self.name, self.split, self.columns = task.name, task.split, task.columns
        self.rewards = default_rewards(task)

    def __len__(self) -> int:
        return len(self._task)

    def __getitem__(self, index: int) -> Instruction:
        item = self._task[index]
        if isinstance(item.prompt, str):
            return replace(item, prompt=self._text + item.prompt)
        first, *others = item.prompt
        described = {**first, "content": self._text + first["content"]}
        return replace(item, prompt=(described, *others))

    def labels(self, index: int) -> Mapping[str, Any]:
        """Columns of an item as far as the task knows them without making it."""
        return labels_of(self._task, index)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the task's own and the text."""
        return hashlib.sha256(f"{self._task.fingerprint}\n{self._text}".encode()).hexdigest()


class ToolEnv(ChatEnv):
    """An episode is an instruction, calls of tools with their results, and an answer.

    The tools stand before the instruction. An answer that calls some (`tool_calls` says how calls
    are written) gets their results as the next message; one that calls none is the final answer and
    ends the episode ``terminated``; after ``max_turns`` answers with calls it is ``truncated``. A
    call that cannot be made gets an error to read.

    Rewards may ask for ``trace``, the calls so far: dicts with ``turn``, ``tool``, ``arguments``,
    ``result`` (None if it failed) and ``error`` (None if not). ``info`` holds, beside what
    `ChatEnv` tells, ``num_calls`` and ``num_errors`` so far.

    Args:
        task: As for `InstructionEnv`.
        tools: See `make_tools`.
        describe: What stands before the instruction: ``signatures``, JSON ``schemas`` (which needs
            transformers), or ``none``.
        deadline_s: Longest time of one call, in seconds.
        max_result_chars: Longest result of one call.
        max_calls: Most calls of one answer.
        parse: Finds the calls in an answer: a function, ``module:function`` or ``file.py:function``
            that returns a list of `Call`; None reads the two ways of `parse_calls`.
        max_turns: Most answers in one episode.
        options: The other arguments of `ChatEnv`, but for those of the user.

    Raises:
        ConfigError: A tool or a setting cannot be used.
        DataError: The task's data cannot be used or lacks a column that is needed.
    """

    def __init__(
        self,
        task: TaskLike = "arithmetic",
        *,
        tools: str | Sequence[ToolLike] = ("calculator",),
        describe: Describe = "signatures",
        deadline_s: float = 2.0,
        max_result_chars: int = 500,
        max_calls: int = 4,
        parse: str | Parse | None = None,
        max_turns: int = 4,
        **options: Any,
    ) -> None:
        toolbox = Toolbox(
            make_tools(tools),
            deadline_s=deadline_s,
            max_result_chars=max_result_chars,
            max_calls=max_calls,
            parse=_parser(parse),
        )
        described = _described(task, toolbox.describe(describe), options)
        super().__init__(described, user=toolbox, max_turns=max_turns, **options)

    def judge(self, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Rewards the answer; see `ChatRules.judge`."""
        reward, message, info = super().judge(text, total)
        return reward, message, info | _counts(self.conversation)


class ToolVectorEnv(ChatVectorEnv):
    """B copies of `ToolEnv` that share task, tools and rewards.

    Copy i behaves as a `ToolEnv` seeded with ``seed + i``; all answers are scored with one call,
    the tools are called one after the other.

    Args:
        num_envs: B, the number of copies.
        task: As for `ToolEnv`; likewise the others down to max_turns.
        tools: See there.
        describe: See there.
        deadline_s: See there.
        max_result_chars: See there.
        max_calls: See there.
        parse: See there.
        max_turns: See there.
        options: The other arguments of `ChatVectorEnv`, but for those of the user.

    Raises:
        ConfigError: A tool or a setting cannot be used.
        DataError: The task's data cannot be used or lacks a column that is needed.
    """

    counted: ClassVar[tuple[str, ...]] = ("num_calls", "num_errors")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: TaskLike = "arithmetic",
        tools: str | Sequence[ToolLike] = ("calculator",),
        describe: Describe = "signatures",
        deadline_s: float = 2.0,
        max_result_chars: int = 500,
        max_calls: int = 4,
        parse: str | Parse | None = None,
        max_turns: int = 4,
        **options: Any,
    ) -> None:
        toolbox = Toolbox(
            make_tools(tools),
            deadline_s=deadline_s,
            max_result_chars=max_result_chars,
            max_calls=max_calls,
            parse=_parser(parse),
        )
        task = _described(task, toolbox.describe(describe), options)
        super().__init__(num_envs, task=task, user=toolbox, max_turns=max_turns, **options)

    def judge(self, i: int, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Rewards the answer; see `ChatRules.judge`."""
        reward, message, info = super().judge(i, text, total)
        return reward, message, info | _counts(self.conversation(i))


def _described(task: TaskLike, text: str, options: dict[str, Any]) -> Task:
    """The task with the text before its instructions; takes what made the task out of options."""
    made = resolve_task(task, options.pop("split", None), options.pop("task_options", None))
    return DescribedTask(made, text) if text else made


def _check_limit(name: str, value: Any, types: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, types) or not 0 < value < math.inf:
        kind = "a number" if float in types else "an integer"
        raise ConfigError(f"{name} = {value!r}: expected {kind} above 0.")


def _parser(given: str | Parse | None) -> Parse:
    given = release(given)
    if isinstance(given, str):
        given = load_object(given)
    if given is not None and not callable(given):
        raise ConfigError(f"parse = {given!r}: expected a function from a text to a list of Call.")
    return given or parse_calls


def _counts(conversation: Conversation) -> dict[str, int]:
    errors = sum(call["error"] is not None for call in conversation.trace)
    return {"num_calls": len(conversation.trace), "num_errors": errors}

"""Conversations: the policy answers a simulated user until that is content or a budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from gymnasium.vector.utils import batch_space

from instructrec.envs.conversation import (
    ChatRules,
    Conversation,
    Observe,
    Partner,
    TurnReward,
    check_observe,
    conversation_space,
    plain_messages,
)
from instructrec.envs.episode import TaskLike, release
from instructrec.envs.instruction import InstructionEnv
from instructrec.envs.tasks.base import Instruction, Task
from instructrec.envs.users import DEFAULT_USER, UserLike, make_user
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import ConfigError, DataError, did_you_mean

TOLD = ("turn", "is_last", "conversation", "trace")
"""What rewards are told beside the task's columns, one value for each answer: its number from 1 on,
whether the episode ends with it, all messages so far (the answer and the reply to it included), and
the calls of tools so far."""


class ChatEnv(InstructionEnv):
    """An episode is a conversation that an instruction begins and a simulated user carries on.

    When the user has nothing more to say the episode ends ``terminated``; when ``max_turns``
    answers were given or the conversation has ``max_tokens`` and the user would go on, it ends
    ``truncated``, and the last observation holds what the user says. ``info`` holds, beside what
    `InstructionEnv` tells of each answer, ``turn`` (answers so far), ``score`` (the reward of this
    answer, where there is one) and at the end ``ended_by``: ``done``, ``turns`` or ``tokens``.

    Every answer is scored, with the conversation before it as the prompt; rewards are told more of
    the episode (`TOLD`). An answer to which no reward applies earns 0, but the last one needs one.

    Args:
        task: As for `InstructionEnv`.
        user: Who replies: a list of messages, the name of a column with such lists, a function,
            ``module:attr``, ``file.py:attr``, or another policy; see `make_user`.
        observe: ``conversation``: all messages so far, a tuple of dicts with role and content.
            ``last``: the last message as text.
        max_turns: Most answers in one episode.
        max_tokens: Size of a conversation from which on it is truncated; None is no limit.
        count_tokens: Size of a text: a function, or what names a tokenizer or a function, see
            `token_counter`; None counts characters.
        turn_reward: ``last``: only the last answer earns its reward. ``each``: every answer does.
        turn_columns: Columns that hold a list with one value for each answer, e.g. its reference.
        user_deadline_s: Seconds that the user may take in a step (a function, a policy or what has
            ``reply``); one that takes longer is a `PolicyError`. None: as long as it likes.
        options: split, reward, task_options, max_chars and render_mode, as for `InstructionEnv`.

    Raises:
        ConfigError: A setting is out of its range, or one that `InstructionEnv` refuses.
        DataError: The task's data cannot be used or lacks a column that is needed.
    """

    told: ClassVar[tuple[str, ...]] = TOLD

    def __init__(
        self,
        task: TaskLike = "closed_answers",
        *,
        user: UserLike = DEFAULT_USER,
        observe: Observe = "conversation",
        max_turns: int = 8,
        max_tokens: int | None = None,
        count_tokens: str | Callable[[str], int] | None = None,
        turn_reward: TurnReward = "last",
        turn_columns: Sequence[str] = (),
        user_deadline_s: float | None = 600.0,
        **options: Any,
    ) -> None:
        super().__init__(task, **options)
        self.partner: Partner = make_user(user, self.task)
        self.rules = ChatRules(
            max_chars=self._max_chars,
            max_turns=max_turns,
            max_tokens=max_tokens,
            count_tokens=_counter(count_tokens),
            turn_reward=turn_reward,
            turn_columns=_checked_columns(turn_columns, self.task),
            user_deadline_s=user_deadline_s,
        )
        check_observe(observe)
        self._whole = observe == "conversation"
        if self._whole:
            self.observation_space = conversation_space(self._max_chars)  # type: ignore[assignment]
        self._state: Conversation | None = None

    @property
    def conversation(self) -> Conversation:
        """Where the episode stands."""
        if self._state is None:
            self._state = self.rules.start(self.instruction)
        return self._state

    def begin(self) -> None:
        """Forgets the conversation of the episode before."""
        self._state = None

    def hear(self, text: str) -> None:
        """Has the user reply."""
        (self._state,) = self.rules.hear(self.partner, [self.conversation], [text])

    def context(self) -> tuple[Instruction, dict[str, Any]]:
        """The conversation before the answer, and `TOLD`."""
        return self.rules.context(self.conversation)

    def judge(self, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Rewards the answer; see `ChatRules.judge`."""
        return self.rules.judge(self.conversation, total)

    def cut(self) -> bool:
        """Whether a budget ended the conversation."""
        return self.conversation.truncated

    def view(self, message: str) -> Any:
        """The conversation so far, or the last message."""
        return tuple(plain_messages(self.conversation.messages)) if self._whole else message


class ChatVectorEnv(InstructionVectorEnv):
    """B copies of `ChatEnv` that share task, user and rewards.

    Copy i behaves as a `ChatEnv` seeded with ``seed + i``; in each step the user is asked once for
    all conversations, and all answers are scored with one call. A failed reward ends the episode
    with NaN. With DISABLED, ``step(..., active=mask)`` steps only the copies that go on.

    Args:
        num_envs: B, the number of copies.
        task: As for `ChatEnv`; likewise the others down to user_deadline_s.
        user: See there.
        observe: See there.
        max_turns: See there.
        max_tokens: See there.
        count_tokens: See there.
        turn_reward: See there.
        turn_columns: See there.
        user_deadline_s: See there.
        options: split, reward, task_options, max_chars and autoreset_mode, as for
            `InstructionVectorEnv`.

    Raises:
        ConfigError: A setting is out of its range, or one that `InstructionVectorEnv` refuses.
        DataError: The task's data cannot be used or lacks a column that is needed.
    """

    told: ClassVar[tuple[str, ...]] = TOLD

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: TaskLike = "closed_answers",
        user: UserLike = DEFAULT_USER,
        observe: Observe = "conversation",
        max_turns: int = 8,
        max_tokens: int | None = None,
        count_tokens: str | Callable[[str], int] | None = None,
        turn_reward: TurnReward = "last",
        turn_columns: Sequence[str] = (),
        user_deadline_s: float | None = 600.0,
        **options: Any,
    ) -> None:
        super().__init__(num_envs, task=task, **options)
        self.partner: Partner = make_user(user, self.task)
        self.rules = ChatRules(
            max_chars=self._max_chars,
            max_turns=max_turns,
            max_tokens=max_tokens,
            count_tokens=_counter(count_tokens),
            turn_reward=turn_reward,
            turn_columns=_checked_columns(turn_columns, self.task),
            user_deadline_s=user_deadline_s,
        )
        check_observe(observe)
        self.max_turns = max_turns
        self._whole = observe == "conversation"
        if self._whole:
            single = conversation_space(self._max_chars)
            self.single_observation_space = single
            self.observation_space = batch_space(single, num_envs)
        self._states: list[Conversation | None] = [None] * num_envs

    def conversation(self, i: int) -> Conversation:
        """Where the episode of copy i stands."""
        state = self._states[i]
        if state is None:
            state = self._states[i] = self.rules.start(super().context(i)[0])
        return state

    def begin(self, i: int) -> None:
        """Forgets the conversation of the episode before."""
        self._states[i] = None

    def hear(self, rows: Sequence[int], texts: Sequence[str]) -> None:
        """Has the user reply to all of them."""
        before = [self.conversation(i) for i in rows]
        for i, after in zip(rows, self.rules.hear(self.partner, before, texts), strict=True):
            self._states[i] = after

    def context(self, i: int) -> tuple[Instruction, dict[str, Any]]:
        """The conversation before the answer, and `TOLD`."""
        return self.rules.context(self.conversation(i))

    def judge(self, i: int, text: str, total: float) -> tuple[float, str | None, dict[str, Any]]:
        """Rewards the answer; see `ChatRules.judge`."""
        failed = self._statuses[i] == "failed"
        return self.rules.judge(self.conversation(i), total, failed=failed)

    def cut(self, i: int) -> bool:
        """Whether a budget ended the conversation."""
        return self.conversation(i).truncated

    def view(self, i: int, message: str) -> Any:
        """The conversation so far, or the last message."""
        if not self._whole:
            return message
        shown = self._instructions[i] is not None
        return tuple(plain_messages(self.conversation(i).messages)) if shown else ()


def _counter(given: str | Callable[[str], int] | None) -> Callable[[str], int]:
    """What counts the tokens of a text."""
    given = release(given)
    if isinstance(given, str):
        from instructrec.envs.tasks.filters import token_counter

        return token_counter(given)
    return len if given is None else given


def _checked_columns(names: Sequence[str], task: Task) -> tuple[str, ...]:
    if isinstance(names, str):
        raise ConfigError(f"turn_columns = {names!r}: expected a list of names of columns.")
    for name in names:
        if name not in task.columns:
            raise DataError(
                f"turn_columns names the column {name!r}, which the data lacks."
                f"{did_you_mean(name, task.columns)} Columns: {', '.join(task.columns) or 'none'}."
            )
    return tuple(names)

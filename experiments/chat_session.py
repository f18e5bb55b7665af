"""A conversation with one or two policies, and what their answers earn."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from instructrec.envs.tasks.base import Instruction, Task, default_rewards, make_task
from instructrec.errors import ConfigError
from instructrec.policies.base import Message, Policy
from instructrec.rewards.combine import CombinedReward, make_rewards

Tell = Callable[[str], None]
"""Receives a piece of an answer as it is drawn."""


@dataclass
class Answer:
    """What a policy said."""

    text: str
    """The answer, or what there is of one that was stopped."""
    ended_by: str
    """eos, stop_string, length, or stopped (by the person)."""
    seconds: float
    """Wall time."""
    tokens: int | None = None
    """Tokens, the end token included; None where nobody knows."""


@dataclass
class Speaker:
    """A policy and its side of the conversation."""

    name: str
    """What it is called."""
    policy: Policy
    """Who answers; one that cannot tell pieces tells an answer when it is whole."""
    messages: list[Message] = field(default_factory=list)
    """The conversation so far."""

    def answer(self, said: list[Message], tell: Tell) -> Answer:
        """Answers; both sides are added to the conversation.

        Args:
            said: New messages, the last one the user's.
            tell: Receives the pieces of the answer. Ctrl-C stops it: what there is counts.

        Raises:
            PolicyError: The conversation no longer fits into the window, or the chat template
                refuses it; the conversation stays as it was.
        """
        asked, pieces = [*self.messages, *said], []

        def listen(piece: str) -> None:
            pieces.append(piece)
            tell(piece)

        start = time.perf_counter()
        streaming: Any = getattr(self.policy, "listening", None)
        try:
            with nullcontext() if streaming is None else streaming(listen):
                found = self.policy.respond([asked])
            if streaming is None:
                tell(found.texts[0])
            tokens = len(found.response_ids[0]) if found.response_ids else None
            ended_by = found.stop_reasons[0].value if found.stop_reasons else "eos"
            answer = Answer(found.texts[0], ended_by, 0.0, tokens)
        except KeyboardInterrupt:
            answer = Answer("".join(pieces).strip(), "stopped", 0.0)
        answer.seconds = time.perf_counter() - start
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        return answer


class Lessons:
    """Instructions of a task, one after the other, and what answers to them earn.

    Args:
        task: Name, data file, ``module:factory`` or ``file.py:factory``.
        split: train, validation or test.
        options: Options of the task.
        rewards: As in a configuration; None takes the task's own.

    Raises:
        ConfigError: The task, an option or a reward is unknown.
        DataError: The task is empty, or lacks a column that a reward needs.
    """

    def __init__(
        self, task: str, split: str, options: dict[str, Any] | None = None, rewards: Any = None
    ) -> None:
        self.task: Task = make_task(task, split=split, **(options or {}))
        if not len(self.task):
            raise ConfigError(f"the {split} split of {task!r} is empty: expected instructions.")
        value = default_rewards(self.task) if rewards is None else rewards
        self.reward: CombinedReward = make_rewards(value)
        self.reward.check_columns(self.task.columns)
        self._next = 0

    def draw(self) -> Instruction:
        """Returns the next instruction; behind the last one comes the first."""
        item = self.task[self._next % len(self.task)]
        self._next += 1
        return item

    def scored(self, item: Instruction, text: str) -> list[tuple[str, str]]:
        """What an answer earns: the total, then each reward with its weight.

        Raises:
            RewardError: A reward broke its contract.
        """
        columns = {name: [value] for name, value in item.columns.items()}
        batch = self.reward.score([item.prompt], [text], columns)
        total = float(batch.total[0])
        rows = [("reward", f"{total:.3f}" if total == total else "none applies")]
        for name, scores in batch.parts.items():
            weight = self.reward.weights.get(name)
            label = name if weight is None else f"{weight:g} × {name}"
            status, score = batch.status[name][0], scores[0]
            shown = {"not_applicable": "does not apply"}.get(status.value, status.value)
            rows.append((label, f"{score:.3f}" if status.value == "scored" else shown))
        return rows

    def close(self) -> None:
        """Ends what the rewards keep running."""
        self.reward.close()

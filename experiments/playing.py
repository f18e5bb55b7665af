"""The episodes of a run: which environment plays them, and what an evaluation keeps of each."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from instructrec.choices import check_choices
from instructrec.envs.chat import ChatVectorEnv
from instructrec.envs.episode import LABELS
from instructrec.envs.refine import RefineVectorEnv, TurnReward
from instructrec.envs.spaces import DEFAULT_MAX_LENGTH
from instructrec.envs.tasks.base import Instruction, Task
from instructrec.envs.tool_use import ToolVectorEnv
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import ConfigError, unknown_name
from instructrec.experiments.jsonl import Row, plain
from instructrec.policies.base import Policy, Prompt
from instructrec.policies.config import Sampling
from instructrec.rewards.base import RewardBatch
from instructrec.rewards.combine import CombinedReward
from instructrec.rl.turns import Episode, Turn, play

EnvName = Literal["instruction", "refine", "chat", "tool"]
"""What an episode is: one answer, several tries at it, a conversation, or the use of tools."""
_KINDS: Mapping[str, Any] = {
    "instruction": InstructionVectorEnv,
    "refine": RefineVectorEnv,
    "chat": ChatVectorEnv,
    "tool": ToolVectorEnv,
}
_SETTLED = {"self", "num_envs", "task", "split", "task_options", "reward", "autoreset_mode"}
_SETTLED |= {"observe", "max_turns", "max_episode_steps", "options"}
_UNBOUNDED = 2**24
"""Characters of a prompt or an answer where the policy's window alone is the bound."""


@dataclass(frozen=True)
class Episodes:
    """What an episode is, in training and in evaluation.

    Raises:
        ConfigError: An option that the environment does not have.
    """

    env: EnvName = "instruction"
    """One answer, or the kind of episodes of several."""
    max_turns: int = 3
    """Most answers in one episode of several."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """More options of the environment (chat, tool)."""

    def __post_init__(self) -> None:
        check_choices(self)
        known = env_options(self.env)
        for name in self.options:
            if name not in known:
                raise ConfigError(
                    f"env_options has {name!r}, but env {self.env!r} takes no more options."
                    if not known
                    else unknown_name(f"option of env {self.env!r}", name, known)
                )

    @property
    def several(self) -> bool:
        """Whether an episode may have several answers."""
        return self.env != "instruction"

    @property
    def told(self) -> tuple[str, ...]:
        """What the environment tells rewards, beside the columns of the task."""
        told: tuple[str, ...] = _KINDS[self.env].told
        return told

    @property
    def most_turns(self) -> int:
        """Most answers in one episode."""
        return self.max_turns if self.several else 1

    @property
    def label(self) -> str:
        """Part of a file's name: empty for single answers, else such as ``refine3``."""
        label = f"{self.env}{self.max_turns}" if self.several else ""
        if not self.options:
            return label
        written = json.dumps(self.options, sort_keys=True, default=repr)
        return f"{label}.{hashlib.sha256(written.encode()).hexdigest()[:6]}"

    def header(self) -> Row:
        """What evaluations of one kind have in common."""
        header: Row = {"env": self.env}
        if self.several:
            header["max_turns"] = self.max_turns
        return header | ({"env_options": dict(self.options)} if self.options else {})

    def shown(self, task: Task, reward: CombinedReward) -> Task:
        """The task with its instructions as the episodes show them: behind the tools, with tools.

        Args:
            task: The instructions.
            reward: How answers are scored.
        """
        return self.make(1, task, reward).task if self.env == "tool" else task

    def make(
        self,
        num_envs: int,
        task: Task,
        reward: CombinedReward,
        *,
        turn_reward: TurnReward = "last",
        max_chars: int = DEFAULT_MAX_LENGTH,
    ) -> InstructionVectorEnv:
        """Makes the environment, autoreset DISABLED.

        Args:
            num_envs: Episodes at a time.
            task: The instructions.
            reward: How answers are scored.
            turn_reward: What a turn of several tries earns; the return is the same.
            max_chars: Longest prompt or answer of episodes with a single answer.

        Raises:
            ConfigError: The rewards' weights change, so that no reward is full marks.
            DataError: The task lacks a column that a reward needs.
        """
        options: dict[str, Any] = {"task": task, "reward": reward, "autoreset_mode": "DISABLED"}
        if self.env == "instruction":
            return InstructionVectorEnv(num_envs, max_chars=max_chars, **options)
        options["max_turns"] = self.max_turns
        if self.env == "refine":
            return RefineVectorEnv(num_envs, turn_reward=turn_reward, **options)
        made: InstructionVectorEnv = _KINDS[self.env](
            num_envs, observe="last", **options, **self.options
        )
        return made


def env_options(env: str) -> list[str]:
    """Names of the options that an environment has beside those with a setting of their own."""
    if env in ("instruction", "refine"):
        return []
    kinds = [kind for kind in _KINDS[env].__mro__ if issubclass(kind, InstructionVectorEnv)]
    names = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    return sorted(names - _SETTLED - ({"user", "user_deadline_s"} if env == "tool" else set()))


SINGLE_ANSWERS = Episodes()
"""An episode is one answer."""


def take_up(
    policy: Policy,
    task: Task,
    instructions: Sequence[Instruction],
    rows: Sequence[Row],
    sampling: Sampling,
) -> None:
    """Lets a policy go on behind the answers that rows hold, as it would have without a break.

    One with ``begin`` is told the columns of all instructions, one with ``skip`` every prompt that
    was answered, and how.
    """
    begin: Callable[[dict[str, list[Any]]], None] | None = getattr(policy, "begin", None)
    if begin is not None:
        begin({name: [i.columns.get(name) for i in instructions] for name in task.columns})
    skip: Callable[[list[Prompt], Sampling], None] | None = getattr(policy, "skip", None)
    if skip is not None and rows:
        skip([prompt for row in rows for prompt in _answered(row)], sampling)


def _answered(row: Row) -> list[Prompt]:
    """What the answers of an episode were given to: the instruction, then the conversation."""
    episode = Episode(row["prompt"])
    prompts = [episode.conversation]
    for turn in row.get("turns", ())[:-1]:
        episode.turns.append(Turn(turn["response"], [], [], None, message=turn["message"]))
        prompts.append(episode.conversation)
    return prompts


def play_rows(
    policy: Policy,
    task: Task,
    reward: CombinedReward,
    sampling: Sampling,
    episodes: Episodes,
    slots: Sequence[tuple[int, int]],
) -> list[Row]:
    """Plays one episode for each (index of an instruction, number of the sample); see Evaluation.

    Raises:
        PolicyError: The policy returned another number of answers than it was asked for, or a
            conversation cannot be carried on.
    """
    env = episodes.make(len(slots), task, reward, max_chars=_UNBOUNDED)
    env.reset(options={"index": [index for index, _ in slots]})
    instructions = env.instructions
    played, rewards, _ = play(policy, env, sampling)
    return [
        _row(instructions[i], sample, episode, rewards, i, episodes.several)
        for i, ((_, sample), episode) in enumerate(zip(slots, played, strict=True))
    ]


def _row(
    instruction: Instruction,
    sample: int,
    episode: Episode,
    rewards: RewardBatch,
    i: int,
    several: bool,
) -> Row:
    columns = instruction.columns
    reason = episode.last.stop_reason
    row = {
        "id": instruction.id,
        "sample": sample,
        "prompt": instruction.prompt,
        "response": episode.last.text,
        "reference": columns.get("reference"),
        "parts": {name: scores[i] for name, scores in rewards.parts.items()},
        "total": sum(episode.rewards),
        "status": {name: statuses[i].value for name, statuses in rewards.status.items()},
        "stop_reason": None if reason is None else reason.value,
        "response_len": sum(episode.mask) if episode.ids else None,
        "logprob": math.fsum(episode.logprobs) if episode.logprobs else None,
        "item": columns.get("item"),
        "family": columns.get("family"),
    }
    row |= {name: columns[name] for name in LABELS if name in columns}
    if isinstance(columns.get("level"), str | int | float):
        row["level"] = columns["level"]
    if messages := {name: texts[i] for name, texts in rewards.messages.items() if texts[i]}:
        row["errors"] = messages
    if several:
        row |= {"num_turns": len(episode.turns), "unfinished": episode.unfinished}
        row |= episode.counts
    if len(episode.turns) > 1:
        row["turns"] = [_turn(turn) for turn in episode.turns]
    return plain(row)


def _turn(turn: Turn) -> Row:
    """One answer of several; ``reward`` is that of the answer, ``message`` what was said to it."""
    return {
        "response": turn.text,
        "reward": turn.score,
        "stop_reason": None if turn.stop_reason is None else turn.stop_reason.value,
        "response_len": len(turn.ids) or None,
        "message": turn.message,
    }

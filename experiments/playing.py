"""The episodes of a run: which environment plays them, and what an evaluation keeps of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instructrec.envs.episode import LABELS
from instructrec.envs.refine import RefineVectorEnv, TurnReward
from instructrec.envs.spaces import DEFAULT_MAX_LENGTH
from instructrec.envs.tasks.base import Instruction, Task
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.experiments.jsonl import Row, plain
from instructrec.policies.base import Policy
from instructrec.policies.config import Sampling
from instructrec.rewards.base import RewardBatch
from instructrec.rewards.combine import CombinedReward
from instructrec.rl.turns import Episode, Turn, play

EnvName = Literal["instruction", "refine"]
"""What an episode is: one answer, or several tries at one instruction."""
_UNBOUNDED = 2**24
"""Characters of a prompt or an answer where the policy's window alone is the bound."""


@dataclass(frozen=True)
class Episodes:
    """What an episode is, in training and in evaluation."""

    env: EnvName = "instruction"
    """One answer, or several tries at each instruction."""
    max_turns: int = 3
    """Most answers in one episode (refine)."""

    @property
    def several(self) -> bool:
        """Whether an episode may have several answers."""
        return self.env == "refine"

    @property
    def most_turns(self) -> int:
        """Most answers in one episode."""
        return self.max_turns if self.several else 1

    @property
    def label(self) -> str:
        """Part of a file's name: empty for single answers, else such as ``refine3``."""
        return f"{self.env}{self.max_turns}" if self.several else ""

    def header(self) -> Row:
        """What evaluations of one kind have in common."""
        return {"env": self.env} | ({"max_turns": self.max_turns} if self.several else {})

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
            turn_reward: What a turn of several earns; the return is the same.
            max_chars: Longest prompt or answer of episodes with a single answer.

        Raises:
            ConfigError: The rewards' weights change, so that no reward is full marks.
            DataError: The task lacks a column that a reward needs.
        """
        options: dict[str, Any] = {"task": task, "reward": reward, "autoreset_mode": "DISABLED"}
        if not self.several:
            return InstructionVectorEnv(num_envs, max_chars=max_chars, **options)
        return RefineVectorEnv(
            num_envs, max_turns=self.max_turns, turn_reward=turn_reward, **options
        )


SINGLE_ANSWERS = Episodes()
"""An episode is one answer."""


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
    if messages := {name: texts[i] for name, texts in rewards.messages.items() if texts[i]}:
        row["errors"] = messages
    if several:
        row |= {"num_turns": len(episode.turns), "unfinished": episode.unfinished}
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

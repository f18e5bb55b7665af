"""``instructrec envs play``: a person is the policy, and every part of the reward is shown."""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, TextIO

from instructrec.errors import RewardError
from instructrec.experiments.env_commands import described, shown, told
from instructrec.experiments.listing import table
from instructrec.experiments.telling import say

HELP = (
    "Answer each instruction in one line; a line that ends in \\ goes on in the next one. "
    "Ctrl-D ends."
)
_PROMPT = "> "
_TOLD = ("task_index", "instruction_id", "reward_status")  # elsewhere, or in other words


@dataclass
class Score:
    """What a person has earned so far."""

    returns: list[float] = field(default_factory=list)
    """Sum of the rewards of each episode that has ended; NaN where none applied."""
    parts: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Raw scores by part, one for each answer to which it applied."""
    answers: int = 0
    """Answers given."""
    failed: int = 0
    """Episodes that ended because a reward failed."""

    def summary(self) -> str:
        """Counts and means, one line each."""
        scored = [value for value in self.returns if value == value]
        lines = [("episodes", str(len(self.returns))), ("answers", str(self.answers))]
        if self.failed:
            lines.append(("failed rewards", str(self.failed)))
        if scored:
            lines.append(("mean return of an episode", f"{sum(scored) / len(scored):.3f}"))
        lines += [
            (f"mean {name} of an answer", f"{sum(scores) / len(scores):.3f}")
            for name, scores in self.parts.items()
        ]
        return table(lines)


def play(env: Any, *, seed: int, episodes: int | None, source: TextIO) -> Score:
    """Shows instructions, reads answers and says what they earn, until the input ends.

    Args:
        env: A scalar environment whose actions are text, or numbers.
        seed: Chooses the instructions.
        episodes: Most episodes; None for no limit.
        source: Where answers come from. At a terminal they are asked for; what comes through a
            pipe is repeated, so that the transcript can be read.

    Returns:
        What was earned; it was printed as well.
    """
    if hasattr(source, "reconfigure"):
        source.reconfigure(errors="replace")  # whatever the pipe holds
    say(f"{table(described(env))}\n\n{HELP}")
    score = Score()
    try:
        while episodes is None or len(score.returns) + score.failed < episodes:
            _episode(env, seed if not score.answers else None, score, source)
    except EOFError:
        pass
    except KeyboardInterrupt:
        say("")
    say(f"\n{score.summary()}")
    return score


def _episode(env: Any, seed: int | None, score: Score, source: TextIO) -> None:
    """Plays one episode; raises EOFError when the input ends before the episode does."""
    observation, info = env.reset(seed=seed)
    number = len(score.returns) + score.failed + 1
    say(f"\n[episode {number}: {told(env, info)}]\n\n{shown(observation)}\n")
    total, over = 0.0, False
    while not over:
        action = _read_action(env, source)
        try:
            observation, reward, terminated, truncated, info = env.step(action)
        except RewardError as error:
            say(f"the reward failed: {error}")
            score.failed += 1
            return
        finally:
            score.answers += 1
        total += reward
        over = terminated or truncated
        for name, value in info.get("reward_parts", {}).items():
            score.parts[name].append(value)
        if truncated:
            info = {**info, "ended": "by a limit"}
        say(_verdict(env, reward, info, over))
        if not over:
            say(f"\n{shown(observation)}\n")
    score.returns.append(total)


def _verdict(env: Any, reward: float, info: dict[str, Any], over: bool) -> str:
    """The reward of an answer, all of its parts and, at the end, what would have been right."""
    parts = info.get("reward_parts", {})
    weights = getattr(getattr(env, "reward", None), "weights", {})
    rows = [("reward", f"{reward:.3f}" if reward == reward else "none applies")]
    for name in dict.fromkeys([*weights, *parts]):
        weighted = f"{weights[name]:g} × {name}" if name in weights else name
        rows.append((weighted, f"{parts[name]:.3f}" if name in parts else "does not apply"))
    plain = {name: value for name, value in info.items() if isinstance(value, str | int | float)}
    rows += [(name, shown(str(value))) for name, value in plain.items() if name not in _TOLD]
    columns = env.instruction.columns if over and hasattr(env, "instruction") else {}
    if "reference" in columns:
        rows.append(("reference", shown(repr(columns["reference"]))))
    return table(rows)


def _read_action(env: Any, source: TextIO) -> Any:
    """Reads an answer; where actions are numbers, until it is one of them."""
    from gymnasium.spaces import Discrete

    while True:
        text = read_text(source)
        if not isinstance(env.action_space, Discrete):
            return text
        if text.strip().lstrip("-").isdecimal() and int(text) in env.action_space:
            return int(text)
        first = int(env.action_space.start)
        say(f"expected a number from {first} to {first + int(env.action_space.n) - 1}")


def read_text(source: TextIO) -> str:
    """Reads the lines of one answer; a line that ends in a backslash goes on in the next.

    Args:
        source: At a terminal the answer is asked for; what comes through a pipe is repeated.

    Raises:
        EOFError: The input has ended.
    """
    lines: list[str] = []
    while True:
        line = _read_line(source)
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])


def _read_line(source: TextIO) -> str:
    if source is sys.stdin and source.isatty():
        return input(_PROMPT)  # with the editing keys of the terminal
    line = source.readline()
    if not line:
        raise EOFError
    line = line.removesuffix("\n").removesuffix("\r")
    say(_PROMPT + shown(line))
    return line

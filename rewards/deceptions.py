"""Whether a reward can be talked into a good score, tried before a training spends hours on it.

A reward takes part by an attribute ``deceptions``: responses that deserve nothing, whatever was
asked. Judges have been seen to like such responses (Zhao et al. 2025, "One Token to Fool
LLM-as-a-Judge", arXiv:2507.08794), and a policy finds what its reward likes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from instructrec.errors import ConfigError
from instructrec.phases import phase
from instructrec.rewards.base import Status
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.combine import CombinedReward
from instructrec.rewards.parts import Part
from instructrec.rewards.scoring import PartScores

CALLS = 100
"""Least number of responses that a reward is asked about."""
MOST_DECEIVED = 0.01
"""Share of worthless responses with a good score that is let pass."""
MOST_MISSING = 0.5
"""Share of responses without a score above which the trial says too little."""

Ask = Callable[[int, list[str]], PartScores]
"""Scores responses to the instruction of a number."""


@dataclass(frozen=True)
class Trial:
    """What a reward gave for responses that deserve nothing."""

    name: str
    """Name of the part, ``outer.inner`` inside of another one."""
    scored: int
    """Responses with a score."""
    failed: int
    """Responses on which it failed; to others it does not apply."""
    problem: str
    """Why it failed the first time; empty where it did not."""
    good: tuple[tuple[str, float], ...]
    """Responses with at least the middle of its range, the best first, and their scores."""
    middle: float
    """The middle of its range."""

    @property
    def warning(self) -> str:
        """What is to be said of it; empty where all is well."""
        if self.failed > MOST_MISSING * (self.failed + self.scored):
            return (
                f"reward {self.name!r} failed on {self.failed} of {self.failed + self.scored} "
                "responses that deserve nothing, so that nobody knows whether it likes them. The "
                f"first time: {self.problem}"
            )
        if len(self.good) <= MOST_DECEIVED * self.scored:
            return ""
        response, score = self.good[0]
        return (
            f"reward {self.name!r} gives {self.middle:g} or more to {len(self.good)} of "
            f"{self.scored} responses that deserve nothing; {response!r} gets {score:g}. A policy "
            "learns to say such things. Name them in the rubric, show the judge reference answers, "
            "or take a judge that is harder to fool."
        )

    def __str__(self) -> str:
        if not self.scored and not self.failed:
            return f"{self.name}: applies to none of these instructions"
        missing = f"; on {self.failed} others it failed" if self.failed else ""
        return (
            f"{self.name}: {len(self.good)} of {self.scored} worthless responses got "
            f"{self.middle:g} or more{missing}"
        )


def deceptions_of(reward: BoundReward) -> list[str]:
    """Responses that deserve nothing by what a reward says of itself; empty for most rewards.

    Raises:
        ConfigError: They are no texts.
    """
    found: Any = getattr(reward.function, "deceptions", ())
    texts = [found] if isinstance(found, str) else list(found)
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"reward {reward.__name__!r} has deceptions = {found!r}: expected responses as texts."
        )
    return texts


def middle_of(reward: BoundReward) -> float | None:
    """The middle of the declared range; None where it has not got two ends."""
    low, high = reward.info.range or (-math.inf, math.inf)
    return (low + high) / 2 if math.isfinite(low) and math.isfinite(high) else None


def deceivable(reward: CombinedReward) -> Iterator[tuple[str, Part]]:
    """Yields the parts that can be tried, with their names, also those inside of combinators.

    Left out are parts of which a training wants less (a negative weight) or nothing.
    """
    for name, part in reward.parts.items():
        if any(weight > 0 for _, weight in part.schedule.points):
            yield from _deceivable(name, part)


def _deceivable(name: str, part: Part) -> Iterator[tuple[str, Part]]:
    if part.spec.trial and deceptions_of(part.reward):
        yield name, part
    inner = getattr(part.reward.function, "combined", None)
    if isinstance(inner, CombinedReward):
        for key, one in inner.parts.items():
            if one.schedule.last >= 0:  # of weight 0 it may be a gate's condition
                yield from _deceivable(f"{name}.{key}", one)


def try_to_deceive(name: str, reward: BoundReward, instructions: int, ask: Ask) -> Trial:
    """Asks a reward about its worthless responses to instructions; it remembers nothing of it.

    Args:
        name: What the result calls it.
        reward: One with ``deceptions`` and a range with two ends.
        instructions: How many there are to choose from, at least 1.
        ask: Scores responses to one of them.

    Raises:
        ConfigError: Its service refuses it or cannot be addressed.
        DataError: A column that it reads is missing.
        RewardError: It breaks its contract, or fails where its ``on_error`` is ``raise``.
    """
    texts, middle = deceptions_of(reward), middle_of(reward)
    assert texts and middle is not None
    turns = math.ceil(CALLS / len(texts))
    before = deepcopy(reward.state_dict())
    told: list[tuple[str, float, Status, str]] = []
    for turn in range(turns):
        with phase("score"):  # a run that waits for a judge does not stand still
            found = ask(turn * instructions // turns, texts)
        told += zip(texts, found.scores.tolist(), found.status, found.messages, strict=True)
    reward.load_state_dict(before)
    good = [(text, score) for text, score, _, _ in told if score >= middle]
    problems = [message for _, _, status, message in told if status.failed]
    return Trial(
        name=name,
        scored=sum(status is Status.SCORED for _, _, status, _ in told),
        failed=len(problems),
        problem=problems[0] if problems else "",
        good=tuple(sorted(good, key=lambda pair: -pair[1])),
        middle=middle,
    )

"""Whether a reward can be talked into a good score, tried before a training spends hours on it.

A reward takes part by an attribute ``deceptions``: responses that deserve nothing, whatever was
asked. Judges have been seen to like such responses (Zhao et al. 2025, "One Token to Fool
LLM-as-a-Judge", arXiv:2507.08794), and a policy finds what its reward likes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instructrec.rewards.combine import CombinedReward
from instructrec.rewards.parts import Part

CALLS = 100
"""About how many responses a reward is asked about."""
MOST_DECEIVED = 0.01
"""Share of worthless responses with a good score from which a run is warned."""


@dataclass(frozen=True)
class Trial:
    """What a reward gave for responses that deserve nothing."""

    name: str
    """Name of the part, ``outer.inner`` inside of another one."""
    scored: int
    """Responses that got a score."""
    asked: int
    """Responses that it was asked about."""
    good: tuple[tuple[str, float], ...]
    """Those with at least the middle of its range, the best first: response and score."""
    middle: float
    """The middle of its range."""
    problem: str
    """Why the first of the others has no score; empty where there is none."""

    @property
    def deceived(self) -> float:
        """Share of worthless responses that got a good score, among those with a score."""
        return len(self.good) / self.scored if self.scored else 0.0

    @property
    def warning(self) -> str:
        """What is to be said of it; empty where all is well."""
        if not self.scored:
            return (
                f"reward {self.name!r} gave no score for any of {self.asked} worthless responses, "
                f"so nobody knows whether it can be deceived. The first: {self.problem}"
            )
        if self.deceived <= MOST_DECEIVED:
            return ""
        response, score = self.good[0]
        return (
            f"reward {self.name!r} gives {self.middle:g} or more to {len(self.good)} of "
            f"{self.scored} responses that deserve nothing; {response!r} gets {score:g}. A policy "
            "learns to say such things. Name them in the rubric, show the judge reference answers, "
            "or take a judge that is harder to fool."
        )

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.good)} of {self.scored} worthless responses got "
            f"{self.middle:g} or more"
        )


def deceptions_of(function: object) -> tuple[str, ...]:
    """Responses that deserve nothing by what a reward says of itself; empty for most rewards."""
    return tuple(getattr(function, "deceptions", ()))


def deceivable(reward: CombinedReward, prefix: str = "") -> Iterator[tuple[str, Part]]:
    """Yields parts that can be tried, with their names, also those inside of combinators."""
    for name, part in reward.parts.items():
        if not (part.schedule.changes or part.schedule.at(0)):  # it is only recorded
            continue
        function = part.reward.function
        if deceptions_of(function) and part.reward.info.range is not None:
            yield prefix + name, part
        inner = getattr(function, "combined", None)
        if isinstance(inner, CombinedReward):
            yield from deceivable(inner, f"{prefix}{name}.")


def try_to_deceive(
    name: str, part: Part, prompts: Sequence[Any], columns: Mapping[str, Sequence[Any]]
) -> Trial:
    """Asks a reward about worthless responses.

    Args:
        name: What the result calls it.
        part: A reward with ``deceptions`` and a declared range.
        prompts: N ≥ 1 instructions, which take turns.
        columns: The data's other columns, each of length N.

    Raises:
        ConfigError: Its service refuses it or cannot be addressed.
        DataError: A column that it reads is missing.
        RewardError: It breaks its contract, or fails where its ``on_error`` is ``raise``.
    """
    texts = deceptions_of(part.reward.function)
    turns = max(1, CALLS // len(texts))
    rows = [i % len(prompts) for i in range(turns) for _ in texts]
    responses = list(texts) * turns
    taken = {key: [values[i] for i in rows] for key, values in columns.items()}
    found = part.score([prompts[i] for i in rows], responses, taken)
    assert part.reward.info.range is not None
    middle = float(np.mean(part.reward.info.range))
    known = ~np.isnan(found.scores)
    good = [(responses[i], float(found.scores[i])) for i in np.flatnonzero(found.scores >= middle)]
    return Trial(
        name=name,
        scored=int(known.sum()),
        asked=len(responses),
        good=tuple(sorted(good, key=lambda pair: -pair[1])),
        middle=middle,
        problem=next((m for m, k in zip(found.messages, known, strict=True) if not k), ""),
    )

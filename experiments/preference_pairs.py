"""Preference pairs from scored responses, and a mentor who errs at a stated rate.

Everything here is a function of its arguments: which pairs are made, and which of them are turned
round, depends on the seed and the pairs' ids, not on their order.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from instructrec.envs.tasks.partition import stable_hash
from instructrec.errors import ConfigError
from instructrec.experiments.jsonl import Row

Select = Literal["best_vs_worst", "all"]
"""One pair per instruction, or every two responses whose scores differ enough."""


@dataclass(frozen=True)
class Candidate:
    """A response that a reward has scored."""

    text: str
    """The response."""
    score: float
    """Its score."""
    sample: int
    """Its number among the responses to the instruction."""


@dataclass(frozen=True)
class Pair:
    """Two responses to one instruction, the preferred one first."""

    id: str
    """Unique: the instruction and the numbers of the two responses."""
    instruction: str
    """Id of the instruction."""
    prompt: Any
    """The instruction: a text, or messages."""
    chosen: Candidate
    """What is preferred."""
    rejected: Candidate
    """What it is preferred to."""
    flipped: bool = False
    """Whether the mentor erred: the reward prefers the other one."""

    @property
    def margin(self) -> float:
        """Distance of the two scores, above 0."""
        return abs(self.chosen.score - self.rejected.score)

    def row(self) -> Row:
        """The pair as a line of a preference file."""
        return {
            "id": self.id,
            "instruction_id": self.instruction,
            "prompt": self.prompt,
            "chosen": self.chosen.text,
            "rejected": self.rejected.text,
            "margin": self.margin,
            "chosen_score": self.chosen.score,
            "rejected_score": self.rejected.score,
            "chosen_sample": self.chosen.sample,
            "rejected_sample": self.rejected.sample,
            "flipped": self.flipped,
        }


@dataclass(frozen=True)
class Mentor:
    """How preferences follow from scores.

    Raises:
        ConfigError: Both kinds of noise at once, or a number out of its range.
    """

    flip_rate: float = 0.0
    """Share of the pairs that are turned round, in [0, 0.5]; it is met exactly, up to rounding."""
    temperature: float | None = None
    """Bradley-Terry: prefers the better one with probability σ(margin / temperature); above 0."""
    seed: int = 0
    """Decides which pairs are turned round."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.flip_rate <= 0.5:
            raise ConfigError(
                f"flip_rate = {self.flip_rate}: expected a share from 0 to 0.5, at which "
                "preferences say nothing."
            )
        if self.temperature is not None and not (
            math.isfinite(self.temperature) and self.temperature > 0
        ):
            raise ConfigError(
                f"bradley_terry = {self.temperature}: expected a temperature above 0, in units of "
                "the score."
            )
        if self.flip_rate and self.temperature is not None:
            raise ConfigError(
                f"flip_rate = {self.flip_rate} and bradley_terry = {self.temperature} are two "
                "kinds of noise: give one of them."
            )

    def judge(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Returns the pairs as this mentor prefers them, in the order given."""
        draws = [self._draw(pair) for pair in pairs]
        if self.temperature is None:
            number = round(self.flip_rate * len(pairs))
            wrong = set(np.argsort(draws, kind="stable")[:number].tolist())
            errs = [i in wrong for i in range(len(pairs))]
        else:
            errs = [
                draw >= 1.0 / (1.0 + math.exp(-min(pair.margin / self.temperature, 700.0)))
                for draw, pair in zip(draws, pairs, strict=True)
            ]
        return [
            dataclasses.replace(pair, chosen=pair.rejected, rejected=pair.chosen, flipped=True)
            if wrong_here
            else pair
            for pair, wrong_here in zip(pairs, errs, strict=True)
        ]

    def _draw(self, pair: Pair) -> float:
        """A number in [0, 1) that belongs to this seed and pair."""
        return stable_hash("mentor", self.seed, pair.id) / 2.0**64


def make_pairs(
    instruction: str,
    prompt: Any,
    candidates: Iterable[Candidate],
    *,
    select: Select = "best_vs_worst",
    min_margin: float = 0.0,
) -> list[Pair]:
    """Pairs the responses to one instruction by their scores, the better one chosen.

    Responses that are the same text count once. Equal scores never make a pair.

    Args:
        instruction: Id of the instruction.
        prompt: The instruction.
        candidates: Responses with finite scores.
        select: ``best_vs_worst`` makes at most one pair, ``all`` one of every two.
        min_margin: Least distance of the scores, 0 or more.
    """
    distinct: dict[str, Candidate] = {}
    for candidate in candidates:
        distinct.setdefault(candidate.text, candidate)
    ranked = sorted(distinct.values(), key=lambda c: (-c.score, c.sample))
    both: Iterable[tuple[Candidate, Candidate]] = itertools.combinations(ranked, 2)
    if select == "best_vs_worst":
        both = [(ranked[0], ranked[-1])] if len(ranked) > 1 else []
    return [
        Pair(f"{instruction}#{a.sample}-{b.sample}", instruction, prompt, a, b)
        for a, b in both
        if a.score > b.score and a.score - b.score >= min_margin
    ]


def pairs_of_rows(
    rows: Iterable[Mapping[str, Any]], *, select: Select, min_margin: float
) -> list[Pair]:
    """Pairs the responses of an evaluation, instruction by instruction.

    Args:
        rows: Rows of an evaluation; those without a score are left out.
        select: As for `make_pairs`.
        min_margin: As for `make_pairs`.
    """
    grouped: dict[str, tuple[Any, list[Candidate]]] = {}
    for row in rows:
        _, candidates = grouped.setdefault(row["id"], (row["prompt"], []))
        if row["total"] is not None:
            candidates.append(Candidate(row["response"], float(row["total"]), int(row["sample"])))
    return [
        pair
        for id_, (prompt, candidates) in grouped.items()
        for pair in make_pairs(id_, prompt, candidates, select=select, min_margin=min_margin)
    ]

"""Scoring a batch with one reward: who was scored, who failed, and why."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from instructrec.errors import ConfigError, DataError, PolicyError
from instructrec.rewards.base import FailedScore, Status
from instructrec.rewards.calling import BoundReward, check_scores

# A wrong setting, column or model fails every sample alike and for good: it stops the run.
_NOT_THE_SAMPLES_FAULT = (ConfigError, DataError, PolicyError)

# What functions that expect chat messages, as TRL's conversational ones do, raise on a string.
_READS_MESSAGES = (
    "TypeError: string indices must be integers",
    "AttributeError: 'str' object has no attribute 'get'",
)


@dataclass
class PartScores:
    """The scores of B responses under one reward."""

    scores: np.ndarray
    """(B,) float64, NaN where there is none."""
    status: list[Status]
    """What happened to each sample."""
    messages: list[str]
    """Why a sample failed, empty where it did not."""
    seconds: float
    """Wall time."""
    parts: dict[str, PartScores] = field(default_factory=dict)
    """Of a combinator, what its own parts scored, by name."""
    flags: dict[str, list[bool]] = field(default_factory=dict)
    """As in ``RewardBatch``, by flag and sample."""

    def spread(self, rows: Sequence[int], size: int) -> PartScores:
        """The same as the given rows of a larger batch, not applicable to its other rows.

        Args:
            rows: Where each sample stands in the larger batch.
            size: Samples of the larger batch.
        """
        scores = np.full(size, math.nan)
        scores[list(rows)] = self.scores
        status, messages = [Status.NOT_APPLICABLE] * size, [""] * size
        for place, row in enumerate(rows):
            status[row], messages[row] = self.status[place], self.messages[place]
        parts = {name: part.spread(rows, size) for name, part in self.parts.items()}
        flags = {flag: [False] * size for flag in self.flags}
        for flag, values in self.flags.items():
            for place, row in enumerate(rows):
                flags[flag][row] = values[place]
        return PartScores(scores, status, messages, self.seconds, parts, flags)


def score_part(
    reward: BoundReward,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> PartScores:
    """Scores B responses with one reward.

    A batch call that raises is repeated sample by sample, so that one bad response does not take
    the others with it.

    Args:
        reward: The reward.
        prompts: B instructions.
        completions: B responses.
        columns: Other per-sample values, each of length B.

    Raises:
        RewardError: When the reward returns the wrong number or type of scores.
        ConfigError, DataError, PolicyError: When the reward raises one of them.
    """
    start = time.perf_counter()
    combined = getattr(reward.function, "score_parts", None)
    if combined is not None:  # a combinator: its parts are told apart, and fail apart
        scored: PartScores = combined(prompts, completions, columns)
        scored.seconds = time.perf_counter() - start
        return scored
    folder = os.getcwd()
    try:
        result = reward.raw(list(prompts), list(completions), _rows(columns, None))
    except _NOT_THE_SAMPLES_FAULT:
        raise
    except (Exception, SystemExit) as error:  # a reward that calls sys.exit() ends no run
        if len(completions) == 1:
            part = _collect([(math.nan, Status.RAISED, explain_error(error, reward))])
        else:
            part = _one_by_one(reward, prompts, completions, columns)
    else:
        part = judge_scores(
            check_scores(reward.__name__, result, len(completions)), reward.info.range
        )
        if (truncated := reward.last_truncated(len(completions))) is not None:
            part.flags["truncated"] = truncated
    finally:
        if os.getcwd() != folder:  # relative paths of the run would lead elsewhere
            os.chdir(folder)
    part.seconds = time.perf_counter() - start
    return part


def judge_scores(scores: Sequence[float | None], limits: tuple[float, float] | None) -> PartScores:
    """Sorts B scores into the outcomes; ``judge_score`` says how.

    A batch without anything special, which is the usual one, is not looked at score by score.
    """
    given = np.array(scores, dtype=np.float64)  # None becomes NaN
    low, high = limits or (-math.inf, math.inf)
    if np.all((given >= low) & (given <= high) & np.isfinite(given)):
        return PartScores(given, [Status.SCORED] * len(given), [""] * len(given), 0.0)
    return _collect([judge_score(score, limits) for score in scores])


def judge_score(
    score: float | None, limits: tuple[float, float] | None
) -> tuple[float, Status, str]:
    """Sorts one score into the outcomes.

    Args:
        score: What the reward gave, None for not applicable.
        limits: Lowest and highest allowed score, None for no limits.

    Returns:
        The score (NaN when it cannot be used), its status, and why it failed.
    """
    if score is None:
        return math.nan, Status.NOT_APPLICABLE, ""
    if isinstance(score, FailedScore):
        return math.nan, score.status, score.message
    if not math.isfinite(score):
        return math.nan, Status.NONFINITE, f"the score is {score}"
    if limits is not None and not limits[0] <= score <= limits[1]:
        return (
            math.nan,
            Status.OUT_OF_RANGE,
            f"the score is {score:g}, outside the declared range [{limits[0]:g}, {limits[1]:g}]",
        )
    return score, Status.SCORED, ""


def describe_error(error: BaseException) -> str:
    """Returns the type and message of an exception as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def explain_error(error: BaseException, reward: BoundReward) -> str:
    """Describes an exception of a reward, and what to do where it was handed the other format."""
    text = describe_error(error)
    if reward.info.format == "text" and text.startswith(_READS_MESSAGES):
        return (
            f"{text} (it seems to read chat messages, and gets each response as a string: set "
            "format: chat for this reward, --format chat in rewards check)"
        )
    return text


def _collect(judged: Sequence[tuple[float, Status, str]]) -> PartScores:
    return PartScores(
        scores=np.array([score for score, _, _ in judged], dtype=np.float64),
        status=[status for _, status, _ in judged],
        messages=[message for _, _, message in judged],
        seconds=0.0,
    )


def _one_by_one(
    reward: BoundReward,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    columns: Mapping[str, Sequence[Any]],
) -> PartScores:
    singles = [
        score_part(reward, prompts[i : i + 1], completions[i : i + 1], _rows(columns, i, i + 1))
        for i in range(len(completions))
    ]
    part = _collect([(s.scores[0], s.status[0], s.messages[0]) for s in singles])
    for flag in {flag for single in singles for flag in single.flags}:
        part.flags[flag] = [single.flags.get(flag, [False])[0] for single in singles]
    return part


def _rows(columns: Mapping[str, Sequence[Any]], *bounds: int | None) -> dict[str, list[Any]]:
    # Fresh lists each time: a reward that sorts its arguments must not disturb the next one.
    return {name: list(values[slice(*bounds)]) for name, values in columns.items()}

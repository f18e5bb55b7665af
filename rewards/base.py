"""The types of the reward package: what a reward is, and what scoring a batch gives back.

Three things can happen to one sample under one reward, and they are never mixed up: it is *scored*,
the reward is *not applicable* to it (the function returned ``None``), or the reward *failed*. A
failure never becomes a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

OUTLYING = 3.0
"""Standard deviations from the mean of known scores beyond which a score is out of distribution."""


class Status(StrEnum):
    """What happened to one sample under one reward."""

    SCORED = "scored"
    """The reward is a finite number inside the declared range."""
    NOT_APPLICABLE = "not_applicable"
    """The reward function returned None: it has nothing to say about this sample."""
    RAISED = "raised"
    """The reward function raised an exception on this sample."""
    TIMEOUT = "timeout"
    """The reward function did not answer in time."""
    NONFINITE = "nonfinite"
    """The score was NaN or infinite."""
    OUT_OF_RANGE = "out_of_range"
    """The score was outside the range that the reward declares, or too large to be summed."""
    WORKER_DIED = "worker_died"
    """The process that computed the score died."""

    @property
    def failed(self) -> bool:
        """Whether there is no score although there should be one."""
        return self not in (Status.SCORED, Status.NOT_APPLICABLE)


class FailedScore(float):
    """In the place of a score: this one sample failed, and why; the rest of the batch is good.

    A reward returns it where raising would make the whole batch be asked again, for instance when
    one of many calls to a server fails. It is a NaN, so trainers of TRL leave the sample out.

    Args:
        status: One of the failures.
        message: Why it failed.
    """

    status: Status
    message: str

    def __new__(cls, status: Status, message: str) -> FailedScore:
        """Makes one; raises ValueError when ``status`` is no failure."""
        if not status.failed:
            raise ValueError(f"FailedScore: {status!r} is no failure.")
        score = super().__new__(cls, "nan")
        score.status, score.message = status, message
        return score

    def __reduce__(self) -> tuple[type[FailedScore], tuple[Status, str]]:
        return FailedScore, (self.status, self.message)

    def __repr__(self) -> str:
        return f"FailedScore({self.status.value}: {self.message})"


@runtime_checkable
class RewardFunction(Protocol):
    """What a reward is: a function from a batch of responses to one score each.

    The signature is TRL's, so that a TRL reward function is one of ours and the other way round. A
    function names what it reads and takes the rest as ``**columns``::

        def politeness(completions, **columns) -> list[float]:
            return [float("please" in text.lower()) for text in completions]
    """

    __name__: str

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Scores B responses.

        Args:
            prompts: B instructions, each a string or a list of chat messages.
            completions: B responses, each a string or a list of chat messages.
            **columns: The dataset's other columns, each a list of length B (``reference`` is the
                usual name of the expected answers), and whatever else the caller has to offer.

        Returns:
            B scores; None where the reward does not apply, ``FailedScore`` where it failed.
        """
        ...


@dataclass(frozen=True)
class RewardInfo:
    """What is known about a reward function before it is called."""

    name: str
    """Registered name, or a name derived from the function."""
    target: str | Callable[..., Any]
    """The function or class, or where to import it from: ``module:attr`` or ``file.py:attr``."""
    range: tuple[float, float] | None = None
    """Lowest and highest score that the reward may give; None for no bounds."""
    requires: tuple[str, ...] = ()
    """Columns read out of ``**columns``; parameters without default count by themselves."""
    format: Literal["text", "chat"] = "text"
    """Whether completions arrive as plain text or as lists of chat messages."""
    version: int = 1
    """Of what it computes; cached scores of another version are not used."""


@dataclass
class RewardBatch:
    """The rewards of B responses; every array and list is aligned by position."""

    total: np.ndarray
    """(B,) float64: the weighted sum of raw scores; NaN where the sample has no usable total."""
    parts: dict[str, np.ndarray]
    """Raw scores by component, each (B,) float64; NaN where there is no score. The components of
    a component are called ``outer.inner``."""
    status: dict[str, list[Status]]
    """What happened, by component and sample."""
    messages: dict[str, list[str]]
    """Why a component failed, by component and sample; empty where it did not."""
    seconds: dict[str, float]
    """Wall time of each component, in seconds."""
    normalised: np.ndarray | None = None
    """(B,) float64: the weighted sum of normalised scores; None where nothing is normalised."""
    flags: dict[str, dict[str, list[bool]]] = field(default_factory=dict)
    """What else is known of the samples, by component and then by flag: ``cache_hit`` (the score
    came from the component's cache), ``truncated`` (its model read the text only in part) and
    ``ood`` (out of distribution: the score is more than ``OUTLYING`` standard deviations from the
    mean that its model had on responses it knows). A component to which a flag does not apply
    lacks it."""
    recorded: tuple[str, ...] = ()
    """Components of weight 0 beside others: they may fail without costing the sample its total."""

    def __len__(self) -> int:
        return len(self.total)

    @property
    def earned(self) -> np.ndarray:
        """(B,) float64: what the policy learns from, the normalised total where there is one."""
        return self.total if self.normalised is None else self.normalised

    @property
    def valid(self) -> np.ndarray:
        """(B,) bool: True where the sample has a total and may be trained on."""
        return np.isfinite(self.total)

    @property
    def cached(self) -> dict[str, list[bool]]:
        """Whether a score came from the cache, by component (those that have one) and sample."""
        return {k: flags["cache_hit"] for k, flags in self.flags.items() if "cache_hit" in flags}

    @classmethod
    def joined(cls, batches: Sequence[RewardBatch]) -> RewardBatch:
        """One batch of several that were scored side by side by the same rewards.

        Args:
            batches: At least one; the time of a component is the longest among them.
        """
        rows = [(batch, i) for batch in batches for i in range(len(batch))]
        seconds = {k: max(batch.seconds[k] for batch in batches) for k in batches[0].seconds}
        return batches[0].with_rows(rows, seconds)

    def with_rows(
        self, rows: Sequence[tuple[RewardBatch, int]], seconds: dict[str, float]
    ) -> RewardBatch:
        """A batch of samples from several batches that were scored by the same rewards as this one.

        Args:
            rows: Of each sample, its batch and its place in it.
            seconds: Wall time by component.
        """
        flags: dict[str, dict[str, list[bool]]] = {}
        for name, flag in dict.fromkeys(
            (n, f) for batch, _ in rows for n, own in batch.flags.items() for f in own
        ):
            flags.setdefault(name, {})[flag] = [batch._has(name, flag, i) for batch, i in rows]
        return RewardBatch(
            total=np.array([batch.total[i] for batch, i in rows]),
            parts={k: np.array([batch.parts[k][i] for batch, i in rows]) for k in self.parts},
            status={k: [batch.status[k][i] for batch, i in rows] for k in self.status},
            messages={k: [batch.messages[k][i] for batch, i in rows] for k in self.messages},
            seconds=seconds,
            normalised=None
            if self.normalised is None
            else np.array([batch.earned[i] for batch, i in rows]),
            flags=flags,
            recorded=self.recorded,
        )

    def _has(self, name: str, flag: str, i: int) -> bool:
        values = self.flags.get(name, {}).get(flag)
        return values is not None and values[i]

    def sample_status(self, i: int) -> Literal["scored", "not_applicable", "failed"]:
        """Says what became of sample ``i`` as a whole.

        Returns:
            ``"failed"`` when a component that counts failed, else ``"scored"`` when there is a
            total, else ``"not_applicable"``.
        """
        for name, statuses in self.status.items():  # a loop: this is asked of every response
            status = statuses[i]
            if status is not Status.SCORED and status.failed and self.counts(name):
                return "failed"
        return "scored" if math.isfinite(self.total[i]) else "not_applicable"

    def counts(self, name: str) -> bool:
        """Whether a failure of this component fails the sample.

        A component inside another one does so by failing that one, if at all.
        """
        return "." not in name and name not in self.recorded

    def failures(self, i: int) -> str:
        """Returns every failure of sample ``i`` as one line, empty when nothing failed."""
        return "; ".join(
            f"{name}: {statuses[i].value}: {self.messages[name][i]}"
            for name, statuses in self.status.items()
            if statuses[i].failed
        )

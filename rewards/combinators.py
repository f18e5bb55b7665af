"""Rewards made of rewards: weighted, gate, sequence, minimum, product.

Each takes the option ``parts``, a mapping like that of a run's ``rewards``. What a part scored is
kept raw under ``outer.inner``. A part that fails on a sample fails the combinator on it; a part
that is not applicable says nothing, and where no part says anything the combinator is not
applicable either. Behind a closed gate, and behind the step of a sequence that was not reached,
parts are not called at all: they cost nothing there, cannot fail, and count as not applicable.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from instructrec.errors import ConfigError, RewardError, unknown_name
from instructrec.rewards.base import Status
from instructrec.rewards.combine import CombinedReward, counted, make_rewards, weighted_sum
from instructrec.rewards.options import EXTRAS
from instructrec.rewards.parts import Part
from instructrec.rewards.scoring import PartScores

_TOKEN_IDS = "completion_ids"  # the one extra that has a value for each response

Reduce = Literal["sum", "mean"]
"""How weighted scores become one: their sum, or the sum divided by the sum of |weight|."""


class Combinator(ABC):
    """What all rewards made of rewards share.

    Args:
        parts: Name -> weight, reward or all of it, as in a run's ``rewards``.

    Raises:
        ConfigError: A part is wrong, or has a setting that only the outermost sum has.
    """

    __name__ = "combinator"

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.combined = make_rewards(parts)
        self.renormalise = self.combined.renormalise
        for name, part in self.combined.parts.items():
            if part.schedule.changes or part.spec.normalise != "none":
                raise ConfigError(
                    f"part {name!r} of a {self.__name__}: a weight that changes and normalise "
                    "belong to the outermost rewards of a run; expected neither of them here."
                )

    def score_parts(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> PartScores:
        """Scores B responses; what each part said is under ``parts`` of the result."""
        batch = _Batch(prompts, completions, columns)
        scores_B = self.total(batch)
        status, messages = _outcomes(scores_B, batch.scored)
        usable_B = np.array([s is Status.SCORED for s in status], dtype=bool)
        scores_B = np.where(usable_B, scores_B, math.nan)
        return PartScores(scores_B, status, messages, 0.0, batch.scored)

    @abstractmethod
    def total(self, batch: _Batch) -> np.ndarray:
        """Scores the parts of a batch and returns (B,) totals, NaN where nothing applies."""

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        """Scores B responses as a plain reward function, for instance in TRL's trainers.

        What a trainer passes beside columns (its state, its loggers) is not per sample and does not
        reach the parts.

        Raises:
            RewardError: A part failed: a list of numbers cannot say so in another way.
        """
        own = {name: v for name, v in columns.items() if name not in EXTRAS or name == _TOKEN_IDS}
        scored = self.score_parts(prompts, completions, own)
        for status, message in zip(scored.status, scored.messages, strict=True):
            if status.failed:
                raise RewardError(f"reward {self.__name__!r}: {message}.")
        return [None if math.isnan(score) else float(score) for score in scored.scores]

    @property
    def required_columns(self) -> set[str]:
        """Columns that the parts need."""
        return self.combined.required_columns

    def check_columns(self, available: Mapping[str, Any] | Sequence[str]) -> None:
        """Raises DataError when a part needs a column that is not there."""
        self.combined.check_columns(available)

    def check_extras(self, available: Mapping[str, Any]) -> None:
        """Raises DataError when a part needs token ids or the like that are not there."""
        self.combined.check_extras(available)

    def plain_options(self) -> dict[str, Any]:
        """The option ``parts`` in a form that a configuration can hold."""
        return {"parts": self.combined.spec}

    def identity(self) -> dict[str, str]:
        """What the scores of the parts depend on, by name; see ``BoundReward.identity``."""
        return self.combined.identity()

    def close(self) -> None:
        """Ends worker processes and closes caches of the parts."""
        self.combined.close()

    def state_dict(self) -> dict[str, Any]:
        """State of the parts that keep any."""
        return self.combined.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.combined.load_state_dict(state)

    def _refuse_weights(self) -> None:
        for name, weight in self.combined.weights.items():
            if weight not in (0.0, 1.0):
                raise ConfigError(
                    f"part {name!r} of a {self.__name__} has the weight {weight:g}: expected 1, or "
                    "0 for a part that is only recorded."
                )


class Weighted(Combinator):
    """The weighted sum, or the weighted mean, of several rewards.

    Args:
        parts: As in a run's ``rewards``.
        reduce: ``sum``: Σ w·r over the parts that apply. ``mean``: that sum divided by Σ |w| of
            the same parts, so that the mean of scores in [0, 1] lies in [0, 1].
    """

    __name__ = "weighted"

    def __init__(self, parts: Mapping[str, Any], *, reduce: Reduce = "sum") -> None:
        super().__init__(parts)
        self.reduce = reduce

    def total(self, batch: _Batch) -> np.ndarray:
        """See ``Combinator.total``."""
        for part in self.combined.parts.values():
            batch.score(part)
        return _reduced(batch, self.combined.weights, self.reduce, renormalise=self.renormalise)


class Gate(Combinator):
    """A condition that opens the other rewards, for instance a format before a costly judge.

    Where the condition reaches its threshold, the score is the weighted sum (or mean) of the
    other parts; elsewhere it is ``closed``. Where the condition is not applicable, so is the gate.

    Args:
        parts: As in a run's ``rewards``; the condition is one of them, and its weight is not used.
        condition: Name of that part; None is the first one.
        threshold: Score of the condition from which the gate is open.
        closed: Score of a sample before a closed gate.
        reduce: How the others become one score, see ``Weighted``.
    """

    __name__ = "gate"

    def __init__(
        self,
        parts: Mapping[str, Any],
        *,
        condition: str | None = None,
        threshold: float = 1.0,
        closed: float = 0.0,
        reduce: Reduce = "sum",
    ) -> None:
        super().__init__(parts)
        names = self.combined.names
        self.condition = names[0] if condition is None else condition
        if self.condition not in names:
            raise ConfigError(unknown_name("condition of a gate", str(condition), names))
        if len(names) < 2:
            raise ConfigError(
                f"a gate has the part {names[0]!r} alone: expected a condition and at least one "
                "reward that it opens."
            )
        self.threshold, self.closed, self.reduce = threshold, closed, reduce

    def total(self, batch: _Batch) -> np.ndarray:
        """See ``Combinator.total``."""
        condition_B = batch.score(self.combined.parts[self.condition])
        open_B = condition_B >= self.threshold  # False for NaN
        weights = {n: w for n, w in self.combined.weights.items() if n != self.condition}
        for name in weights:
            batch.score(self.combined.parts[name], open_B)
        opened_B = _reduced(batch, weights, self.reduce, renormalise=self.renormalise)
        return np.where(open_B, opened_B, np.where(np.isnan(condition_B), math.nan, self.closed))


class Ordered(Combinator):
    """Rewards in steps (``sequence``): a part counts only where all earlier ones were good enough.

    The first part always counts. A part that stays below the threshold still counts itself, those
    behind it count as 0. A part that does not apply lets a sample pass.

    Args:
        parts: As in a run's ``rewards``, in their order.
        threshold: Score that opens the next step; one number, or a mapping from part to number
            (1.0 for those not named).
        reduce: ``sum``: Σ w·r. ``mean``: that divided by Σ |w| of all parts, reached or not, less
            those that do not apply.
    """

    __name__ = "sequence"

    def __init__(
        self,
        parts: Mapping[str, Any],
        *,
        threshold: float | dict[str, float] = 1.0,
        reduce: Reduce = "sum",
    ) -> None:
        super().__init__(parts)
        given = threshold if isinstance(threshold, Mapping) else {}
        for name in given:
            if name not in self.combined.names:
                raise ConfigError(unknown_name("part with a threshold", name, self.combined.names))
        same = 1.0 if isinstance(threshold, Mapping) else threshold
        self.thresholds = {name: given.get(name, same) for name in self.combined.names}
        self.reduce = reduce

    def total(self, batch: _Batch) -> np.ndarray:
        """See ``Combinator.total``."""
        going_B = np.ones(len(batch.completions), dtype=bool)
        unreached: dict[str, np.ndarray] = {}
        for name, part in self.combined.parts.items():
            unreached[name] = ~going_B
            scores_B = batch.score(part, going_B)
            passed = [s is Status.NOT_APPLICABLE for s in batch.scored[name].status]
            going_B = going_B & ((scores_B >= self.thresholds[name]) | np.array(passed, bool))
        return _reduced(
            batch,
            self.combined.weights,
            self.reduce,
            renormalise=self.renormalise,
            zeros=unreached,
        )


class Minimum(Combinator):
    """The lowest score of several rewards: all of them have to be good.

    Args:
        parts: As in a run's ``rewards``; a weight of 0 only records.
    """

    __name__ = "minimum"

    def __init__(self, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        self._refuse_weights()

    def total(self, batch: _Batch) -> np.ndarray:
        """See ``Combinator.total``."""
        scores_KB = _counted(self.combined, batch)
        empty_B = np.isnan(scores_KB).all(0)
        lowest_B = np.where(np.isnan(scores_KB), math.inf, scores_KB).min(0)
        return np.where(empty_B, math.nan, lowest_B)


class Product(Combinator):
    """The product of several rewards.

    Args:
        parts: As in a run's ``rewards``; a weight of 0 only records.
    """

    __name__ = "product"

    def __init__(self, parts: Mapping[str, Any]) -> None:
        super().__init__(parts)
        self._refuse_weights()

    def total(self, batch: _Batch) -> np.ndarray:
        """See ``Combinator.total``."""
        scores_KB = _counted(self.combined, batch)
        with np.errstate(over="ignore", invalid="ignore"):
            product_B = np.where(np.isnan(scores_KB), 1.0, scores_KB).prod(0)
        return np.where(np.isnan(scores_KB).all(0), math.nan, product_B)


class _Batch:
    """B responses, and what the parts of a combinator said to them."""

    def __init__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> None:
        self.prompts, self.completions, self.columns = prompts, completions, columns
        self.scored: dict[str, PartScores] = {}

    def score(self, part: Part, where_B: np.ndarray | None = None) -> np.ndarray:
        """Scores all responses, or some of them; returns (B,) scores, NaN where there is none."""
        size = len(self.completions)
        rows = list(range(size)) if where_B is None else np.flatnonzero(where_B).tolist()
        start = time.perf_counter()
        result = PartScores(
            np.full(size, math.nan), [Status.NOT_APPLICABLE] * size, [""] * size, 0.0
        )
        if rows:
            asked = part.score(
                [self.prompts[i] for i in rows],
                [self.completions[i] for i in rows],
                {name: [values[i] for i in rows] for name, values in self.columns.items()},
            )
            result = asked.spread(rows, size)
        result.seconds = time.perf_counter() - start
        self.scored[part.name] = result
        return result.scores


def _counted(combined: CombinedReward, batch: _Batch) -> np.ndarray:
    """Scores every part; returns (K, B) scores, NaN where one does not apply or only records."""
    scores_KB = np.stack([batch.score(part) for part in combined.parts.values()])
    counts_KB = counted(scores_KB, np.array(list(combined.weights.values())))
    return np.where(counts_KB, scores_KB, math.nan)


def _reduced(
    batch: _Batch,
    weights: Mapping[str, float],
    reduce: Reduce,
    *,
    renormalise: bool,
    zeros: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Weighted sum or mean over the parts that apply, (B,), NaN where none with a weight does.

    Args:
        batch: Scores by part.
        weights: Part -> weight.
        reduce: Sum or mean.
        renormalise: Whether a sum leaves the weight of parts that do not apply to the others.
        zeros: Part -> (B,) bool, samples on which it counts as 0.
    """
    scores_KB = np.stack([batch.scored[name].scores for name in weights])
    if zeros:
        scores_KB = np.where(np.stack([zeros[name] for name in weights]), 0.0, scores_KB)
    weights_K = np.array(list(weights.values()))
    return weighted_sum(scores_KB, weights_K, renormalise=renormalise, mean=reduce == "mean")


def _outcomes(
    scores_B: np.ndarray, scored: Mapping[str, PartScores]
) -> tuple[list[Status], list[str]]:
    """What became of each sample: failed as its first failed part, n/a, or scored."""
    status: list[Status] = []
    messages: list[str] = []
    for i, score in enumerate(scores_B):
        failed = next(((n, p) for n, p in scored.items() if p.status[i].failed), None)
        if failed is not None:
            status.append(failed[1].status[i])
            messages.append(f"its part {failed[0]!r} failed: {failed[1].messages[i]}")
        elif math.isinf(score):
            status.append(Status.OUT_OF_RANGE)
            messages.append("its parts together are beyond the largest number")
        else:
            status.append(Status.NOT_APPLICABLE if math.isnan(score) else Status.SCORED)
            messages.append("")
    return status, messages

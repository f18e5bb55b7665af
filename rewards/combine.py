"""The weighted sum of several rewards: what a config's ``rewards`` means, and scoring with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from instructrec.errors import CheckpointError, ConfigError, DataError
from instructrec.rewards.base import RewardBatch, Status
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.parts import Part, RewardSpec, make_part
from instructrec.rewards.registry import find_reward
from instructrec.rewards.scaling import RELATIVE
from instructrec.rewards.scoring import PartScores

__all__ = ["CombinedReward", "RewardSpec", "make_rewards", "weighted_total"]

_RENORMALISE = "renormalise"
_MEMORY = "total"  # no part is called so: in a state it stands for what the sum itself remembers


def make_rewards(
    value: str | Callable[..., Any] | Mapping[str, Any] | CombinedReward,
) -> CombinedReward:
    """Makes the rewards of a run.

    Args:
        value: One reward (a registered name, ``module:attr``, ``file.py:attr`` or a function), or a
            mapping of part name to a number (weight of the registered reward of that name), a
            string (that reward, weight 1), a function, a ``RewardSpec``, or a mapping with the keys
            of one. In the mapping, ``renormalise: true`` scales the total of a sample up to the
            full weight when parts of it do not apply.

    Raises:
        ConfigError: When a name, key, weight or option is wrong.
    """
    if isinstance(value, CombinedReward):
        return value
    if isinstance(value, str) or callable(value):
        found = value if isinstance(value, BoundReward) else BoundReward(find_reward(value), {})
        return CombinedReward([Part(found.__name__, found)])
    if not isinstance(value, Mapping) or not set(value) - {_RENORMALISE}:
        raise ConfigError(
            f"rewards = {value!r}: expected the name of a reward or a mapping such as "
            "{'exact_match': 1.0, 'bleu': 0.5}."
        )
    renormalise = value.get(_RENORMALISE, False)
    if not isinstance(renormalise, bool):
        raise ConfigError(f"rewards.{_RENORMALISE} = {renormalise!r}: expected true or false.")
    parts = [make_part(name, v) for name, v in value.items() if name != _RENORMALISE]
    return CombinedReward(parts, renormalise=renormalise)


class CombinedReward:
    """A weighted sum of rewards that keeps every part apart.

    Let A be the parts that apply to a sample. Its total is Σ_{k∈A} w_k·r_k; with ``renormalise`` it
    is multiplied by Σ_k |w_k| / Σ_{k∈A} |w_k|. A sample has no total (NaN) when a part failed on
    it, or when none applies; a part of weight 0 has no say in either, unless all weights are 0.

    Where weights change with the update, ``weights`` are those at the end, so that evaluations can
    be compared; ``at_update`` gives the sum that one update of a training learns from. It alone
    normalises scores, for the same reason.

    Args:
        parts: The rewards, with their weights and settings.
        renormalise: Whether parts that do not apply leave their weight to the others.
        update: The update of a training that this sum belongs to; None outside of a training.

    Raises:
        ConfigError: When there are no parts.
    """

    def __init__(
        self, parts: Sequence[Part], *, renormalise: bool = False, update: float | None = None
    ) -> None:
        if not parts:
            raise ConfigError("a combined reward needs at least one reward.")
        self.parts = {part.name: part for part in parts}
        """The rewards by name, in the order given."""
        self.renormalise = renormalise
        self.update = update
        at = math.inf if update is None else update
        self.weights = {part.name: part.schedule.at(at) for part in parts}
        """Factor of each part in the total."""
        self.defers = False
        """Whether a training normalises later, when it has the scores of several processes."""

    @property
    def changes(self) -> bool:
        """Whether a weight depends on the update."""
        return self.update is None and any(p.schedule.changes for p in self.parts.values())

    @property
    def normalises(self) -> list[str]:
        """Names of the parts whose scores training normalises."""
        return [name for name, p in self.parts.items() if p.spec.normalise != "none"]

    @property
    def compares(self) -> list[str]:
        """Those of them whose scores are held against the other scores of a batch."""
        return [name for name in self.normalises if self.parts[name].spec.normalise in RELATIVE]

    @property
    def failing_batches(self) -> dict[str, int]:
        """Of each part, batches of the training in a row in which it failed on a sample."""
        return {name: part.failing_batches for name, part in self.parts.items()}

    def at_update(self, update: float) -> CombinedReward:
        """Returns the sum that an update of a training learns from; what it remembers is shared.

        Args:
            update: The first one of a run is 1; ``math.inf`` gives the weights at the end. A sum
                that belongs to an update already keeps its weights.
        """
        fixed = update if self.update is None else self.update
        return CombinedReward(list(self.parts.values()), renormalise=self.renormalise, update=fixed)

    @property
    def names(self) -> list[str]:
        """Names of the parts, in the order given."""
        return list(self.parts)

    @property
    def required_columns(self) -> set[str]:
        """Columns that the data must have."""
        return {c for part in self.parts.values() for c in part.reward.required_columns}

    def check_columns(self, available: Mapping[str, Any] | Sequence[str]) -> None:
        """Raises DataError when a part needs a column that is not among ``available``.

        Lets a run with the wrong data end before its first response is produced.
        """
        for part in self.parts.values():
            part.reward.check_columns(available)

    def check_extras(self, available: Mapping[str, Any]) -> None:
        """Raises DataError when a part needs token ids or the like that are not there."""
        for part in self.parts.values():
            part.reward.check_extras(available)

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
        extras: Mapping[str, Sequence[Any]] | None = None,
    ) -> RewardBatch:
        """Scores B responses, calling every part once for the whole batch.

        Args:
            prompts: B instructions, each a string or a list of chat messages.
            completions: B responses, each a string or a list of chat messages.
            columns: The data's other columns, each of length B.
            extras: What the policy knows about each response (``completion_ids``), each of
                length B, for rewards that ask for it.

        Raises:
            DataError: When a column is missing or not of length B.
            RewardError: When a part breaks its contract (wrong number or type of scores).
        """
        given = {**columns, **(extras or {})}
        _check_lengths(len(completions), {"prompts": prompts, **given})
        self.check_columns(given)
        self.check_extras(given)
        if not len(completions):
            scored = {name: PartScores(np.empty(0), [], [], 0.0) for name in self.parts}
        else:
            scored = {
                name: part.score(prompts, completions, given) for name, part in self.parts.items()
            }
        total = weighted_total(scored, self.weights, renormalise=self.renormalise)
        flat = _flat(scored)
        batch = RewardBatch(
            total=total,
            parts={name: part.scores for name, part in flat.items()},
            status={name: part.status for name, part in flat.items()},
            messages={name: part.messages for name, part in flat.items()},
            seconds={name: part.seconds for name, part in flat.items()},
            flags={name: part.flags for name, part in flat.items() if part.flags},
            recorded=tuple(recorded_only(self.weights)),
        )
        if self.update is not None:  # a batch of the training is remembered
            for name, part in self.parts.items():
                if name not in batch.recorded:
                    part.note_failures(scored[name])
            if self.normalises and not self.defers:
                batch.normalised = self.normalised(batch, prompts)
        return batch

    def normalised(self, batch: RewardBatch, prompts: Sequence[Any]) -> np.ndarray:
        """Totals of a batch by the normalised scores of its parts, of which ``running`` takes note.

        Args:
            batch: Raw scores of B responses; a total that is not finite marks its parts as failed.
            prompts: B instructions.

        Returns:
            (B,) float64, NaN where a sample has no total.
        """
        scaled = {
            name: PartScores(
                part.normalised(batch.parts[name], prompts),
                batch.status[name],
                batch.messages[name],
                0.0,
            )
            for name, part in self.parts.items()
        }
        return weighted_total(scaled, self.weights, renormalise=self.renormalise)

    def identity(self) -> dict[str, str]:
        """What the scores of each part depend on, by name; see ``BoundReward.identity``."""
        return {name: part.reward.identity() for name, part in self.parts.items()}

    @property
    def spec(self) -> dict[str, Any]:
        """Plain mapping from which ``make_rewards`` makes an equal reward in another process.

        Raises:
            ConfigError: When a part is a function that no other process can import.
        """
        spec: dict[str, Any] = {name: part.plain() for name, part in self.parts.items()}
        return {**spec, _RENORMALISE: True} if self.renormalise else spec

    def describe(self) -> str:
        """Returns the sum as one line, e.g. ``1 × exact_match + 0.5 × bleu(tokenize='char')``."""
        terms = (
            f"{p.schedule if self.update is None else format(self.weights[n], 'g')} × "
            f"{p.reward.describe()}"
            for n, p in self.parts.items()
        )
        return " + ".join(terms) + (" (renormalised)" if self.renormalise else "")

    def state_dict(self) -> dict[str, Any]:
        """State of the parts that keep any, by name; empty when none does."""
        states = {name: part.reward.state_dict() for name, part in self.parts.items()}
        memory = {name: part.state_dict() for name, part in self.parts.items()}
        states[_MEMORY] = {name: state for name, state in memory.items() if state}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        Raises:
            CheckpointError: When the state belongs to a part that this reward does not have.
        """
        memory = state.get(_MEMORY, {})
        for name in (*memory, *(name for name in state if name != _MEMORY)):
            if name not in self.parts:
                raise CheckpointError(
                    f"the checkpoint holds state of the reward {name!r}, which this run does not "
                    f"have (it has {', '.join(self.names)}); continue with the same rewards."
                )
        for name, part in self.parts.items():
            part.load_state_dict(memory.get(name, {}))
            part.reward.load_state_dict(state.get(name, {}))

    def close(self) -> None:
        """Ends worker processes and closes caches; scoring again opens them again."""
        for part in self.parts.values():
            part.close()

    def __repr__(self) -> str:
        return f"<{self.describe()}>"


def weighted_total(
    scored: Mapping[str, PartScores], weights: Mapping[str, float], *, renormalise: bool
) -> np.ndarray:
    """Sums the parts of each sample; the formula is in ``CombinedReward``.

    A sum beyond the largest float marks the sample's parts as out of range.

    Args:
        scored: Part -> scores of B samples.
        weights: Part -> weight.
        renormalise: Whether parts that do not apply leave their weight to the others.

    Returns:
        (B,) float64, NaN where a sample has no total.
    """
    scores_KB = np.stack([part.scores for part in scored.values()])
    weights_K = np.array([weights[name] for name in scored])
    total_B = weighted_sum(scores_KB, weights_K, renormalise=renormalise)
    failed_B = np.zeros(scores_KB.shape[1], bool)
    aside = recorded_only(weights)
    for (name, part), applies_B in zip(scored.items(), ~np.isnan(scores_KB), strict=True):
        for i in np.flatnonzero(~applies_B):  # what failed has no score
            failed_B[i] |= part.status[i].failed and name not in aside
    counts_KB = counted(scores_KB, weights_K)
    for i in np.flatnonzero(~failed_B & counts_KB.any(0) & ~np.isfinite(total_B)):
        for part, counts in zip(scored.values(), counts_KB[:, i], strict=True):
            if counts:
                part.status[i] = Status.OUT_OF_RANGE
                score = part.scores[i]
                part.messages[i] = f"the weighted sum with a score of {score:g} is not finite"
                part.scores[i] = math.nan
    return np.where(failed_B | ~np.isfinite(total_B), math.nan, total_B)


def recorded_only(weights: Mapping[str, float]) -> list[str]:
    """Names of the parts of weight 0; none where every weight is 0, as in ``counted``."""
    return [name for name, w in weights.items() if w == 0] if any(weights.values()) else []


def counted(scores_KB: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """Which scores stand behind a total, (K, B) bool: those that apply and have a weight.

    A weight of 0 only records. Where every weight is 0 nothing is trained on and all count.
    """
    applies_KB = ~np.isnan(scores_KB)
    return applies_KB & (weights_K[:, None] != 0) if weights_K.any() else applies_KB


def weighted_sum(
    scores_KB: np.ndarray,
    weights_K: np.ndarray,
    *,
    renormalise: bool = False,
    mean: bool = False,
) -> np.ndarray:
    """Weighted sum of the scores that apply.

    Args:
        scores_KB: Scores of K parts on B samples, NaN where a part does not apply.
        weights_K: Their weights.
        renormalise: Multiply by Σ_k |w_k| / Σ_{k applies} |w_k|.
        mean: Divide by Σ_{k applies} |w_k| instead.

    Returns:
        (B,) float64, NaN where no part counts; possibly infinite.
    """
    weights_K1 = weights_K[:, None]
    applies_KB = ~np.isnan(scores_KB)
    size_B = (np.abs(weights_K1) * applies_KB).sum(0)
    scale = 1.0 if mean else np.abs(weights_K1).sum()
    with np.errstate(over="ignore", invalid="ignore"):
        total_B = np.where(applies_KB, weights_K1 * np.nan_to_num(scores_KB), 0.0).sum(0)
        if mean or renormalise:
            total_B = total_B * (scale / np.where(size_B > 0, size_B, 1.0))
    return np.where(counted(scores_KB, weights_K).any(0), total_B, math.nan)


def _flat(scored: Mapping[str, PartScores], prefix: str = "") -> dict[str, PartScores]:
    """Parts and the parts inside them, which are called ``outer.inner``."""
    flat: dict[str, PartScores] = {}
    for name, part in scored.items():
        flat[prefix + name] = part
        flat |= _flat(part.parts, f"{prefix}{name}.")
    return flat


def _check_lengths(size: int, columns: Mapping[str, Sequence[Any]]) -> None:
    for name, values in columns.items():
        if isinstance(values, str) or len(values) != size:
            raise DataError(
                f"{name} has {len(values)} values for {size} completions; expected one each."
            )

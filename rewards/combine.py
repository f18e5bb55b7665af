"""The weighted sum of several rewards: what a config's ``rewards`` means, and scoring with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from instructrec.errors import CheckpointError, ConfigError, DataError, did_you_mean
from instructrec.rewards.base import RewardBatch, Status
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.registry import check_name, find_reward, spec_text
from instructrec.rewards.schedule import WeightSchedule, parse_weight
from instructrec.rewards.scoring import PartScores, score_part

_RENORMALISE = "renormalise"


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a weighted sum, in full."""

    use: str | None = None
    """Registered name, module:attr or file.py:attr; the part's own name when not given."""
    weight: float | dict[int, float] = 1.0
    """Factor in the total; 0 only records; {1: 0.0, 20: 1.0} moves in straight lines by update."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the reward, by name."""


def make_rewards(
    value: str | Callable[..., Any] | Mapping[str, Any] | CombinedReward,
) -> CombinedReward:
    """Makes the rewards of a run.

    Args:
        value: One reward (a registered name, ``module:attr``, ``file.py:attr`` or a function), or a
            mapping of part name to a number (weight of the registered reward of that name), a
            string (that reward, weight 1), a function, a ``RewardSpec``, or a mapping with the keys
            ``use``, ``weight`` and ``options``. In the mapping, ``renormalise: true`` scales the
            total of a sample up to the full weight when parts of it do not apply.

    Raises:
        ConfigError: When a name, key, weight or option is wrong.
    """
    if isinstance(value, CombinedReward):
        return value
    if isinstance(value, str) or callable(value):
        found = value if isinstance(value, BoundReward) else BoundReward(find_reward(value), {})
        return CombinedReward({found.__name__: (found, 1.0)})
    if not isinstance(value, Mapping) or not set(value) - {_RENORMALISE}:
        raise ConfigError(
            f"rewards = {value!r}: expected the name of a reward or a mapping such as "
            "{'exact_match': 1.0, 'bleu': 0.5}."
        )
    renormalise = value.get(_RENORMALISE, False)
    if not isinstance(renormalise, bool):
        raise ConfigError(f"rewards.{_RENORMALISE} = {renormalise!r}: expected true or false.")
    parts = {name: _make_part(name, v) for name, v in value.items() if name != _RENORMALISE}
    return CombinedReward(parts, renormalise=renormalise)


class CombinedReward:
    """A weighted sum of rewards that keeps every part apart.

    Let A be the parts that apply to a sample. Its total is Σ_{k∈A} w_k·r_k; with ``renormalise`` it
    is multiplied by Σ_k |w_k| / Σ_{k∈A} |w_k|. A sample has no total (NaN) when any part failed on
    it, or when no part with a weight other than 0 applies.

    Where weights change with the update, ``weights`` are those at the end, so that evaluations can
    be compared; ``at_update`` gives the sum of one update.

    Args:
        parts: Name -> (reward, weight), a weight being a number or a mapping from updates to
            numbers.
        renormalise: Whether parts that do not apply leave their weight to the others.

    Raises:
        ConfigError: When there are no parts, or a name or weight cannot be used.
    """

    def __init__(
        self, parts: Mapping[str, tuple[BoundReward, Any]], *, renormalise: bool = False
    ) -> None:
        if not parts:
            raise ConfigError("a combined reward needs at least one reward.")
        self._rewards: dict[str, BoundReward] = {}
        self._schedules: dict[str, WeightSchedule] = {}
        self.renormalise = renormalise
        for name, (reward, weight) in parts.items():
            check_name(name)
            self._rewards[name] = reward
            self._schedules[name] = parse_weight(name, weight)
        self.weights = {name: schedule.last for name, schedule in self._schedules.items()}
        """Factor of each part in the total."""

    @property
    def changes(self) -> bool:
        """Whether a weight depends on the update."""
        return any(schedule.changes for schedule in self._schedules.values())

    def at_update(self, update: float) -> CombinedReward:
        """Returns the sum of the same rewards with the weights of an update.

        Args:
            update: The first one of a run is 1; ``math.inf`` gives the weights at the end.
        """
        parts = {
            name: (self._rewards[name], schedule.at(update))
            for name, schedule in self._schedules.items()
        }
        return CombinedReward(parts, renormalise=self.renormalise)

    @property
    def names(self) -> list[str]:
        """Names of the parts, in the order given."""
        return list(self._rewards)

    @property
    def required_columns(self) -> set[str]:
        """Columns that the data must have."""
        return {c for reward in self._rewards.values() for c in reward.required_columns}

    def check_columns(self, available: Sequence[str]) -> None:
        """Raises DataError when a part needs a column that is not among ``available``.

        Lets a run with the wrong data end before its first response is produced.
        """
        for reward in self._rewards.values():
            reward.check_columns(available)

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
        for reward in self._rewards.values():
            reward.check_columns(given)
            reward.check_extras(given)
        if not len(completions):
            scored = {name: PartScores(np.empty(0), [], [], 0.0) for name in self._rewards}
        else:
            scored = {
                name: score_part(reward, prompts, completions, given)
                for name, reward in self._rewards.items()
            }
        total = weighted_total(scored, self.weights, renormalise=self.renormalise)
        return RewardBatch(
            total=total,
            parts={name: part.scores for name, part in scored.items()},
            status={name: part.status for name, part in scored.items()},
            messages={name: part.messages for name, part in scored.items()},
            seconds={name: part.seconds for name, part in scored.items()},
        )

    @property
    def spec(self) -> dict[str, Any]:
        """Plain mapping from which ``make_rewards`` makes an equal reward in another process.

        Raises:
            ConfigError: When a part is a function that no other process can import.
        """
        spec: dict[str, Any] = {name: self._part_spec(name) for name in self._rewards}
        return {**spec, _RENORMALISE: True} if self.renormalise else spec

    def describe(self) -> str:
        """Returns the sum as one line, e.g. ``1 × exact_match + 0.5 × bleu(tokenize='char')``."""
        terms = (f"{self._schedules[n]} × {r.describe()}" for n, r in self._rewards.items())
        return " + ".join(terms) + (" (renormalised)" if self.renormalise else "")

    def state_dict(self) -> dict[str, Any]:
        """State of the parts that keep any, by name; empty when none does."""
        states = {name: reward.state_dict() for name, reward in self._rewards.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        Raises:
            CheckpointError: When the state belongs to a part that this reward does not have.
        """
        for name in state:
            if name not in self._rewards:
                raise CheckpointError(
                    f"the checkpoint holds state of the reward {name!r}, which this run does not "
                    f"have (it has {', '.join(self.names)}); continue with the same rewards."
                )
        for name, part in state.items():
            self._rewards[name].load_state_dict(part)

    def __repr__(self) -> str:
        return f"<{self.describe()}>"

    def _part_spec(self, name: str) -> float | dict[str, Any]:
        reward, schedule = self._rewards[name], self._schedules[name]
        use = spec_text(reward.info.target)
        if use == name and not reward.options and not schedule.changes:
            return schedule.last
        options = {"options": reward.options} if reward.options else {}
        return {"use": use, "weight": schedule.value(), **options}


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
    names = list(scored)
    scores_KB = np.stack([scored[name].scores for name in names])
    weights_K1 = np.array([weights[name] for name in names])[:, None]
    applies_KB = ~np.isnan(scores_KB)
    failed_B = np.zeros(scores_KB.shape[1], bool)
    for k, i in np.argwhere(~applies_KB):  # what failed has no score
        failed_B[i] |= scored[names[k]].status[i].failed
    size_KB = np.abs(weights_K1) * applies_KB
    with np.errstate(over="ignore", invalid="ignore"):
        total_B = np.where(applies_KB, weights_K1 * np.nan_to_num(scores_KB), 0.0).sum(0)
        if renormalise:
            total_B = (
                total_B
                * np.abs(weights_K1).sum()
                / np.where(size_KB.sum(0) > 0, size_KB.sum(0), 1.0)
            )
    # Weight 0 only records. Where every weight is 0 nothing is trained on and the total is 0.
    counts_KB = applies_KB & (weights_K1 != 0) if weights_K1.any() else applies_KB
    empty_B = failed_B | ~counts_KB.any(0)
    for i in np.flatnonzero(~empty_B & ~np.isfinite(total_B)):
        for k in np.flatnonzero(counts_KB[:, i]):
            part = scored[names[k]]
            part.status[i] = Status.OUT_OF_RANGE
            part.messages[i] = f"the weighted sum with a score of {part.scores[i]:g} is not finite"
            part.scores[i] = math.nan
    return np.where(empty_B | ~np.isfinite(total_B), math.nan, total_B)


def _make_part(name: Any, value: Any) -> tuple[BoundReward, Any]:
    check_name(name)
    if isinstance(value, RewardSpec):
        value = asdict(value)
    if isinstance(value, bool) or value is None:
        raise ConfigError(_bad_part(name, value))
    if isinstance(value, int | float):
        return _named(name, name, {}), float(value)
    if isinstance(value, BoundReward):
        return value, 1.0
    if isinstance(value, str) or callable(value):
        return _named(name, value, {}), 1.0
    if not isinstance(value, Mapping):
        raise ConfigError(_bad_part(name, value))
    known = [f.name for f in fields(RewardSpec)]
    for key in value:
        if key not in known:
            raise ConfigError(
                f"rewards.{name} has the unknown key {key!r}.{did_you_mean(str(key), known)} "
                f"Keys: {', '.join(known)}. Options of the reward itself go under options."
            )
    options = value.get("options") or {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"rewards.{name}.options = {options!r}: expected a mapping.")
    return _named(name, value.get("use") or name, options), value.get("weight", 1.0)


def _named(name: str, use: Any, options: Mapping[str, Any]) -> BoundReward:
    """Makes a reward that calls itself what the config calls it."""
    return BoundReward(replace(find_reward(use), name=name), options)


def _bad_part(name: str, value: Any) -> str:
    return (
        f"rewards.{name} = {value!r}: expected a number (the weight), the reward as a string "
        "(weight 1), or a mapping with the keys use, weight and options."
    )


def _check_lengths(size: int, columns: Mapping[str, Sequence[Any]]) -> None:
    for name, values in columns.items():
        if isinstance(values, str) or len(values) != size:
            raise DataError(
                f"{name} has {len(values)} values for {size} completions; expected one each."
            )

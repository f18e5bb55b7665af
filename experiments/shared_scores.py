"""Which scores of several evaluations mean the same, and can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructrec.experiments.evaluation import Evaluation


def shared_scores(evaluations: Sequence[Evaluation]) -> list[str]:
    """Names of the scores that all evaluations have and that mean the same in each.

    A reward means the same where its settings are the same, whatever its weight; the total only
    where all rewards and their weights are.

    Args:
        evaluations: At least one.

    Returns:
        ``total``, if it means the same, and the names of rewards and of their parts in the order
        of the first evaluation.
    """
    first, *others = evaluations
    rewards = _rewards(first)
    total = ["total"] if all(_rewards(other) == rewards for other in others) else []
    return total + [
        part
        for part in first.parts
        if all(part in other.parts and _same(part, rewards, _rewards(other)) for other in others)
    ]


def _rewards(evaluation: Evaluation) -> Mapping[str, Any]:
    return evaluation.header.get("reward") or {}


def _same(part: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the reward of a part (``name`` or ``name.part``) has the same settings."""
    name = part.split(".", maxsplit=1)[0]
    return _unweighted(one.get(name)) == _unweighted(other.get(name))


def _unweighted(settings: Any) -> Any:
    if isinstance(settings, float | int) and not isinstance(settings, bool):  # a weight alone
        return {}
    if isinstance(settings, Mapping):
        return {key: value for key, value in settings.items() if key != "weight"}
    return settings

"""Which scores of several evaluations mean the same, and can be compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructrec.experiments.evaluation import Evaluation

_ANY_TOTAL = ("instruction", "chat", "tool")
"""Environments whose episodes are the same whatever the total is."""


def shared_scores(evaluations: Sequence[Evaluation]) -> list[str]:
    """Names of the scores that all evaluations have and that mean the same in each.

    A reward means the same where it is the same one with the same options, whatever its weight; the
    total only where all settings of all rewards are. Where a total decides how an episode goes on,
    as in `Refine-v0`, other rewards make other episodes, and nothing is shared.

    Args:
        evaluations: At least one.

    Returns:
        ``total``, if it means the same, and the names of rewards and of their parts in the order
        of the first evaluation.
    """
    first, *others = evaluations
    rewards = _rewards(first)
    total = ["total"] if all(_rewards(other) == rewards for other in others) else []
    if not total and any(_kind(evaluation) not in _ANY_TOTAL for evaluation in evaluations):
        return []
    return total + [
        part
        for part in first.parts
        if all(part in other.parts and _same(part, rewards, _rewards(other)) for other in others)
    ]


def _kind(evaluation: Evaluation) -> str:
    return str((evaluation.header.get("episodes") or {}).get("env", "instruction"))


def _rewards(evaluation: Evaluation) -> Mapping[str, Any]:
    return evaluation.header.get("reward") or {}


def _same(part: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the reward of a part (``name`` or ``name.part``) is the same one."""
    name = part.split(".", maxsplit=1)[0]
    return _scored_by(name, one.get(name)) == _scored_by(name, other.get(name))


def _scored_by(name: str, settings: Any) -> Any:
    """What a score depends on; not its weight, nor how training scales it or where it runs."""
    if isinstance(settings, float | int):  # a weight alone
        settings = {}
    if not isinstance(settings, Mapping):
        return settings
    options = settings.get("options") or {}
    return settings.get("use") or name, options, settings.get("format")

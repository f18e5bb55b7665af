"""Which responses of a rollout show what a monitor saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from instructrec.policies.base import StopReason
from instructrec.rl.monitor_config import MonitorsConfig
from instructrec.rl.reporting import repetitions, top_response
from instructrec.rl.rollout import Rollout

MOST = 3
"""Responses that are shown of one alarm."""

Row = dict[str, Any]
"""One response as the sample log has it."""

Marks = Sequence[float | None]
"""Of each episode how well it shows the trouble, larger is better; None for not at all."""


def rows_that_show(
    monitor: str, rollout: Rollout, rows: Sequence[Row], config: MonitorsConfig
) -> list[Row]:
    """Picks the responses that show a trouble best, each to another instruction.

    Args:
        monitor: Who saw it; one that watches no single response has none to show.
        rollout: The B episodes of the update.
        rows: The same as rows of the sample log, with the numbers of the update.
        config: Names the gold reward.
    """
    if monitor == "proxy_gold_gap":
        marks = _paid_for_nothing(rollout, config.gold)
    elif mark := _MARKS.get(monitor):
        marks = mark(rollout, rows)
    else:
        return []
    worst = sorted((-mark, i) for i, mark in enumerate(marks) if mark is not None)
    chosen: dict[Any, Row] = {}
    for _, i in worst:
        chosen.setdefault(rows[i]["id"], rows[i])
    return list(chosen.values())[:MOST]


def _far_away(rollout: Rollout, rows: Sequence[Row]) -> Marks:
    return [row.get("kl_ref") for row in rows]


def _long(rollout: Rollout, rows: Sequence[Row]) -> Marks:
    return [row["response_len"] for row in rows]


def _short(rollout: Rollout, rows: Sequence[Row]) -> Marks:
    return [-row["response_len"] for row in rows]


def _cut(rollout: Rollout, rows: Sequence[Row]) -> Marks:
    return [0.0 if reason is StopReason.LENGTH else None for reason in rollout.stop_reasons]


def _left_out(rollout: Rollout, rows: Sequence[Row]) -> Marks:
    return [None if kept else 0.0 for kept in rollout.kept]


def _repetitive(rollout: Rollout, rows: Sequence[Row]) -> Marks:
    return [share or None for share in repetitions(rollout)]


def _identical(rollout: Rollout, rows: Sequence[Row]) -> Marks:
    text, _ = top_response(rollout)
    return [0.0 if own.strip() == text else None for own in rollout.texts]


def _first(rollout: Rollout, rows: Sequence[Row]) -> Marks:
    return [0.0] * len(rows)


def _unknown(rollout: Rollout, rows: Sequence[Row]) -> Marks:
    """The largest scores, in absolute value, of those that the reward's model hardly knows."""
    assert rollout.rewards is not None
    marks: list[float | None] = [None] * len(rows)
    for name, flags in rollout.rewards.flags.items():
        for i, is_ood in enumerate(flags.get("ood", ())):
            if is_ood:
                marks[i] = max(marks[i] or 0.0, abs(float(rollout.rewards.parts[name][i])))
    return marks


def _paid_for_nothing(rollout: Rollout, gold: str) -> Marks:
    """Total less gold, each in standard deviations: high where only the former is high."""
    assert rollout.rewards is not None
    marks = np.zeros(len(rollout))
    for sign, scores in ((1, rollout.totals), (-1, rollout.rewards.parts[gold])):
        known = scores[np.isfinite(scores)]
        if not known.size:  # it did not apply to any
            return [None] * len(rollout)
        marks = marks + sign * (scores - known.mean()) / (known.std() or 1.0)
    return [float(mark) if np.isfinite(mark) else None for mark in marks]


_MARKS: dict[str, Callable[[Rollout, Sequence[Row]], Marks]] = {
    "far_from_reference": _far_away,
    "kl_budget": _far_away,
    "entropy_collapse": _first,
    "entropy_explosion": _first,
    "length_growth": _long,
    "length_collapse": _short,
    "repetition": _repetitive,
    "identical_answers": _identical,
    "reward_ood": _unknown,
    "cut_responses": _cut,
    "left_out": _left_out,
    "no_spread": _first,
    "no_variance": _first,
    "nothing_kept": _first,
}

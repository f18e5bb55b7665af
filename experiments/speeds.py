"""How fast a run was: the median of its updates or steps, and in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from instructrec.metrics import axis_value


def median_speeds(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The median of each ``speed/…`` metric over the updates, or steps, that have it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row.items():
            if key.startswith("speed/") and value is not None:
                found.setdefault(key, []).append(value)
    return {key: median(values) for key, values in sorted(found.items())}


def in_words(speeds: Mapping[str, Any]) -> str:
    """Says what of ``speed/…`` is there; empty without tokens per second."""
    if "speed/tokens_per_s" not in speeds:
        return ""
    parts = [f"{speeds['speed/tokens_per_s']:,.0f} tokens/s"]
    if "speed/episodes_per_s" in speeds:
        parts.insert(0, f"{speeds['speed/episodes_per_s']:.2f} episodes/s")
    if "speed/limit_frac" in speeds:
        parts.append(f"{speeds['speed/limit_frac']:.0%} of what this machine could do at most")
    text = ", ".join(parts)
    if "speed/update_flops_per_s" in speeds:
        text += (
            f"; optimizer steps at {speeds['speed/update_flops_per_s'] / 1e9:,.0f} GFLOP/s, "
            f"{speeds['speed/update_limit_frac']:.0%} of its matrix rate"
        )
    if max(speeds.get(f"speed/{name}") or 0 for name in ("limit_frac", "update_limit_frac")) > 1:
        text += " (more than all of it: its rates were measured too low, as when it was busy)"
    return text


def seconds_until(rows: Sequence[Mapping[str, Any]], update: int) -> float:
    """Seconds that the updates (or steps) up to one took, in whatever process they were done.

    Args:
        rows: Rows of ``metrics.jsonl``.
        update: The last one that counts.
    """
    done = [row for row in rows if (axis_value(row) or 0.0) <= update]
    return sum(float(row.get("time/total_s") or row.get("time/update_s") or 0.0) for row in done)

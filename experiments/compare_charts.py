"""The drawings of a comparison's page, as SVG, and text that is safe in it."""

from __future__ import annotations

import html
from typing import Any

from instructrec.experiments.contenders import Comparison, Contender

_WIDTH, _HEIGHT = 640, 220
_COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#a16207", "#4b5563")
_BIDI = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def text(value: object) -> str:
    """Text as HTML; control characters, which could reorder what is read, become visible."""
    shown = "".join(
        c if c in "\n\t" or (c.isprintable() and c not in _BIDI) else f"\\u{ord(c):04x}"
        for c in str(value)
    )
    return html.escape(shown)


def key(i: int) -> str:
    """A mark in the colour of policy number i."""
    return f'<i class=key style="background:{_COLOURS[i % len(_COLOURS)]}"></i>'


def bars(policies: dict[str, dict[str, Any]]) -> str:
    """A bar with its interval for each policy."""
    low, high = _scale(
        min(found["low"] for found in policies.values()),
        max(found["high"] for found in policies.values()),
    )
    left, width = 150, _WIDTH - 220

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * width

    shapes = []
    for i, (name, found) in enumerate(policies.items()):
        y, colour = 8 + 34 * i, _COLOURS[i % len(_COLOURS)]
        start, end = sorted((x(0.0), x(found["mean"])))
        shapes.append(
            f'<text x="{left - 8}" y="{y + 17}" text-anchor="end">{text(_short(name))}</text>'
            f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" height="24" '
            f'fill="{colour}" opacity=".75"/>'
            f'<path d="M{x(found["low"]):.1f} {y + 12}H{x(found["high"]):.1f}" class=error />'
            f'<text x="{x(found["high"]) + 8:.1f}" y="{y + 17}">{found["mean"]:.3f}</text>'
        )
    return _svg("".join(shapes), 34 * len(policies) + 12, "means with 95 % intervals")


def curves(comparison: Comparison) -> str:
    """Mean reward over the updates; the band is the spread of the seeds."""
    curves = [(i, c, _curve(c)) for i, c in enumerate(comparison.contenders)]
    curves = [(i, c, curve) for i, c, curve in curves if len(curve) > 1]
    if not curves:
        return ""
    points = [point for _, _, curve in curves for point in curve]
    low, high = _scale(min(p[1] for p in points), max(p[3] for p in points))
    last = max(p[0] for p in points)

    def place(update: float, value: float) -> str:
        x = 44 + (update - 1) / max(last - 1, 1) * (_WIDTH - 60)
        return f"{x:.1f} {10 + (high - value) / (high - low) * (_HEIGHT - 40):.1f}"

    shapes = [
        f'<text x="40" y="{14}" text-anchor="end">{high:.2g}</text>'
        f'<text x="40" y="{_HEIGHT - 28}" text-anchor="end">{low:.2g}</text>'
        f'<text x="{_WIDTH - 16}" y="{_HEIGHT - 8}" text-anchor="end">update {last:g}</text>'
        f'<path d="M44 10V{_HEIGHT - 30}H{_WIDTH - 16}" class=axis />'
    ]
    legend = []
    for i, contender, curve in curves:
        colour = _COLOURS[i % len(_COLOURS)]
        edge = [place(p[0], p[3]) for p in curve] + [place(p[0], p[1]) for p in reversed(curve)]
        shapes.append(f'<path d="M{"L".join(edge)}Z" fill="{colour}" opacity=".15"/>')
        line = "L".join(place(p[0], p[2]) for p in curve)
        shapes.append(f'<path d="M{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        legend.append(f"{key(i)}{text(contender.name)}")
    caption = (
        "Mean training reward of an update; the band is the smallest to the largest seed. "
        + " ".join(legend)
    )
    return _svg("".join(shapes), _HEIGHT, "learning curves") + f"<p>{caption}</p>"


def distribution(results: dict[str, Any], comparison: Comparison) -> str:
    """Share of instructions up to a score, for each policy."""
    metric = results["metric"]
    ids = [comparison.ids[i] for i in comparison.kept(metric)]
    scores = {c.name: sorted(c.scores(ids, metric).mean(0).tolist()) for c in comparison.contenders}
    low = min(values[0] for values in scores.values())
    high = max(values[-1] for values in scores.values())
    if high <= low:
        return ""

    def place(value: float, share: float) -> str:
        x = 44 + (value - low) / (high - low) * (_WIDTH - 60)
        return f"{x:.1f} {10 + (1 - share) * (_HEIGHT - 40):.1f}"

    shapes = [
        f'<path d="M44 10V{_HEIGHT - 30}H{_WIDTH - 16}" class=axis />'
        f'<text x="44" y="{_HEIGHT - 8}">{low:.2g}</text>'
        f'<text x="{_WIDTH - 16}" y="{_HEIGHT - 8}" text-anchor="end">{high:.2g}</text>'
    ]
    for i, values in enumerate(scores.values()):
        steps = [place(low, 0.0)]
        for number, value in enumerate(values):
            steps += [place(value, number / len(values)), place(value, (number + 1) / len(values))]
        colour = _COLOURS[i % len(_COLOURS)]
        shapes.append(
            f'<path d="M{"L".join(steps)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
    legend = " ".join(f"{key(i)}{text(name)}" for i, name in enumerate(scores))
    return (
        _svg("".join(shapes), _HEIGHT, "cumulative distribution of the scores")
        + f"<p>Share of the instructions whose mean score is at most that. {legend}</p>"
    )


def _curve(contender: Contender) -> list[tuple[float, float, float, float]]:
    """Update, smallest, mean and largest reward over the seeds, where all have that update."""
    runs = [
        {row["train/update"]: row["reward/total/mean"] for row in member.updates
         if row.get("reward/total/mean") is not None}
        for member in contender.members
    ]  # fmt: skip
    shared = sorted(set.intersection(*(set(run) for run in runs)))
    return [
        (u, min(run[u] for run in runs), sum(run[u] for run in runs) / len(runs),
         max(run[u] for run in runs))
        for u in shared
    ]  # fmt: skip


def _scale(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis that holds 0 and these."""
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _svg(content: str, height: int, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{text(label)}">'
        f"{content}</svg>"
    )

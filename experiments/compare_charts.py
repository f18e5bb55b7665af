"""The drawings of a comparison's page."""

from __future__ import annotations

from typing import Any

from instructrec.experiments import drawing
from instructrec.experiments.contenders import Comparison, Contender
from instructrec.experiments.drawing import HEIGHT, WIDTH, Line


def curves(comparison: Comparison) -> str:
    """Mean reward over the updates; the band is the spread of the seeds."""
    found = [
        (c.name, points if len(points := _curve(c)) > 1 else []) for c in comparison.contenders
    ]
    lines = [
        Line(
            name, [(u, mean) for u, _, mean, _ in points], [(u, lo, hi) for u, lo, _, hi in points]
        )
        for name, points in found
    ]
    drawn = drawing.line_chart(lines, "learning curves")
    if not drawn:
        return ""
    told = "<p>Mean training reward of an update; the band is the smallest to the largest seed.</p>"
    return drawn + told


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
        x = 44 + (value - low) / (high - low) * (WIDTH - 60)
        return f"{x:.1f} {10 + (1 - share) * (HEIGHT - 40):.1f}"

    shapes = [
        f'<path d="M44 10V{HEIGHT - 30}H{WIDTH - 16}" class=axis />'
        f'<text x="44" y="{HEIGHT - 8}">{low:.2g}</text>'
        f'<text x="{WIDTH - 16}" y="{HEIGHT - 8}" text-anchor="end">{high:.2g}</text>'
    ]
    for i, values in enumerate(scores.values()):
        steps = [place(low, 0.0)]
        for number, value in enumerate(values):
            steps += [place(value, number / len(values)), place(value, (number + 1) / len(values))]
        shapes.append(
            f'<path d="M{"L".join(steps)}" fill="none" stroke="{drawing.colour(i)}" '
            'stroke-width="2"/>'
        )
    told = "Share of the instructions whose mean score is at most that."
    return (
        drawing.svg("".join(shapes), HEIGHT, "cumulative distribution of the scores")
        + f"<p class=legend>{told} {drawing.legend(dict(enumerate(scores)))}</p>"
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

"""The drawings of a comparison's page."""

from __future__ import annotations

from typing import Any

from instructrec.experiments import drawing
from instructrec.experiments.contenders import Comparison, Contender, Member
from instructrec.experiments.drawing import HEIGHT, WIDTH, Line
from instructrec.experiments.page import text

_EPISODE = " An episode is a response in training, or a demonstration that was shown."


def curves(comparison: Comparison, part: str = "total") -> str:
    """Reward in training and on the validation split; the band is the spread of the seeds.

    Args:
        comparison: The policies.
        part: The score that is drawn: total, or the name of a reward.
    """
    of = "" if part == "total" else f", {part}"
    titles = {
        f"Training reward{of}": f"reward/{part}/mean",
        f"Score on the validation split{of}": f"eval/{part}/mean",
    }
    figures, told = [], "The band is the smallest to the largest seed."
    for title, metric in titles.items():
        unit = _unit(comparison, metric)
        lines = [_line(contender, metric, unit) for contender in comparison.contenders]
        label = f"learning curves: {title[0].lower()}{title[1:]}"
        if chart := drawing.line_chart(lines, label, unit=unit):
            figures.append(f"<div><h3>{text(title)}</h3>{chart}</div>")
            told += _EPISODE if unit == "episodes" and _EPISODE not in told else ""
    return f"<div class=grid>{''.join(figures)}</div><p>{told}</p>" if figures else ""


def _unit(comparison: Comparison, metric: str) -> str:
    """What the axis counts: episodes where updates or steps of the policies are not alike."""
    members = [member for contender in comparison.contenders for member in contender.members]
    measured = [m for m in members if any(row.get(metric) is not None for row in m.updates)]
    sizes = {member.episodes_per_update for member in measured}
    units = {member.unit for member in measured}
    if len(units) < 2 and len(sizes) < 2:
        return next(iter(units), "update")
    return "update" if None in sizes else "episodes"


def _line(contender: Contender, metric: str, unit: str) -> Line:
    points = _curve(contender, metric, unit)
    if len(points) < 2:
        return Line(contender.name, [])
    means, bands = [(x, mean) for x, _, mean, _ in points], [(x, a, b) for x, a, _, b in points]
    return Line(contender.name, means, bands)


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


def _curve(contender: Contender, metric: str, unit: str) -> list[tuple[float, float, float, float]]:
    """Place, smallest, mean and largest value over the seeds, where all have been measured."""
    runs = [_values(member, metric, unit) for member in contender.members]
    shared = sorted(set.intersection(*(set(run) for run in runs)))
    return [
        (x, min(run[x] for run in runs), sum(run[x] for run in runs) / len(runs),
         max(run[x] for run in runs))
        for x in shared
    ]  # fmt: skip


def _values(member: Member, metric: str, unit: str) -> dict[float, float]:
    """Place on the axis -> value."""
    size = (member.episodes_per_update or 1.0) if unit == "episodes" else 1.0
    key = "sft/step" if member.unit == "step" else "train/update"
    return {
        row[key] * size: row[metric]
        for row in member.updates
        if row.get(metric) is not None and row.get(key) is not None
    }

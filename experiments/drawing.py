"""Charts as SVG for pages: lines with bands over updates, bars, stacked shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from instructrec.experiments.page import text

WIDTH, HEIGHT = 640, 220
_COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#a16207", "#4b5563")
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 10, 30
_TICKS = 4


@dataclass(frozen=True)
class Line:
    """A curve of a chart."""

    name: str
    """What it is called in the legend."""
    points: Sequence[tuple[float, float]]
    """(x, y) by rising x."""
    band: Sequence[tuple[float, float, float]] = field(default_factory=tuple)
    """(x, low, high) by rising x, drawn around it."""
    dots: bool = False
    """Whether points are marked and bands are bars: single measurements."""


def colour(i: int) -> str:
    """Colour number i."""
    return _COLOURS[i % len(_COLOURS)]


def key(i: int) -> str:
    """A mark in colour number i, as HTML."""
    return f'<i class=key style="background:{colour(i)}"></i>'


def legend(names: Mapping[int, str]) -> str:
    """Names behind their marks, as HTML.

    Args:
        names: Number of the colour -> name.
    """
    return " ".join(f"<span>{key(i)}{text(name)}</span>" for i, name in names.items())


def svg(content: str, height: float, label: str) -> str:
    """A drawing of the common width.

    Args:
        content: Shapes.
        height: In units of which the width has ``WIDTH``.
        label: What it shows, for those who cannot see it.
    """
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{text(label)}">'
        f"{content}</svg>"
    )


def scale(low: float, high: float) -> tuple[float, float]:
    """Ends of an axis that holds 0 and these."""
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within an axis, at most five."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def line_chart(lines: Sequence[Line], label: str, *, unit: str = "update") -> str:
    """Curves over one axis, with a legend where there are several; empty without a point.

    Args:
        lines: The curves; one without points keeps its colour.
        label: What is drawn, for those who cannot see it.
        unit: What the horizontal axis counts.
    """
    shown = {i: line for i, line in enumerate(lines) if line.points}
    if not shown:
        return ""
    values = [y for line in shown.values() for _, y in line.points]
    values += [y for line in shown.values() for _, *ends in line.band for y in ends]
    low, high = scale(min(values), max(values))
    xs = [x for line in shown.values() for x, _ in line.points]
    first, last = min(xs), max(xs)

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - first) / max(last - first, 1) * (WIDTH - _LEFT - _RIGHT)
        return f"{across:.1f} {_TOP + (high - y) / (high - low) * (HEIGHT - _TOP - _BOTTOM):.1f}"

    shapes = [_grid(low, high), _ends(first, last, unit)]
    shapes += [_curve(line, colour(i), place) for i, line in shown.items()]
    names = {i: line.name for i, line in shown.items()}
    told = f"<p class=legend>{legend(names)}</p>" if len(lines) > 1 else ""
    return svg("".join(shapes), HEIGHT, label) + told


def _grid(low: float, high: float) -> str:
    shapes = []
    for tick in ticks(low, high):
        y = _TOP + (high - tick) / (high - low) * (HEIGHT - _TOP - _BOTTOM)
        shapes.append(
            f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" class=axis />'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    return "".join(shapes)


def _ends(first: float, last: float, unit: str) -> str:
    y = HEIGHT - 8
    start = f'<text x="{_LEFT}" y="{y}">{first:g}</text>' if last > first else ""
    return (
        start + f'<text x="{WIDTH - _RIGHT}" y="{y}" text-anchor="end">{text(unit)} {last:g}</text>'
    )


def _curve(line: Line, shade: str, place: Callable[[float, float], str]) -> str:
    shapes = []
    if line.dots:
        shapes += [
            f'<path d="M{place(x, low)}L{place(x, high)}" stroke="{shade}" stroke-width="1.5"/>'
            for x, low, high in line.band
        ]
    elif line.band:
        edge = [place(x, high) for x, _, high in line.band]
        edge += [place(x, low) for x, low, _ in reversed(line.band)]
        shapes.append(f'<path d="M{"L".join(edge)}Z" fill="{shade}" opacity=".15"/>')
    path = "L".join(place(x, y) for x, y in line.points)
    dash = ' stroke-dasharray="5 4"' if line.dots else ""
    shapes.append(f'<path d="M{path}" fill="none" stroke="{shade}" stroke-width="2"{dash}/>')
    if line.dots or len(line.points) == 1:
        for x, y in line.points:
            across, down = place(x, y).split()
            shapes.append(
                f'<circle cx="{across}" cy="{down}" r="4" fill="{shade}">'
                f"<title>{x:g}: {y:.3f}</title></circle>"
            )
    return "".join(shapes)


def bars(
    values: Sequence[tuple[str, float, float, float]],
    label: str,
    *,
    reach: Sequence[float] = (),
) -> str:
    """A bar with its interval for each name.

    Args:
        values: (name, mean, low, high); an interval that is not known has NaN ends.
        label: What is drawn, for those who cannot see it.
        reach: More values that the axis holds, so that several drawings have the same.
    """
    ends = [v for _, *numbers in values for v in numbers if math.isfinite(v)] + [*reach]
    low, high = scale(min(ends), max(ends))
    left, width = 190, WIDTH - 260

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * width

    shapes = []
    for i, (name, mean, least, most) in enumerate(values):
        y = 8 + 34 * i
        start, end = sorted((x(0.0), x(mean)))
        known = math.isfinite(least) and math.isfinite(most)
        shapes.append(
            f'<text x="{left - 8}" y="{y + 17}" text-anchor="end">{text(_short(name))}</text>'
            f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 1):.1f}" height="24" '
            f'fill="{colour(i)}" opacity=".75"/>'
            + (f'<path d="M{x(least):.1f} {y + 12}H{x(most):.1f}" class=error />' if known else "")
            + f'<text x="{x(most if known else mean) + 8:.1f}" y="{y + 17}">{mean:.3f}</text>'
        )
    return svg("".join(shapes), 34 * len(values) + 12, label)


def shares(values: Sequence[tuple[str, float]], label: str) -> str:
    """One bar cut into shares, with a legend; empty where they add up to nothing.

    Args:
        values: (name, amount), amounts not negative.
        label: What is drawn, for those who cannot see it.
    """
    total = math.fsum(amount for _, amount in values)
    if not total > 0:
        return ""
    shapes, at = [], 0.0
    for i, (name, amount) in enumerate(values):
        width = amount / total * WIDTH
        shapes.append(
            f'<rect x="{at:.1f}" y="2" width="{width:.1f}" height="28" fill="{colour(i)}" '
            f'opacity=".8"><title>{text(name)}: {amount / total:.0%}</title></rect>'
        )
        at += width
    names = {i: f"{name} {amount / total:.0%}" for i, (name, amount) in enumerate(values)}
    return svg("".join(shapes), 32, label) + f"<p class=legend>{legend(names)}</p>"


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"

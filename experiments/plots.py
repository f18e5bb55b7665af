"""Curves and shares as pictures. Draws without a display and without pyplot's global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

from instructrec.experiments.jsonl import replacing

_TRAIN, _EVAL = "#2a6f97", "#c1121f"
_BASELINES = ("#5c677d", "#b07d2b", "#386641", "#7b5ea7")
_INK, _GRID = "#22262b", "#e3e6ea"
_CURVES = ("training rollouts", "held-out evaluation")
_SMOOTH_FROM = 40
"""From this many updates on, single updates are drawn faintly under their moving average."""


@dataclass(frozen=True)
class Baseline:
    """A score to compare with, drawn as a horizontal line."""

    mean: float
    """Score."""
    low: float | None = None
    """Lower end of its interval; None draws no band."""
    high: float | None = None
    """Upper end of its interval."""


def learning_curve(
    rows: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    reward: str = "total",
    baselines: Mapping[str, Baseline] | None = None,
    title: str = "",
    label: str | None = None,
) -> Path:
    """Draws a run: reward of the rollouts over updates, evaluations, and baselines beside them.

    Args:
        rows: Lines of ``metrics.jsonl``.
        out: PNG file; its folder is made when missing.
        reward: Name of the reward to draw, or ``total``.
        baselines: Name -> score on the same held-out instructions, drawn as lines with bands.
        title: Title of the picture.
        label: Name of the vertical axis; None takes the reward's.

    Returns:
        ``out``.
    """
    figure, axes = _sheet(8.0, 4.8)
    ends = [_draw_training(axes, rows, f"reward/{reward}/mean")]
    ends.append(_draw_evaluations(axes, rows, f"eval/{reward}"))
    for i, (name, baseline) in enumerate((baselines or {}).items()):
        ends.append(_draw_baseline(axes, name, baseline, _BASELINES[i % len(_BASELINES)]))
    values = [value for drawn in ends for value in drawn]
    _dress(axes, values, title, label or ("reward" if reward == "total" else _words(reward)))
    return _save(figure, out)


def two_rewards(
    first: Sequence[tuple[float, float]],
    second: Sequence[tuple[float, float]],
    out: Path,
    *,
    names: tuple[str, str],
    axis: str,
    marks: Mapping[str, float] | None = None,
    title: str = "",
) -> Path:
    """Draws two rewards of one run, each on a scale of its own, over what they share.

    Args:
        first: (x, y) of the reward on the left scale.
        second: (x, y) of the one on the right scale.
        out: PNG file; its folder is made when missing.
        names: What the two are called.
        axis: What x is.
        marks: Name -> x of a vertical line.
        title: Title of the picture.

    Returns:
        ``out``.
    """
    figure, axes = _sheet(8.0, 4.8)
    other = axes.twinx()
    drawn = []
    for place, points, name, color in zip(
        (axes, other), (first, second), names, (_EVAL, _TRAIN), strict=True
    ):
        line = [p[0] for p in points], [p[1] for p in points]
        drawn += place.plot(*line, color=color, linewidth=2, marker="o", markersize=4, label=name)
        place.set_ylabel(name, color=color)
    for i, (name, x) in enumerate((marks or {}).items()):
        color = _BASELINES[i % len(_BASELINES)]
        drawn.append(axes.axvline(x, color=color, linestyle="--", label=name))
    axes.set_xlabel(axis)
    _frame(axes, title, grid="y")
    axes.legend(handles=drawn, loc="best", frameon=False)
    return _save(figure, out)


def shares(values: Mapping[str, float], out: Path, *, title: str = "") -> Path:
    """Draws shares of a whole as horizontal bars, the largest at the top.

    Args:
        values: Name -> share, in [0, 1].
        out: PNG file; its folder is made when missing.
        title: Title of the picture.

    Returns:
        ``out``.
    """
    figure, axes = _sheet(8.0, 1.4 + 0.45 * len(values))
    names = sorted(values, key=lambda name: values[name])
    bars = axes.barh(names, [values[name] for name in names], color=_TRAIN, height=0.62)
    axes.bar_label(bars, fmt="{:.0%}", padding=4, color=_INK)
    axes.set_xlim(0, min(1.0, max(values.values())) * 1.12)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _frame(axes, title, grid="x")
    return _save(figure, out)


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture, in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=150, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Figure, out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")
    return out


def _draw_training(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    points = _series(rows, key)
    if not points:
        return []
    x, y = [p[0] for p in points], [p[1] for p in points]
    # The filter turns to what is not solved yet, which lowers this curve beside an evaluation.
    filtered = any(row.get("rollout/passed_over_frac") for row in rows)
    label = "training rollouts, sampled" + (", solved ones passed over" if filtered else "")
    if len(points) >= _SMOOTH_FROM:
        window = max(3, len(points) // 20)
        axes.plot(x, y, color=_TRAIN, alpha=0.25, linewidth=1)
        axes.plot(
            x,
            _moving_average(y, window),
            color=_TRAIN,
            linewidth=2.2,
            label=f"{label} (mean of {window} updates)",
        )
    else:
        axes.plot(
            x,
            y,
            color=_TRAIN,
            linewidth=2,
            marker="o",
            markersize=3.5,
            label=label,
        )
    return y


def _draw_evaluations(axes: Axes, rows: Sequence[Mapping[str, Any]], prefix: str) -> list[float]:
    points = _series(rows, f"{prefix}/mean")
    if not points:
        return []
    low, high = dict(_series(rows, f"{prefix}/ci_low")), dict(_series(rows, f"{prefix}/ci_high"))
    x, y = [p[0] for p in points], [p[1] for p in points]
    below = [max(0.0, mean - low.get(at, mean)) for at, mean in points]
    above = [max(0.0, high.get(at, mean) - mean) for at, mean in points]
    bars = any(below) or any(above)
    axes.errorbar(
        x,
        y,
        yerr=(below, above) if bars else None,
        color=_EVAL,
        linewidth=1.4,
        linestyle="--",
        marker="D",
        markersize=6,
        markeredgecolor="white",
        capsize=3,
        zorder=5,
        label="held-out evaluation" + (" (95 % interval)" if bars else ""),
    )
    return [v - b for v, b in zip(y, below, strict=True)] + [
        v + a for v, a in zip(y, above, strict=True)
    ]


def _draw_baseline(axes: Axes, name: str, baseline: Baseline, color: str) -> list[float]:
    values = [baseline.mean]
    if baseline.low is not None and baseline.high is not None:
        axes.axhspan(baseline.low, baseline.high, color=color, alpha=0.13, linewidth=0)
        values += [baseline.low, baseline.high]
    axes.axhline(
        baseline.mean,
        color=color,
        linewidth=1.6,
        linestyle=(0, (6, 2)),
        label=f"{name}: {baseline.mean:.3f}",
    )
    return values


def _dress(axes: Axes, values: Sequence[float], title: str, label: str) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) >= 0 and max(finite) <= 1:
        axes.set_ylim(-0.02, 1.02)  # scores within [0, 1] are shown on their whole scale
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("update", color=_INK)
    axes.set_ylabel(label, color=_INK)
    _frame(axes, title, grid="y")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Curves first, then baselines as given; matplotlib would put error bars last.
        order = sorted(range(len(labels)), key=lambda i: not labels[i].startswith(_CURVES))
        axes.figure.legend(
            [handles[i] for i in order],
            [labels[i] for i in order],
            loc="outside lower center",
            ncols=2 if len(order) <= 4 else 3,
            frameon=False,
            fontsize=9,
        )
    else:
        axes.text(0.5, 0.5, "no finished update", transform=axes.transAxes, ha="center")


def _frame(axes: Axes, title: str, *, grid: Literal["x", "y"]) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.grid(axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa1a9")
    axes.tick_params(colors=_INK)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Returns (update, value) for the rows that hold the key, in the order of the updates."""
    found = {
        float(row.get("train/update", row.get("sft/step", i + 1))): float(row[key])
        for i, row in enumerate(rows)
        if row.get(key) is not None and math.isfinite(row[key])
    }
    return sorted(found.items())


def _moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last ``window`` values at each place (of fewer at the start)."""
    return [
        sum(values[max(0, i + 1 - window) : i + 1]) / min(i + 1, window) for i in range(len(values))
    ]


def _words(name: str) -> str:
    return name.replace("_", " ")

"""Where the time of an update goes, as a PNG file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.summary import PHASES


def plot_phases(parts: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws one bar for each side of each part: seconds for one episode, by phase.

    Args:
        parts: As in the JSON result.
        path: PNG file to write.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    bars = [
        (f"{part}: {name}", _per_episode(side))
        for part, content in parts.items()
        for name, side in content["sides"].items()
    ][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.45 * len(bars)), layout="constrained")
    colours = pyplot.get_cmap("tab10")
    left = [0.0] * len(bars)
    for number, phase in enumerate(PHASES):
        widths = [seconds.get(phase, 0.0) for _, seconds in bars]
        axes.barh(range(len(bars)), widths, left=left, label=phase, color=colours(number))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [title for title, _ in bars])
    axes.set_xlabel("seconds per episode (median)")
    figure.legend(ncols=4, loc="outside lower center", fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _per_episode(side: Mapping[str, Any]) -> dict[str, float]:
    episodes = side["workload"]["episodes"]
    return {name: seconds / episodes for name, seconds in side["phases_s"].items()}

"""The learning curves on the page of a report."""

from __future__ import annotations

from collections.abc import Sequence

from instructrec.experiments.drawing import Line, line_chart
from instructrec.experiments.jsonl import Row
from instructrec.experiments.page import text
from instructrec.metrics import axis_value

_TOTALS = ("total", "normalised_total")
_GIVEN = ("sft", "dpo", "rm")
"""Prefixes of the metrics of training on given examples; a run has one of them."""


def curves(rows: Sequence[Row], unit: str) -> str:
    """Small charts as HTML: rewards, distance from the reference, lengths, losses, accuracy.

    Args:
        rows: Lines of ``metrics.jsonl``; what none of them has is not drawn.
        unit: What the horizontal axis counts.
    """
    names = [key.split("/")[1] for key in _keys(rows) if key.startswith("reward/")]
    parts = [name for name in dict.fromkeys(names) if name not in _TOTALS]
    charts = {
        "Reward": [
            _line(rows, "reward/total/mean", "training rollouts"),
            _evaluations(rows, "total"),
        ],
        "Rewards, unweighted": [_line(rows, f"reward/{name}/mean", name) for name in parts]
        if len(parts) > 1
        else [],
        "Loss": [*_given(rows, "loss"), _line(rows, "raft/loss", "training")],
        "Accuracy": _given(rows, "accuracy"),
        "Score of the chosen less that of the rejected": _given(rows, "margin"),
        "KL from the reference (nats a response)": [_line(rows, "ppo/kl_ref", "KL")],
        "Entropy (nats a token)": [_line(rows, "ppo/entropy", "entropy")],
        "Response length (tokens)": [_line(rows, "rollout/response_len", "length")],
        "Shares": [
            _line(rows, "rollout/truncated_frac", "cut short"),
            _line(rows, "rollout/zero_variance_frac", "groups of equal reward"),
            _line(rows, "ppo/clip_frac", "clipped tokens"),
        ],
        "Explained variance of the critic": [_explained(rows)],
    }
    drawn = {name: line_chart(lines, name, unit=unit) for name, lines in charts.items()}
    figures = (f"<div><h3>{text(name)}</h3>{chart}</div>" for name, chart in drawn.items() if chart)
    return f"<div class=grid>{inner}</div>" if (inner := "".join(figures)) else ""


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _given(rows: Sequence[Row], what: str) -> list[Line]:
    """A number of training on given examples, in training and on the validation split; if any."""
    lines = []
    for prefix in _GIVEN:
        lines += [
            _line(rows, f"{prefix}/{what}", "training"),
            _line(rows, f"{prefix}/val_{what}", "validation", dots=True),
        ]
    return [line for line in lines if line.points]


def _line(rows: Sequence[Row], key: str, name: str, *, dots: bool = False) -> Line:
    points = [(_at(row), row[key]) for row in rows if row.get(key) is not None]
    return Line(name, points, (), dots)


def _at(row: Row) -> float:
    return axis_value(row) or 0.0


def _evaluations(rows: Sequence[Row], part: str) -> Line:
    """The evaluations during training, with their intervals."""
    keys = [f"eval/{part}/{end}" for end in ("mean", "ci_low", "ci_high")]
    known = [row for row in rows if row.get(keys[0]) is not None]
    band = [
        (_at(row), row[keys[1]], row[keys[2]])
        for row in known
        if row.get(keys[1]) is not None and row.get(keys[2]) is not None
    ]
    points = [(_at(row), row[keys[0]]) for row in known]
    return Line("validation split, 95 % interval", points, band, dots=True)


def _explained(rows: Sequence[Row]) -> Line:
    """Explained variance while the critic was in use; one that idles explains nothing of note."""
    used = [row for row in rows if row.get("ppo/critic_used")]
    return _line(used, "ppo/explained_variance", "explained variance")

"""What a reward model has learned, in words and tables: for its card, a terminal and a report.

Made of the numbers in ``reward_report.json`` alone; nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrec.experiments.listing import markdown_table


@dataclass(frozen=True)
class Table:
    """Numbers that belong together."""

    title: str
    """A sentence above it; may be empty."""
    rows: Sequence[tuple[str, ...]]
    """Cells as plain text, the head first."""


def in_markdown(report: Mapping[str, Any]) -> str:
    """The tables as Markdown, and what is to be known of the numbers.

    Args:
        report: Content of ``reward_report.json``.
    """
    blocks = [part for t in tables(report) for part in (t.title, markdown_table(t.rows))]
    return "\n\n".join(block for block in [*blocks, of_the_choice(report)] if block)


def tables(report: Mapping[str, Any]) -> list[Table]:
    """What was found on held-out rows, the main numbers first.

    Args:
        report: As above.
    """
    return _of_alignment(report) if "recall_at_1" in report else _of_preferences(report)


def verdict(report: Mapping[str, Any]) -> str:
    """One sentence: whether it tells pairs apart at all, and on what that is known."""
    found = report["accuracy"]
    outcome = "undecided, which may be chance"
    if found["low"] > 0.5 or found["high"] < 0.5:
        outcome = "better than chance" if found["low"] > 0.5 else "worse than chance"
    said = (
        f"{outcome}: accuracy {found['mean']:.3f} where 0.5 is chance, 95 % interval "
        f"{found['low']:.3f} to {found['high']:.3f}, on {measured_on(report)}."
    )
    if "length" in report:
        right, rule = _by_length(report["length"])
        if right >= found["mean"]:
            said += f" Always preferring {rule} is right in {right:.3f} of the same pairs."
    return said


def _by_length(length: Mapping[str, Any]) -> tuple[float, str]:
    """Accuracy of the better rule of length on the same pairs, and which one that is."""
    longer = length["longer_wins"]["mean"]
    return (longer, "the longer one") if longer > 0.5 else (1 - longer, "the shorter one")


def measured_on(report: Mapping[str, Any]) -> str:
    """Which rows the numbers are of, and whether these had a part in the weights."""
    if report.get("measured_on") == "test":
        return "the test split, which neither trained the weights nor chose them"
    half = "recall_at_1" in report
    part = "a half (the other one calibrated the score) of " if half else ""
    chose = report.get("measured_pairs_chose_the_weights")
    if chose is None:  # written before it was recorded
        return f"{part}the validation split"
    use = "chose the weights as well: optimistic" if chose else "chose nothing (fit.eval_every: 0)"
    return f"{part}the validation split, which {use}"


def of_the_choice(report: Mapping[str, Any]) -> str:
    """What to do about weights that were chosen by the rows that measure them; else nothing."""
    if not report.get("measured_pairs_chose_the_weights"):
        return ""
    return (
        "The weights are those of the best validation (fit.eval_every) on the same rows, which "
        "flatters these numbers. Rows that choose nothing come from a test split "
        "(task.options.test_fraction, or a column `split`) or from task.test."
    )


def _of_preferences(report: Mapping[str, Any]) -> list[Table]:
    accuracy, length = report["accuracy"], report["length"]
    ranks, (right, rule) = _share(length["rank_correlation"]), _by_length(length)
    rows = [
        *_learned_from(report, "pairs"),
        ("measured on", measured_on(report)),
        ("accuracy", f"{_told(accuracy)} of {accuracy['n']} pairs"),
        ("accuracy of length alone", f"{right:.3f}, preferring {rule}"),
        ("loss", f"{report['loss']:.3f} nats (0.693 knows nothing)"),
        ("calibration error", f"{report['calibration_error']:.3f}"),
        ("longer response preferred", f"in the data {_told(length['longer_wins'])}"),
        ("", f"by the model {_told(length['model_prefers_longer'])}"),
        ("accuracy where longer wins", _share(length["accuracy_when_longer_wins"])),
        ("accuracy where shorter wins", _share(length["accuracy_when_shorter_wins"])),
        (
            "correlation of score and length",
            f"{_share(length['correlation'])} (by ranks {ranks})",
        ),
        (
            "scores",
            f"mean {report['score_mean']:.3f}, standard deviation {report['score_std']:.3f}",
        ),
        *_cut(report),
    ]
    calibration = (
        "Calibration: how sure it is of its own preferences, and how often they are right."
    )
    found = [Table("", rows), Table(calibration, _bins(report["calibration"], "sure"))]
    if report["by_margin"]:
        margins = _bins(report["by_margin"], "margin")
        found.append(Table("Accuracy by the margin of the data.", margins))
    return found


def _of_alignment(report: Mapping[str, Any]) -> list[Table]:
    rows = [
        *_learned_from(report, "instructions with outputs"),
        ("measured on", measured_on(report)),
        ("pairs", str(report["pairs"])),
        ("own output above a mismatched one", _told(report["accuracy"])),
        ("own output the best of all", _told(report["recall_at_1"])),
        ("score of a match", f"{report['match_score']:.3f} on average"),
        ("score of a mismatch", f"{_share(report['mismatch_score'])} on average"),
        ("calibration error", f"{report['calibration_error']:.3f} at even odds"),
    ]
    if "slope" in report:
        score = f"σ({report['slope']:.3g} · cosine {report['intercept']:+.3g})"
        rows.append(("score", score))
    curve = [tuple(f"{value:.3f}" for value in row) for row in report["calibration"]]
    head = ("share", "score", "matches")
    return [Table("", [*rows, *_cut(report)]), Table("Calibration by score.", [head, *curve])]


def _learned_from(report: Mapping[str, Any], rows: str) -> list[tuple[str, str]]:
    """How many rows trained the weights, where that was recorded."""
    found = report.get("train_rows")
    return [] if found is None else [("learned from", f"{found} {rows}")]


def _cut(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    texts = f" of {report['texts']}" if "texts" in report else ""
    return [("texts cut", f"{report.get('cut_texts', 0)}{texts}")]


def _told(interval: Mapping[str, Any]) -> str:
    """A mean with its interval."""
    return f"{interval['mean']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def _share(value: float | None) -> str:
    return "unknown" if value is None or value != value else f"{value:.3f}"


def _bins(bins: Sequence[Mapping[str, Any]], name: str) -> list[tuple[str, ...]]:
    return [
        (name, "pairs", "sure", "right"),
        *(
            (
                f"{b['low']:.3g} to {b['high']:.3g}",
                str(b["n"]),
                f"{b['predicted']:.3f}",
                f"{b['accuracy']:.3f}",
            )
            for b in bins
        ),
    ]

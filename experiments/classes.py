"""How well a policy tells classes apart: precision, recall and F1 of each, and the confusions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec.experiments.jsonl import Row, read_rows
from instructrec.policies.base import Policy


def per_class(rows: Sequence[Row], labels: Sequence[str] = ()) -> dict[str, Any]:
    """Counts the labels of an evaluation.

    Args:
        rows: Its rows; the label of a row is its (first) reference, and its response the answer.
        labels: Labels beside those that the rows have as reference or response.

    Returns:
        ``accuracy``; ``macro_f1``, the mean over the labels that rows have as reference;
        ``classes``: label -> ``precision, recall, f1`` (each 0 where it has no denominator, all
        in [0, 1]) and ``n``, its rows; and ``confusion``: label -> answer -> rows.
    """
    pairs = [(_label(row), str(row["response"])) for row in rows]
    names = sorted({*labels, *(label for pair in pairs for label in pair)})
    confusion = {label: dict.fromkeys(names, 0) for label in names}
    for label, answer in pairs:
        confusion[label][answer] += 1
    classes = {}
    for name in names:
        right = confusion[name][name]
        n = sum(confusion[name].values())
        answered = sum(of_label[name] for of_label in confusion.values())
        precision, recall = _ratio(right, answered), _ratio(right, n)
        f1 = _ratio(2 * right, n + answered)
        classes[name] = {"precision": precision, "recall": recall, "f1": f1, "n": n}
    present = [found["f1"] for found in classes.values() if found["n"]]
    return {
        "accuracy": _ratio(sum(confusion[name][name] for name in names), len(pairs)),
        "macro_f1": _ratio(sum(present), len(present)),
        "classes": classes,
        "confusion": confusion,
    }


def class_report(policy: Policy, file: Path) -> dict[str, Any]:
    """What the summary of a run says of classes; empty for a policy that writes text.

    Args:
        policy: Who answered.
        file: The rows of its evaluation.
    """
    labels: Sequence[str] | None = getattr(policy, "labels", None)
    return {} if labels is None else {"classes": per_class(read_rows(file), labels)}


def table(report: dict[str, Any]) -> str:
    """The numbers of each class as plain text, the largest confusions below."""
    found = report["classes"]
    width = max(len("class"), *map(len, found))
    lines = [f"{'class':<{width}}  precision  recall     F1     n"]
    lines += [
        f"{name:<{width}}  {one['precision']:>9.3f}  {one['recall']:>6.3f}  {one['f1']:.3f}  "
        f"{one['n']:>4}"
        for name, one in found.items()
    ]
    lines.append(f"accuracy {report['accuracy']:.3f}, mean F1 {report['macro_f1']:.3f}")
    wrong = [
        (count, label, answer)
        for label, answers in report["confusion"].items()
        for answer, count in answers.items()
        if count and label != answer
    ]
    worst = sorted(wrong, reverse=True)[:3]
    lines += [f"{label} taken for {answer}: {count}" for count, label, answer in worst]
    return "\n".join(lines)


def class_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The numbers of each class, the head first, and what it was most often taken for."""
    rows: list[tuple[str, ...]] = [("class", "precision", "recall", "F1", "n", "taken for")]
    for name, one in report["classes"].items():
        wrong = {k: n for k, n in report["confusion"][name].items() if n and k != name}
        worst = max(wrong, key=lambda answer: wrong[answer], default=None)
        taken = "-" if worst is None else f"{worst} ({wrong[worst]})"
        numbers = (f"{one[key]:.3f}" for key in ("precision", "recall", "f1"))
        rows.append((name, *numbers, str(one["n"]), taken))
    return rows


def _label(row: Row) -> str:
    reference = row["reference"]
    return str(reference[0] if isinstance(reference, list) else reference)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0

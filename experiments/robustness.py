"""``instructrec evaluate POLICY --robustness``: what other wordings of the instructions cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from instructrec import processes
from instructrec.envs.tasks.augmented import KINDS, AugmentedTask, KindLike, find_kind
from instructrec.envs.tasks.base import Task
from instructrec.errors import ConfigError, DataError
from instructrec.experiments.evaluation import Evaluation
from instructrec.experiments.jsonl import Row, write_json
from instructrec.experiments.listing import table
from instructrec.experiments.stats import Difference, paired_difference

_OTHER_FILES = ("bounds", "robustness")  # what is written beside the rows under these names
Measure = Callable[[Task, Path], Evaluation]
"""Evaluates the policy on a task and writes the rows to a file."""


@dataclass(frozen=True)
class Robustness:
    """What one kind of rewording does to a policy."""

    kind: str
    """The rewording."""
    difference: Difference
    """Reworded (a) less plain (b), of the same instructions and samples, clustered by item."""
    changed: float
    """Share of the rows whose instruction was changed; the others count as they are."""


def measure_robustness(
    task: Task,
    plain: Evaluation,
    measure: Measure,
    file: Path,
    *,
    seed: int = 0,
    overwrite: bool = False,
    kinds: Sequence[KindLike] = KINDS,
) -> list[Robustness]:
    """Evaluates the policy again on its instructions in other words, one kind after the other.

    Rows go beside those of the plain evaluation, whose file's name gets the kind, and the numbers
    to a file named ``robustness``; what was interrupted goes on where it stopped.

    Args:
        task: The instructions in their plain words.
        plain: The evaluation on them.
        measure: Evaluates the same policy in the same way.
        file: File of the plain rows.
        seed: Chooses the wordings.
        overwrite: Delete the rows of an earlier measurement.
        kinds: Kinds of rewording, built in or of one's own.

    Raises:
        InstructRecError: As ``evaluate``, and as `check_kinds`.
    """
    found = []
    for kind, label in zip(kinds, check_kinds(kinds), strict=True):
        reworded = AugmentedTask(task, kinds={kind: 1.0}, seed=seed)
        own = beside(file, label)
        if overwrite:
            processes.on_main(partial(_remove, own))
        found.append(compare(label, measure(reworded, own), plain))
    numbers = metrics(found)
    processes.on_main(lambda: write_json(beside(file, "robustness").with_suffix(".json"), numbers))
    return found


def check_kinds(kinds: Sequence[KindLike]) -> list[str]:
    """Returns what kinds of rewording are called, each a row of the table and a file of rows.

    Raises:
        ConfigError: There is none, one is unknown, or two are called the same.
    """
    if not kinds:
        raise ConfigError(f"robustness_kinds is empty: expected one or more, e.g. {KINDS[0]}.")
    labels: list[str] = []
    for kind in kinds:
        made = find_kind(kind)
        label = made if isinstance(made, str) else made.name
        if label in (*labels, *_OTHER_FILES):
            raise ConfigError(
                f"robustness_kinds: {kind!r} is called {label!r}, which is the name of another "
                "file beside the rows; give each kind once, and rename a function of yours."
            )
        labels.append(label)
    return labels


def beside(file: Path, label: str) -> Path:
    """Returns the file of rows ``<task>-<split>-<decoding>_<label>-<update>.jsonl``."""
    head, _, update = file.stem.rpartition("-")
    return file.with_name(f"{head}_{label}-{update}{file.suffix}")


def compare(kind: str, reworded: Evaluation, plain: Evaluation) -> Robustness:
    """Pairs the rows of two evaluations by instruction and sample, where both have a score.

    Raises:
        DataError: No instruction has a score in both.
    """
    before = {_key(row): row for row in plain.rows if row["total"] is not None}
    pairs = [
        (row, before[_key(row)], cluster)
        for row, cluster in zip(reworded.rows, reworded.clusters, strict=True)
        if row["total"] is not None and _key(row) in before
    ]
    if not pairs:
        raise DataError(
            f"no instruction has a reward both in its plain words and with {kind!r}: there is "
            "nothing to compare; look at the rewards' conditions."
        )
    difference = paired_difference(
        [new["total"] for new, _, _ in pairs],
        [old["total"] for _, old, _ in pairs],
        [cluster for _, _, cluster in pairs],
    )
    changed = sum(row["augmentation"] == kind for row in reworded.rows) / len(reworded.rows)
    return Robustness(kind, difference, changed)


def metrics(found: Sequence[Robustness]) -> dict[str, float]:
    """Returns the ``eval/robust/…`` metrics; a number that is not known is absent."""
    values: dict[str, float] = {}
    for each in found:
        difference, key = each.difference, f"eval/robust/{each.kind}"
        values[f"{key}/mean"] = difference.mean_a
        values[f"{key}/difference"] = difference.mean
        values |= {f"{key}/ci_low": difference.low, f"{key}/ci_high": difference.high}
        values[f"{key}/changed_frac"] = each.changed
    return {key: value for key, value in values.items() if math.isfinite(value)}


def report(found: Sequence[Robustness]) -> str:
    """The table: score in other words, less that in plain words, and how sure that is."""
    rows: list[tuple[str, ...]] = [
        ("wording", "mean", "less plain", "95 % interval", "p", "scored", "changed")
    ]
    for each in found:
        d = each.difference
        known = math.isfinite(d.low) and math.isfinite(d.high)
        between = f"{d.low:+.3f} to {d.high:+.3f}" if known else "unknown"
        p = f"{d.p:.3f}"
        if d.method == "constant":  # nothing varies, so that nothing says how sure it is
            between, p = "the same everywhere" if d.mean else "no difference seen", "-"
        numbers = (f"{d.mean_a:.3f}", f"{d.mean:+.3f}", between, p, str(d.n))
        rows.append((each.kind, *numbers, f"{each.changed:.0%}"))
    return table(rows)


def refuse_replay(policy: str) -> None:
    """Raises ConfigError for recorded responses, which were not given to other wordings."""
    if policy.endswith(".jsonl"):
        raise ConfigError(
            f"--robustness with the responses of {policy}, which were given to the plain wording: "
            "expected a policy that can answer anew."
        )


def _key(row: Row) -> tuple[str, int]:
    return row["id"], row["sample"]


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.with_suffix(".json").unlink(missing_ok=True)

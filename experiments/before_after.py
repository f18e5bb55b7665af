"""Is a policy better than what it started from? The evaluation before, found, and compared.

The start of a run is measured by the evaluation of its parent run, by an evaluation of its base
model that lies beside it, or by the run itself (``eval.before``). Only one of the same kind
counts: the same instructions, rewards and way to answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from instructrec.errors import CheckpointError, DataError
from instructrec.experiments.compare_stats import SIGNIFICANT, holm
from instructrec.experiments.contenders import Member
from instructrec.experiments.evaluation import Evaluation, cluster_of, load_evaluation
from instructrec.experiments.jsonl import read_json
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.stats import paired_difference

Verdict = Literal["better", "worse", "undecided"]
_SAME = ("task", "split", "fingerprint", "reward", "weights", "sampling", "samples", "episodes")
"""Of an evaluation, what makes it one of the same kind."""


@dataclass(frozen=True)
class Change:
    """One score before and after, over the instructions that have it both times."""

    part: str
    """Name of a reward, or ``total``."""
    before: float
    """Mean before."""
    after: float
    """Mean after."""
    low: float
    """Lower end of the difference's 95 % interval, by item; NaN where it is not known."""
    high: float
    """Upper end."""
    p: float
    """Two-sided p-value of "no difference", corrected for the ``judged`` rewards."""
    n: int
    """Instructions."""
    judged: int = 1
    """How many rewards are judged beside each other; the total is judged by itself."""

    @property
    def verdict(self) -> Verdict:
        """What interval and test say together."""
        if self.p < SIGNIFICANT and self.low > 0:
            return "better"
        return "worse" if self.p < SIGNIFICANT and self.high < 0 else "undecided"

    def in_words(self) -> str:
        """One sentence: verdict, both means, the difference and its interval, of which run."""
        known = math.isfinite(self.low) and math.isfinite(self.high)
        interval = f", 95 % interval {self.low:+.3f} to {self.high:+.3f}" if known else ""
        ending = ": of this run; other seeds are not known"
        if self.verdict == "undecided":
            # At the edge the interval can leave 0 out while the test does not, or the other way.
            excluded = self.low > 0 or self.high < 0
            ending = f", p = {self.p:.3f}" if excluded else ""
            ending += ", which may be chance"
        return (
            f"{self.verdict}: held-out {self.part} {self.before:.3f} before, {self.after:.3f} "
            f"after ({self.after - self.before:+.3f}{interval}){ending}."
        )


def changes(before: Evaluation, after: Evaluation, *, rewards: bool = True) -> list[Change]:
    """What changed between two evaluations of one kind, the total first.

    Args:
        before: Of the start.
        after: Of the end.
        rewards: Whether single rewards are compared beside the total. What no instruction has a
            score of both times is left out.

    Returns:
        The total, whose test was meant from the start, and the rewards, whose p-values are
        corrected for their number (Holm): one of many changes by chance.
    """
    first, last = Member(Path(), before), Member(Path(), after)
    ids = [key for key in last.by_instruction if key in first.by_instruction]
    clusters = [cluster_of(last.by_instruction[key][0]) for key in ids]
    found = []
    parts = [p for p in after.parts if p in before.parts] if rewards else []
    for part in ["total", *parts]:
        scores = np.array([[m.score(key, part) for key in ids] for m in (first, last)])
        kept = np.flatnonzero(np.isfinite(scores).all(0)) if ids else np.array([], dtype=int)
        if len(kept):
            a, b = scores[1][kept], scores[0][kept]
            pair = paired_difference(a, b, [clusters[i] for i in kept])
            found.append(
                Change(part, pair.mean_b, pair.mean_a, pair.low, pair.high, pair.p, pair.n)
            )
    total = [change for change in found if change.part == "total"]
    single = found[len(total) :]
    p_values = holm([change.p for change in single])
    return total + [
        replace(change, p=p, judged=len(single)) for change, p in zip(single, p_values, strict=True)
    ]


def verdict_head(judged: Iterable[int]) -> str:
    """Head of the column of verdicts.

    Args:
        judged: Of each change, how many are judged beside each other.
    """
    return "verdict (rewards: Holm)" if max(judged, default=1) > 1 else "verdict"


def table(found: Sequence[Change]) -> str:
    """The changes as a table of plain text, a line each."""
    verdict = verdict_head(change.judged for change in found)
    rows = [("score", "before", "after", "difference, 95 % interval", verdict)]
    for change in found:
        difference = f"{change.after - change.before:+.3f}"
        if math.isfinite(change.low) and math.isfinite(change.high):
            difference += f" [{change.low:+.3f}, {change.high:+.3f}]"
        means = (f"{change.before:.3f}", f"{change.after:.3f}")
        rows.append((change.part, *means, difference, change.verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def kept_in_words(name: str, found: Mapping[str, Any]) -> str:
    """One sentence on an old task, from what the summary of the run says."""
    if not found:
        return f"old task {name}: no instruction was scored both before and after."
    outcome = {"worse": "forgotten in part", "better": "better than before"}
    told = outcome.get(found["verdict"], "no change that could not be chance")
    interval = ""
    if found["low"] is not None and found["high"] is not None:
        interval = f", 95 % interval {found['low']:+.3f} to {found['high']:+.3f}"
    return (
        f"old task {name}: {told}: {found['before']:.3f} before, {found['after']:.3f} after "
        f"({found['after'] - found['before']:+.3f}{interval}; {found['n']} instructions)."
    )


def find_before(run: RunFolder, after: Evaluation) -> Evaluation | None:
    """Finds an evaluation of what a run started from, of the same kind as that of its end.

    Args:
        run: The run folder.
        after: The evaluation of its end.

    Returns:
        The run's own of update 0, else one of its parent, else one of its base model in the
        folder beside it; None where there is none.
    """
    record = run.record()
    if record.get("job_type") == "eval":
        return None
    for file in _candidates(run, record):
        try:
            if _same_kind(read_json(file.with_suffix(".json")), after):
                return load_evaluation(file)
        except (CheckpointError, DataError):  # one that is torn or not complete is none
            continue
    return None


def read_evaluation(path: Path) -> Evaluation:
    """Reads an evaluation by its place: the final one of a run folder, or the ``.jsonl`` of one.

    Raises:
        CheckpointError: The folder is no run folder.
        DataError: It has no complete evaluation.
    """
    if path.is_file():
        return load_evaluation(path)
    summary = RunFolder.open(path).summary()
    if "eval_file" not in summary:
        raise DataError(
            f"{path} has no evaluation: expected a finished run, or the .jsonl of an evaluation. "
            "Finish it with --resume, or measure it with `instructrec evaluate`."
        )
    return load_evaluation(path / summary["eval_file"])


def differing(before: Evaluation, after: Evaluation) -> list[str]:
    """Names of what keeps two evaluations from being of one kind; empty where nothing does."""
    return [key for key in _SAME if before.header.get(key) != after.header.get(key)]


def _same_kind(header: dict[str, Any], after: Evaluation) -> bool:
    return not differing(Evaluation([], header), after) and header.get("rows") == len(after.rows)


def _candidates(run: RunFolder, record: dict[str, Any]) -> Iterator[Path]:
    """Files of evaluations of the start, the likeliest first."""
    yield from sorted((run.path / "eval").glob("*-0.jsonl"))
    for parent in parents(run.path, record):
        summary = _summary(parent)
        yield from ([parent / summary["eval_file"]] if "eval_file" in summary else [])
        kept = summary.get("best_update", 0)  # others measured a policy that it did not pass on
        yield from sorted((parent / "eval").glob(f"*-{kept}.jsonl"))
    for beside in sorted(run.path.resolve().parent.iterdir()):
        other = _record(beside) if _is_run(beside) else {}
        if other.get("job_type") == "eval" and other.get("base_model") in _starts(record):
            yield from sorted((beside / "eval").glob("*.jsonl"))


def parents(run: Path, record: dict[str, Any]) -> list[Path]:
    """Run folders that a run started from: where it named them, or beside it.

    Args:
        run: The run folder.
        record: Its ``run.json``.
    """
    named = [Path(start) for start in _starts(record)]
    named = [path.parent if path.name == "policy" else path for path in named]
    places = [place for path in named for place in (path, run.resolve().parent / path.name)]
    return [place for place in dict.fromkeys(places) if _is_run(place)]


def _is_run(folder: Path) -> bool:
    try:
        return (folder / "run.json").is_file()
    except OSError:  # a folder of somebody else, a name that is none
        return False


def _starts(record: dict[str, Any]) -> list[str]:
    return [name for name in (record.get("parent"), record.get("base_model")) if name]


def _record(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "run.json")
    except CheckpointError:
        return {}


def _summary(folder: Path) -> dict[str, Any]:
    return RunFolder(folder).summary()

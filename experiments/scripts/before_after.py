r"""What a training changed, part by part: evaluations before and after it, over seeds.

Give each seed's two policies as run folders (or the ``.jsonl`` of an evaluation)::

    python experiments/scripts/before_after.py runs/translation-sft-s0=runs/translation-s0 \
        runs/translation-sft-s1=runs/translation-s1 --name translation

Both sides of a pair answered the same instructions, and all pairs did. Intervals (95 %) resample
seeds and items together. It writes ``<name>.json`` and ``<name>.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.errors import DataError, InstructRecError
from instructrec.experiments.evaluation import Evaluation, cluster_of, load_evaluation
from instructrec.experiments.jsonl import Row, write_atomic, write_json
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.stats import paired_difference, two_level_bootstrap

RESULTS = Path(__file__).resolve().parent.parent / "results"
CORPUS = "eval/corpus/"


class Side:
    """One policy's evaluation.

    Raises:
        DataError: There is none, or it has several responses to an instruction.
    """

    def __init__(self, text: str) -> None:
        self.path = Path(text)
        self.summary: dict[str, Any] = {}
        self.record: dict[str, Any] = {}
        file = self.path
        if self.path.is_dir():
            folder = RunFolder.open(self.path)
            self.summary, self.record = folder.summary(), folder.record()
            if "eval_file" not in self.summary:
                raise DataError(f"{self.path} has no evaluation in its summary.json.")
            file = self.path / self.summary["eval_file"]
        self.evaluation: Evaluation = load_evaluation(file)
        if self.evaluation.header["samples"] != 1:
            raise DataError(f"{file}: expected one response to each instruction.")
        self.rows: dict[str, Row] = {row["id"]: row for row in self.evaluation.rows}

    def scores(self, part: str) -> dict[str, float]:
        """Scores of a part (or the total) by instruction, where there is one."""
        found = {
            key: row["total"] if part == "total" else row["parts"].get(part)
            for key, row in self.rows.items()
        }
        return {key: float(score) for key, score in found.items() if score is not None}

    def corpus(self) -> dict[str, float]:
        """Scores of all responses together."""
        metrics = self.evaluation.metrics() | self.summary
        return {
            key.removeprefix(CORPUS).removesuffix("/score"): float(value)
            for key, value in metrics.items()
            if key.startswith(CORPUS) and key.endswith("/score")
        }


def compare(pairs: Sequence[tuple[Side, Side]]) -> dict[str, Any]:
    """All numbers: of each part, the mean before and after and the difference.

    Raises:
        DataError: The evaluations are of different instructions.
    """
    first = pairs[0][0]
    for side in (side for pair in pairs for side in pair):
        if side.rows.keys() != first.rows.keys():
            raise DataError(
                f"{side.path} answered other instructions than {first.path}: expected the same "
                "split and limit on both sides of every pair."
            )
    names = [*next(iter(first.rows.values()))["parts"], "total"]
    after = pairs[0][1]
    record = after.record or first.record
    return {
        "instructions": len(first.rows),
        "parts": {name: _part(name, pairs) for name in names},
        "corpus": {
            name: [[before.corpus()[name], end.corpus()[name]] for before, end in pairs]
            for name in first.corpus()
            if all(name in side.corpus() for pair in pairs for side in pair)
        },
        "train_s": [side.summary.get("train_s") for _, side in pairs],
        "commands": [[" ".join(side.record.get("command", [])) for side in pair] for pair in pairs],
        **{key: record[key] for key in ("machine", "versions", "git_commit") if key in record},
    }


def _part(name: str, pairs: Sequence[tuple[Side, Side]]) -> dict[str, Any]:
    """Before, after and difference of a part, on the instructions that it scored everywhere."""
    scores = [(before.scores(name), after.scores(name)) for before, after in pairs]
    ids = [key for key in pairs[0][0].rows if all(key in side for pair in scores for side in pair)]
    if not ids:
        raise DataError(f"no instruction has a score for {name!r} on both sides of every pair.")
    clusters = [cluster_of(pairs[0][0].rows[key]) for key in ids]
    before, after = (
        np.array([[pair[side][key] for key in ids] for pair in scores]) for side in (0, 1)
    )
    if len(pairs) > 1:
        difference = asdict(two_level_bootstrap(after - before, clusters, differences=True))
    else:
        difference = asdict(paired_difference(after[0], before[0], clusters))
    return {
        "n": len(ids),
        "before": before.mean(1).tolist(),
        "after": after.mean(1).tolist(),
        "difference": difference,
        "by_seed": (after - before).mean(1).tolist(),
    }


def to_markdown(results: dict[str, Any], name: str) -> str:
    """The table for people."""
    seeds = len(results["train_s"])
    resampled = "seeds and items" if seeds > 1 else "items"
    lines = [
        f"# {name.capitalize()}: before and after training",
        "",
        f"Test responses to {results['instructions']} instructions, {seeds} "
        f"{'seeds' if seeds > 1 else 'seed'}; intervals (95 %) of the paired differences resample "
        f"{resampled}.",
        "",
        "| part | before | after | difference | interval | by seed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for part, found in results["parts"].items():
        difference = found["difference"]
        each = ", ".join(f"{value:+.3f}" for value in found["by_seed"])
        lines.append(
            f"| {part} | {np.mean(found['before']):.3f} | {np.mean(found['after']):.3f} "
            f"| {difference['mean']:+.3f} | {difference['low']:+.3f} to {difference['high']:+.3f} "
            f"| {each} |"
        )
    if results["corpus"]:
        lines += ["", "| corpus score | before | after, by seed |", "| --- | --- | --- |"]
        for metric, each in results["corpus"].items():
            before, after = (", ".join(f"{pair[i]:.3f}" for pair in each) for i in (0, 1))
            lines.append(f"| {metric} | {before} | {after} |")
    if "machine" in results:
        machine, versions = results["machine"], results["versions"]
        lines += [
            "",
            f"Machine: {machine['cpu']}, {machine['cores']} cores, "
            f"{', '.join(machine['gpus']) or 'no GPU'}. torch {versions.get('torch')}, trl "
            f"{versions.get('trl')}; commit {results['git_commit']}. The commands are in the JSON "
            "file.",
        ]
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the comparison of the named pairs; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("pairs", nargs="+", help="BEFORE=AFTER, one pair for each seed")
    parser.add_argument("--name", required=True, help="name of the files written")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where they go")
    given = parser.parse_args(arguments)
    try:
        pairs = []
        for text in given.pairs:
            before, separator, after = text.partition("=")
            if not separator:
                raise DataError(f"{text!r}: expected BEFORE=AFTER, two run folders.")
            pairs.append((Side(before), Side(after)))
        results = compare(pairs)
    except InstructRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / f"{given.name}.json", results)
    found = json.loads((given.out / f"{given.name}.json").read_text(encoding="utf-8"))
    text = to_markdown(found, given.name)
    write_atomic(given.out / f"{given.name}.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Puts the quickstarts of several seeds together: every seed shown, intervals over seeds and items.

Run it after ``instructrec quickstart --seed S`` for each seed::

    python experiments/scripts/quickstart_seeds.py runs/quickstart-* --name quickstart

It reads the greedy evaluations of the run folders and writes ``<name>.json`` and ``<name>.md``.
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
from instructrec.experiments.progress import format_duration
from instructrec.experiments.quickstart_report import BASELINES, STAGES, TITLES
from instructrec.experiments.quickstart_stages import open_quickstart
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.stats import SeedInterval, paired_difference, seeds_interval

RESULTS = Path(__file__).resolve().parent.parent / "results"


class FinishedQuickstart:
    """One finished quickstart folder.

    Raises:
        DataError: It has not finished, or a stage has no greedy evaluation.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = open_quickstart(path)
        self.folder = RunFolder.open(path)
        self.record = self.folder.record()
        self.seed = int(self.record["seed"])
        self.wall_s = float(self.folder.summary()["wall_s"])
        there = [name for name in BASELINES if (path / name).exists()]
        self.stages = [*STAGES, *there]
        self.greedy = {name: self._greedy(name) for name in self.stages}
        self.rows = {name: _scored(found) for name, found in self.greedy.items()}

    def _greedy(self, stage: str) -> Evaluation:
        """The stage's greedy test evaluation."""
        named = RunFolder.open(self.path / stage).summary().get("eval_file")
        if named is None:
            raise DataError(f"{self.path / stage} has no evaluation in its summary.json.")
        return load_evaluation(self.path / stage / named)

    def sampled(self, stage: str) -> Evaluation:
        """The stage's evaluation with several responses to an instruction."""
        return load_evaluation(self.run.sampled_path(RunFolder.open(self.path / stage)))

    def train_s(self, stage: str) -> float:
        """Seconds that the stage was trained for."""
        return float(RunFolder.open(self.path / stage).summary().get("train_s", 0.0))

    def scores(self, stage: str, ids: Sequence[str]) -> np.ndarray:
        """Exact match of a stage, (len(ids),)."""
        return np.array([self.rows[stage][key]["parts"]["exact_match"] for key in ids])


def aggregate(runs: Sequence[FinishedQuickstart], note: str = "") -> dict[str, Any]:
    """All numbers of the report.

    Args:
        runs: Quickstarts of two or more different seeds, on the same test instructions.
        note: What a reader of the numbers has to know beside them.

    Raises:
        DataError: A seed appears twice, or the instructions or settings differ.
    """
    _check_alike(runs)
    ids, clusters = _common_items(runs)
    stages, seeds = {}, [run.seed for run in runs]
    names = runs[0].stages
    for stage in names:
        matrix = np.stack([run.scores(stage, ids) for run in runs])
        stages[stage] = asdict(seeds_interval(matrix, clusters))
        stages[stage]["train_s"] = [run.train_s(stage) for run in runs]
        stages[stage]["greedy"] = [run.greedy[stage].metrics() for run in runs]
        stages[stage]["sampled"] = [run.sampled(stage).metrics() for run in runs]
    others = [name for name in names if name not in ("base", "ppo")]
    differences = {f"ppo-{b}": _difference(runs, "ppo", b, ids, clusters) for b in others}
    return {
        "seeds": seeds,
        "instructions": len(ids),
        "items": len(set(clusters)),
        "wall_s": [run.wall_s for run in runs],
        "stages": stages,
        "differences": differences,
        "best_of": _best_of(runs),
        "commands": [" ".join(run.record["command"]) for run in runs],
        "machine": runs[0].record["machine"],
        "versions": runs[0].record["versions"],
        "git_commit": runs[0].record["git_commit"],
        "note": note,
    }


def _best_of(runs: Sequence[FinishedQuickstart]) -> dict[str, Any]:
    """The best sampled responses of the short SFT, and PPO's greedy ones to these instructions.

    Choosing the best takes the reward at test time: what reranking could get at the most.
    """
    best = [_best_scores(run.sampled("sft")) for run in runs]
    ids = [key for key in best[0] if all(key in scores for scores in best)]
    clusters = [cluster_of(runs[0].rows["sft"][key]) for key in ids]
    best_SN = np.array([[scores[key] for key in ids] for scores in best])
    ppo_SN = np.stack([run.scores("ppo", ids) for run in runs])
    both = seeds_interval(ppo_SN - best_SN, clusters, differences=True)
    return {
        "responses": min(run.sampled("sft").samples_scored for run in runs),
        "instructions": len(ids),
        "sft": asdict(seeds_interval(best_SN, clusters)),
        "ppo": asdict(seeds_interval(ppo_SN, clusters)),
        "difference": asdict(both),
    }


def _best_scores(sampled: Evaluation) -> dict[str, float]:
    """The best exact match among the responses to each instruction."""
    best: dict[str, float] = {}
    for row in sampled.rows:
        score = row["parts"].get("exact_match")
        if score is not None:
            best[row["id"]] = max(best.get(row["id"], 0.0), score)
    return best


def _scored(evaluation: Evaluation) -> dict[str, Row]:
    """Rows with a score, by instruction."""
    rows = evaluation.rows
    return {row["id"]: row for row in rows if row["parts"].get("exact_match") is not None}


def _common_items(runs: Sequence[FinishedQuickstart]) -> tuple[list[str], list[str]]:
    ids = list(runs[0].rows["base"])
    for run in runs:
        for stage, rows in run.rows.items():
            if rows.keys() != set(ids):
                raise DataError(
                    f"{run.path / stage} was measured on other instructions than {runs[0].path}: "
                    "the test split and its limit must be the same for all seeds."
                )
    return ids, [cluster_of(runs[0].rows["base"][key]) for key in ids]


def _check_alike(runs: Sequence[FinishedQuickstart]) -> None:
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise DataError(f"seeds {seeds}: expected each seed once; name fewer folders.")
    own = {"seed", "name", "output", "tracking"}
    first = {k: v for k, v in runs[0].folder.config().items() if k not in own}
    for run in runs[1:]:
        config = {k: v for k, v in run.folder.config().items() if k not in own}
        odd = [key for key in first if config.get(key) != first[key]]
        if run.stages != runs[0].stages:
            raise DataError(
                f"{run.path} has the stages {', '.join(run.stages)}, {runs[0].path} has "
                f"{', '.join(runs[0].stages)}: add the baselines to all, or to none."
            )
        if odd:
            raise DataError(
                f"{run.path} and {runs[0].path} differ in {', '.join(odd)}: seeds of one setting "
                "are put together, nothing else."
            )


def _difference(
    runs: Sequence[FinishedQuickstart], a: str, b: str, ids: Sequence[str], clusters: Sequence[str]
) -> dict[str, Any]:
    matrix = np.stack([run.scores(a, ids) - run.scores(b, ids) for run in runs])
    both: SeedInterval = seeds_interval(matrix, clusters, differences=True)
    each = [
        asdict(paired_difference(run.scores(a, ids), run.scores(b, ids), clusters)) for run in runs
    ]
    return {**asdict(both), "each_seed": each}


def to_markdown(results: dict[str, Any], name: str) -> str:
    """The report for people."""
    seeds = results["seeds"]
    lines = [
        f"# {name}",
        "",
        f"Exact match of greedy decoding on {results['instructions']} held-out instructions about "
        f"{results['items']} items, seeds {', '.join(map(str, seeds))}. Intervals (95 %) are "
        "of other seeds and other items; those of a single seed resample items.",
        "",
        "| policy | mean | interval | " + " | ".join(f"seed {s}" for s in seeds) + " | training |",
        "| --- | --- | --- |" + " --- |" * (len(seeds) + 1),
    ]
    for stage, found in results["stages"].items():
        each = " | ".join(f"{mean:.3f}" for mean in found["seed_means"])
        mean_s = float(np.mean(found["train_s"]))
        duration = format_duration(mean_s) if mean_s else "-"
        lines.append(
            f"| {TITLES[stage]} | {found['mean']:.3f} | {found['low']:.3f} to {found['high']:.3f} "
            f"| {each} | {duration} |"
        )
    lines += [
        "",
        "| difference | mean | interval | " + " | ".join(f"seed {s}" for s in seeds) + " |",
        "| --- | --- | --- |" + " --- |" * len(seeds),
    ]
    for key, found in results["differences"].items():
        a, _, b = key.partition("-")
        each = " | ".join(
            f"{d['mean']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})" for d in found["each_seed"]
        )
        lines.append(
            f"| {TITLES[a]} - {TITLES[b]} | {found['mean']:+.3f} | {found['low']:+.3f} to "
            f"{found['high']:+.3f} | {each} |"
        )
    for part in (_best_of_table, _sampled_table, _circumstances):
        lines += ["", *part(results)]
    lines.append("")
    return "\n".join(lines)


def _best_of_table(results: dict[str, Any]) -> list[str]:
    """The best of several responses, which needs no training, beside PPO."""
    found, seeds = results["best_of"], results["seeds"]
    number, best = found["instructions"], f"best of {found['responses']} of the short SFT"
    lines = [
        f"On the first {number} of these instructions: the best of {found['responses']} sampled "
        "responses, chosen by the reward itself (which knows the reference), and PPO's one greedy "
        "response.",
        "",
        f"| on {number} instructions | mean | interval | "
        + " | ".join(f"seed {seed}" for seed in seeds)
        + " |",
        "| --- | --- | --- |" + " --- |" * len(seeds),
    ]
    for title, key, form in (
        (best, "sft", ".3f"),
        ("PPO", "ppo", ".3f"),
        (f"PPO - {best}", "difference", "+.3f"),
    ):
        row = found[key]
        each = " | ".join(f"{mean:{form}}" for mean in row["seed_means"])
        ends = f"{row['low']:{form}} to {row['high']:{form}}"
        lines.append(f"| {title} | {row['mean']:{form}} | {ends} | {each} |")
    return lines


def _sampled_table(results: dict[str, Any]) -> list[str]:
    """Means over seeds of what sampling and lengths say."""
    first = results["stages"]["base"]["sampled"][0]
    passes = [key for key in first if key.startswith("eval/pass_at_")]
    best = max(passes, key=lambda key: int(key.rpartition("_")[2]), default="")
    columns = [
        ("sampled exact match", "sampled", "eval/exact_match/mean"),
        (best.removeprefix("eval/").replace("pass_at_", "pass@"), "sampled", best),
        ("entropy (nats/token)", "sampled", "eval/entropy"),
        ("response length (tokens)", "greedy", "eval/response_len"),
    ]
    lines = [
        f"Sampled responses and entropy: {results['best_of']['instructions']} instructions, "
        f"{results['best_of']['responses']} responses each, means over the seeds. Length: greedy "
        f"decoding on all {results['instructions']}.",
        "",
        "| policy | " + " | ".join(title for title, _, key in columns if key) + " |",
        "| --- |" + " --- |" * sum(bool(key) for _, _, key in columns),
    ]
    for stage, found in results["stages"].items():
        cells = []
        for _, kind, key in columns:
            values = [metrics[key] for metrics in found[kind] if key in metrics]
            if key:
                cells.append(f"{np.mean(values):.3f}" if values else "-")
        lines.append(f"| {TITLES[stage]} | " + " | ".join(cells) + " |")
    return lines


def _circumstances(results: dict[str, Any]) -> list[str]:
    machine, note = results["machine"], results["note"]
    walls = ", ".join(format_duration(wall) for wall in results["wall_s"])
    return [
        f"Wall time of each whole quickstart: {walls}. Machine: {machine['cpu']}, "
        f"{machine['cores']} cores, {', '.join(machine['gpus']) or 'no GPU'}. "
        f"torch {results['versions'].get('torch')}, trl {results['versions'].get('trl')}; "
        f"commit {results['git_commit']}.{f' {note}' if note else ''}",
        "",
        "```console",
        *(f"$ {command}" for command in results["commands"]),
        "```",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the results of the named folders; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folders", nargs="+", type=Path, help="finished quickstart folders")
    parser.add_argument("--name", default="quickstart", help="name of the files written")
    parser.add_argument("--note", default="", help="a remark beside the circumstances")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where they go")
    given = parser.parse_args(arguments)
    try:
        runs = sorted(
            (FinishedQuickstart(path) for path in given.folders), key=lambda run: run.seed
        )
        results = aggregate(runs, given.note)
    except InstructRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / f"{given.name}.json", results)
    write_atomic(given.out / f"{given.name}.md", to_markdown(results, given.name))
    print(to_markdown(json.loads((given.out / f"{given.name}.json").read_text()), given.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())

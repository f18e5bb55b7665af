"""Where does a critic pay? Baselines compared on single answers and on several tries, by seed.

Run it after ``critic_runs.py``, which trains them::

    python experiments/scripts/critic_table.py runs/critic/*

An arm is an environment (``task.env``) with a baseline (``ppo.advantage``). Runs of one environment
must be alike in all else, but for the groups of answers to one instruction that rloo needs. It
writes ``<name>.json`` and ``<name>.md``.
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
from instructrec.experiments import command_line
from instructrec.experiments.changed_settings import flatten
from instructrec.experiments.cli import command_parser
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.evaluation import cluster_of, load_evaluation
from instructrec.experiments.jsonl import write_atomic, write_json
from instructrec.experiments.progress import format_duration
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.stats import mean_interval, paired_difference, seeds_interval

RESULTS = Path(__file__).resolve().parent.parent / "results"
ENVS = {"instruction": "Single answers", "refine": "Several tries"}
ARMS = {"gae": "critic (gae)", "batch_mean": "batch mean", "rloo": "leave one out (rloo)"}
MAY_DIFFER = (
    *("name", "variant", "seed", "policy.model", "policy.device", "tracking.", "output.", "eval."),
    *("ppo.advantage", "ppo.num_generations", "ppo.save_every", "ppo.keep_checkpoints"),
)
"""Settings (or, ending in a dot, groups) in which runs of one environment may differ."""
SHOWN_AT, WINDOW, SEEDS_SHOWN = 20, 8, 5


class FinishedRun:
    """One finished training run.

    Raises:
        DataError: It has not finished, or a test response has no score.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        folder = RunFolder.open(path)
        self.record, self.summary = folder.record(), folder.summary()
        status, algorithm = self.record["status"], self.record["algorithm"]
        if status != "finished" or algorithm != "ppo":
            raise DataError(
                f"{path} is a {status} {algorithm} run: expected a finished one of ppo."
            )
        values = command_line.parse(command_parser("train"), [f"--config={path / 'config.yaml'}"])
        self.config: TrainConfig = command_line.as_dataclass(TrainConfig, values)
        self.seed, self.env = self.config.seed, self.config.task.env
        self.arm = self.config.ppo.advantage
        if self.arm not in ARMS:
            raise DataError(f"{path} has ppo.advantage = {self.arm!r}: expected {', '.join(ARMS)}.")
        self.updates = read_metrics(path)
        evaluation = load_evaluation(path / self.summary["eval_file"])
        self.header = evaluation.header
        self.scores: dict[str, float] = {}
        self.clusters: dict[str, str] = {}
        for row in evaluation.rows:
            if row["total"] is None or self.header["samples"] != 1:
                raise DataError(
                    f"{evaluation.path}: expected one response with a score for each instruction."
                )
            self.scores[row["id"]], self.clusters[row["id"]] = row["total"], cluster_of(row)

    @property
    def start(self) -> Path:
        """Folder of the policy that it started from."""
        path = Path(self.config.policy.model).resolve()
        return path.parent if path.name == "policy" else path

    def mean_of(self, key: str, first: int = 1, last: int | None = None) -> float | None:
        """Mean of a metric over updates, both ends included; None where it was never measured."""
        values = [
            row[key]
            for row in self.updates
            if row.get(key) is not None and first <= row["train/update"] <= (last or np.inf)
        ]
        return float(np.mean(values)) if values else None


def check_alike(runs: Sequence[FinishedRun]) -> None:
    """Checks that runs of one environment differ in baseline and seed alone.

    Raises:
        DataError: An arm has a seed twice, or runs had other settings, starts or test sets.
    """
    arms = [(run.arm, run.seed) for run in runs]
    if twice := [arm for arm in arms if arms.count(arm) > 1]:
        raise DataError(f"{twice[0][0]}, seed {twice[0][1]} is there twice: name fewer folders.")
    settings = [flatten(run.config.to_dict()) for run in runs]
    for run, config in zip(runs[1:], settings[1:], strict=True):
        odd = [k for k in config if config[k] != settings[0].get(k) and not _may_differ(k)]
        odd += [
            f"the evaluation's {key}"
            for key in ("fingerprint", "episodes", "sampling", "reward")
            if run.header.get(key) != runs[0].header.get(key)
        ]
        odd += ["the test instructions"] * (run.scores.keys() != runs[0].scores.keys())
        same_seed = next(other for other in runs if other.seed == run.seed)
        odd += [f"the start of seed {run.seed}"] * (run.start != same_seed.start)
        # Only leave-one-out needs groups; the other arms have one size of group, and it its own.
        peer = next(other for other in runs if (other.arm == "rloo") == (run.arm == "rloo"))
        groups = {r.config.ppo.num_generations for r in (run, peer)}
        odd += ["ppo.num_generations"] * (len(groups) > 1)
        if odd:
            raise DataError(f"{run.path} and {runs[0].path} differ in {', '.join(odd)}.")


def _may_differ(key: str) -> bool:
    return any(key.startswith(k) if k.endswith(".") else key == k for k in MAY_DIFFER)


def table(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """All numbers: environment -> arms and differences, and how they came about."""
    results: dict[str, Any] = {"envs": {}}
    for env in ENVS:
        group = sorted((run for run in runs if run.env == env), key=lambda run: run.seed)
        if not group:
            continue
        check_alike(group)
        arms = {arm: [run for run in group if run.arm == arm] for arm in ARMS}
        arms = {arm: found for arm, found in arms.items() if found}
        others = [arm for arm in arms if arm != "gae" and "gae" in arms]
        results["envs"][env] = {
            "task": group[0].config.task.name,
            "max_turns": group[0].config.task.episodes.most_turns,
            "instructions": len(group[0].scores),
            "arms": {arm: _arm(found) for arm, found in arms.items()},
            "differences": {f"gae-{b}": _difference(arms["gae"], arms[b]) for b in others},
        }
    first = runs[0].record
    kept = ("machine", "versions", "git_commit")
    return results | {key: first[key] for key in kept} | {"runs": len(runs)}


def _arm(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """What one baseline reached in one environment; numbers by seed in the order of the seeds."""
    key = "ppo/explained_variance"
    variance = {
        "first": [run.mean_of(key, last=WINDOW) for run in runs],
        "last": [run.mean_of(key, first=len(run.updates) - WINDOW + 1) for run in runs],
        f"update_{SHOWN_AT}": [run.mean_of(key, SHOWN_AT, SHOWN_AT) for run in runs],
    }
    used = [run.mean_of("ppo/critic_used") for run in runs] if runs[0].arm == "gae" else None
    return {
        "seeds": [run.seed for run in runs],
        "score": _interval(_matrix(runs), _clusters(runs)),
        "first_turn": [run.summary.get("eval/first_turn") for run in runs],
        "turns": [run.summary.get("eval/turns") for run in runs],
        "explained_variance": variance,
        "critic_used": used,
        "train_s": [run.summary["train_s"] for run in runs],
        "commands": [" ".join(run.record["command"]) for run in runs],
    }


def _difference(a: Sequence[FinishedRun], b: Sequence[FinishedRun]) -> dict[str, Any] | None:
    """Difference of the test scores over the seeds that both have; None without any."""
    seeds = {run.seed for run in a} & {run.seed for run in b}
    ours, theirs = ([run for run in runs if run.seed in seeds] for runs in (a, b))
    if not seeds:
        return None
    first, second = _matrix(ours), _matrix(theirs)
    clusters = _clusters(ours)
    if len(seeds) >= SEEDS_SHOWN:
        found = asdict(seeds_interval(first - second, clusters, differences=True))
    else:
        found = asdict(paired_difference(first.mean(0), second.mean(0), clusters))
    each = [float(mean) for mean in (first - second).mean(1)]
    return {**found, "seed_means": each, "seeds": sorted(seeds)}


def _matrix(runs: Sequence[FinishedRun]) -> np.ndarray:
    """Test scores, (seeds, instructions)."""
    ids = list(runs[0].scores)
    return np.array([[run.scores[key] for key in ids] for run in runs])


def _clusters(runs: Sequence[FinishedRun]) -> list[str]:
    return list(runs[0].clusters.values())


def _interval(matrix: np.ndarray, clusters: Sequence[str]) -> dict[str, Any]:
    """Over seeds and items from five seeds on; over items below that."""
    if len(matrix) >= SEEDS_SHOWN:
        return asdict(seeds_interval(matrix, clusters))
    found = asdict(mean_interval(matrix.mean(0), clusters))
    return found | {"seed_means": [float(mean) for mean in matrix.mean(1)]}


def to_markdown(results: dict[str, Any]) -> str:
    """The tables for people."""
    lines = [
        "# Where a critic pays",
        "",
        "Mean total of test responses after PPO with three baselines, otherwise alike. Intervals "
        f"(95 %) are of other seeds and items from {SEEDS_SHOWN} seeds on, of items below that. "
        "Explained variance: share of the variance of the returns that the value head predicts in "
        f"the first {WINDOW} updates, the last {WINDOW}, and update {SHOWN_AT}, mean over seeds; "
        "the head learns whatever the baseline is. Critic used: share of the updates in which its "
        "values were the baseline; in the others the batch mean was.",
    ]
    for env, found in results["envs"].items():
        tries = f", up to {found['max_turns']} answers each" if env == "refine" else ""
        lines += [
            "",
            f"## {ENVS[env]}: {found['task']}, {found['instructions']} test instructions{tries}",
            "",
            "| baseline | score | interval | by seed | first answers | explained variance "
            "| critic used | training |",
            "| --- |" + " --- |" * 7,
            *(_arm_line(arm, numbers) for arm, numbers in found["arms"].items()),
        ]
        if differences := {key: d for key, d in found["differences"].items() if d}:
            lines += ["", "| difference | mean | interval | by seed |", "| --- | --- | --- | --- |"]
            lines += [_difference_line(key, d) for key, d in differences.items()]
    machine, versions = results["machine"], results["versions"]
    lines += [
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, "
        f"{', '.join(machine['gpus']) or 'no GPU'}. torch {versions.get('torch')}, trl "
        f"{versions.get('trl')}; commit {results['git_commit']}. {results['runs']} runs; their "
        "commands are in the JSON file.",
        "",
    ]
    return "\n".join(lines)


def _arm_line(arm: str, found: dict[str, Any]) -> str:
    score, variance = found["score"], found["explained_variance"]
    each = ", ".join(f"{mean:.3f}" for mean in score["seed_means"])
    explained = " / ".join(_mean(values) for values in variance.values())
    used = "-" if found["critic_used"] is None else _mean(found["critic_used"], "{:.0%}")
    return (
        f"| {ARMS[arm]} | {score['mean']:.3f} | {score['low']:.3f} to {score['high']:.3f} "
        f"| {each} | {_mean(found['first_turn'])} | {explained} | {used} "
        f"| {format_duration(float(np.mean(found['train_s'])))} |"
    )


def _difference_line(key: str, found: dict[str, Any]) -> str:
    a, _, b = key.partition("-")
    each = ", ".join(f"{mean:+.3f}" for mean in found["seed_means"])
    return (
        f"| {ARMS[a]} - {ARMS[b]} | {found['mean']:+.3f} "
        f"| {found['low']:+.3f} to {found['high']:+.3f} | {each} |"
    )


def _mean(values: Sequence[float | None], form: str = "{:.3f}") -> str:
    known = [value for value in values if value is not None]
    return form.format(np.mean(known)) if known else "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the table of the named folders; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folders", nargs="+", type=Path, help="finished run folders")
    parser.add_argument("--name", default="critic", help="name of the files written")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where they go")
    given = parser.parse_args(arguments)
    try:
        results = table([FinishedRun(path) for path in given.folders])
    except InstructRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / f"{given.name}.json", results)
    text = to_markdown(json.loads((given.out / f"{given.name}.json").read_text(encoding="utf-8")))
    write_atomic(given.out / f"{given.name}.md", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

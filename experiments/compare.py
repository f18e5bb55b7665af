"""``instructrec compare``: which policy is better, by how much, and how sure that is.

Reads run folders alone. Every instruction weighs the same, samples of one instruction are averaged
first, policies are paired by instruction (and by seed where they have the same seeds), whole items
are resampled, and the spread of the runs says what others would give. It writes ``compare.json``,
``compare.md``, and a page for the browser.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.errors import ConfigError, DataError, unknown_name
from instructrec.experiments import compare_page, compare_tracking, telling
from instructrec.experiments.compare_stats import (
    FEWEST_RUNS,
    Decision,
    Pair,
    by_task,
    compare_all,
    interquartile_mean,
    is_few,
)
from instructrec.experiments.compare_tasks import numbers_by_task
from instructrec.experiments.compare_text import to_markdown, to_text, verdict
from instructrec.experiments.contenders import Comparison, Contender, read_comparison
from instructrec.experiments.env_commands import shown
from instructrec.experiments.jsonl import write_atomic, write_json
from instructrec.experiments.stats import mean_interval, seeds_interval
from instructrec.experiments.tracking import TrackingConfig, note_unused

LENGTHS_DIFFER = 1.25
"""Ratio of mean response lengths from which a reader is told."""
FAR_FROM_REFERENCE = 0.5
"""Nats per token from the reference (k1) from which a reader is told."""


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, and where the result goes (``instructrec compare``)."""

    metric: str = "total"
    """Reward that the verdict goes by: total, or the name of one."""
    common: bool = False
    """Compare on the instructions that all policies answered, should they differ."""
    out: str | None = None
    """Folder of the result; None takes runs/compare-<names>."""
    tracking: TrackingConfig = TrackingConfig(mode="disabled")
    """Where it is mirrored to; nowhere unless tracking.mode is given."""


def compare(
    named: Sequence[str], config: CompareConfig | None = None, *, say: telling.Say = telling.say
) -> dict[str, Any]:
    """Compares policies and writes the result.

    Args:
        named: Run folders (those of one variant are the seeds of one policy), ``.jsonl`` files of
            responses, or ``NAME=PATH,PATH``.
        config: See `CompareConfig`.
        say: Receives the report.

    Returns:
        What ``compare.json`` holds.

    Raises:
        ConfigError: The metric is none of theirs, or the folder holds something else.
        DataError: The policies cannot be compared; see `read_comparison`.
    """
    config = config or CompareConfig()
    note_unused(config.tracking, say)
    comparison = read_comparison(named, common=config.common)
    _check_metric(config.metric, comparison)
    names = [contender.name for contender in comparison.contenders]
    out = Path(config.out or "runs/" + _folder_name(names))
    if out.exists() and any(out.iterdir()) and not (out / "compare.json").exists():
        raise ConfigError(
            f"{out} is not empty and holds no comparison: expected a new folder, or one of an "
            "earlier comparison. Choose another one with --out."
        )
    results = results_of(comparison, config.metric)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "compare.json", results)
    markdown = to_markdown(results)
    write_atomic(out / "compare.md", markdown)
    write_atomic(out / "compare.html", compare_page.page(results, comparison))
    say(shown(to_text(results)))  # names and messages come from files of whoever ran it
    say(f"\nwritten  {out / 'compare.md'}, {out / 'compare.json'}, {out / 'compare.html'}")
    if config.tracking.mode != "disabled":
        compare_tracking.track(results, out, config.tracking, markdown=markdown, say=say)
    return results


def _check_metric(metric: str, comparison: Comparison) -> None:
    parts = comparison.parts
    if metric in parts:
        return
    if metric != "total" and parts:
        raise ConfigError(unknown_name("metric", metric, parts))
    advice = "Measure one of them again; `instructrec evaluate FILE.jsonl` scores responses anew."
    if parts:
        advice = f"They share {', '.join(parts)}: say which with --metric. {advice}"
    raise DataError(
        "the policies were measured by another reward, or one of another weight: "
        f"{metric} would mean different things. {advice}"
    )


def _folder_name(names: Sequence[str]) -> str:
    safe = ("".join(c if c.isalnum() or c in "-_." else "-" for c in name) for name in names)
    return ("compare-" + "-vs-".join(safe))[:120]


def results_of(comparison: Comparison, metric: str) -> dict[str, Any]:
    """All numbers of a comparison, JSON-able.

    Raises:
        DataError: Fewer than two items have a score of the metric from every policy.
    """
    parts = {part: _part(comparison, part) for part in comparison.parts}
    if not parts[metric]:
        raise DataError(
            f"fewer than two items have a score of {metric!r} from every run: expected rewards "
            "that apply to the same instructions, and several of these. Look at the rows of the "
            "evaluations."
        )
    parts = {name: part for name, part in parts.items() if part}
    header = comparison.contenders[0].members[0].evaluation.header
    return {
        "metric": metric,
        "task": header["task"],
        "split": header["split"],
        "instructions": len(comparison.ids),
        "policies": {c.name: _about(c) for c in comparison.contenders},
        "parts": parts,
        "verdicts": [verdict(pair) for pair in parts[metric]["pairs"]],
        "warnings": [*comparison.notes, *_warnings(comparison, parts, metric)],
    }


def _part(comparison: Comparison, part: str) -> dict[str, Any]:
    """Means and pairs by one reward; empty where fewer than two items have a score from all."""
    places = comparison.kept(part)
    clusters, labels = comparison.clusters(places), comparison.labels(places)
    if len(set(clusters)) < 2:  # nothing to resample
        return {}
    ids = [comparison.ids[i] for i in places]
    scores = {c.name: c.scores(ids, part) for c in comparison.contenders}
    seeds = {c.name: c.seeds for c in comparison.contenders}
    runs = {c.name: _num_runs(c) for c in comparison.contenders}
    tasks = {name: by_task(matrix, labels) for name, matrix in scores.items()}
    return {
        "instructions": len(places),
        "left_out": len(comparison.ids) - len(places),
        "policies": {
            name: {
                **asdict(mean_interval(matrix.mean(0), clusters)),
                "runs": _over_runs(matrix, clusters),
                "seed_means": matrix.mean(1).tolist(),
                "iqm": interquartile_mean(tasks[name]),
            }
            for name, matrix in scores.items()
        },
        "pairs": [
            {
                **asdict(pair),
                "a_runs": runs[pair.a],
                "b_runs": runs[pair.b],
                "decided_here": pair.decided_here,
                "decided": _decision(pair, runs),
            }
            for pair in compare_all(scores, seeds, clusters, labels)
        ],
        "tasks": numbers_by_task(scores, clusters, labels),
    }


def _num_runs(contender: Contender) -> int | None:
    """How many runs speak for a policy; None where there are no others to speak of."""
    return None if contender.is_fixed else len(contender.members)


def _decision(pair: Pair, runs: Mapping[str, int | None]) -> Decision:
    """What is known of a difference; either policy may have too few runs to tell of others."""
    if not pair.decided:
        return "no"
    return "these runs" if any(is_few(runs[name]) for name in (pair.a, pair.b)) else "yes"


def _over_runs(matrix: np.ndarray, clusters: list[str]) -> tuple[float, float] | None:
    """The interval of other runs on other instructions; None where too few runs tell."""
    if len(matrix) < FEWEST_RUNS:
        return None
    found = seeds_interval(matrix, clusters)
    return found.low, found.high


def _about(contender: Contender) -> dict[str, Any]:
    return {
        "runs": [
            {
                "path": str(member.path),
                "command": " ".join(member.record.get("command", [])),
                "git_commit": member.record.get("git_commit"),
                "machine": member.record.get("machine"),
                "versions": member.record.get("versions"),
            }
            for member in contender.members
        ],
        "seeds": contender.seeds,
        "algorithm": contender.members[0].record.get("algorithm"),
        "response_len": contender.response_len,
        "kl_per_token": contender.kl_per_token,
    }


def _warnings(comparison: Comparison, parts: dict[str, Any], metric: str) -> list[str]:
    """What could make a reader believe too much."""
    found = []
    if "total" not in comparison.parts:
        found.append(
            "totals are left out, as are rewards of other settings: the policies were measured by "
            "other rewards or other weights."
        )
    for contender in comparison.contenders:
        runs = _num_runs(contender)
        if runs is not None and is_few(runs):
            found.append(
                f"{contender.name} has {runs} run{'s' if runs > 1 else ''}: another seed may give "
                "another result than the interval says. Three seeds or more tell."
            )
        kl = contender.kl_per_token
        if kl is not None and abs(kl) > FAR_FROM_REFERENCE:
            found.append(
                f"{contender.name} ended {kl:.2f} nats per token from its reference: read its "
                "responses, which may please the reward alone."
            )
    if left := parts[metric]["left_out"]:
        found.append(
            f"{left} instructions without a score of {metric} from every run are left out."
        )
    for pair in parts[metric]["pairs"]:
        found += _of_a_pair(comparison, parts, metric, pair)
    return found


def _of_a_pair(
    comparison: Comparison, parts: dict[str, Any], metric: str, pair: dict[str, Any]
) -> list[str]:
    found = []
    by_name = {c.name: c.response_len for c in comparison.contenders}
    a, b = by_name[pair["a"]], by_name[pair["b"]]
    if a and b and max(a, b) / min(a, b) > LENGTHS_DIFFER:
        found.append(
            f"responses of {pair['a']} have {a:.1f} tokens and those of {pair['b']} {b:.1f}: make "
            "sure that the reward does not pay for length."
        )
    for name, part in parts.items():
        other = next(p for p in part["pairs"] if (p["a"], p["b"]) == (pair["a"], pair["b"]))
        against = other["mean"] * pair["mean"] < 0
        if name != metric and "no" not in (pair["decided"], other["decided"]) and against:
            better, worse = (pair["a"], pair["b"])[:: 1 if pair["mean"] > 0 else -1]
            found.append(f"{better} is better than {worse} in {metric}, but worse in {name}.")
    return found


if __name__ == "__main__":
    from instructrec.experiments.cli import main

    sys.exit(main(["compare", *sys.argv[1:]]))

"""A comparison as a run of job type ``compare`` in W&B or Trackio, with its tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructrec.experiments import wandb_report
from instructrec.experiments.jsonl import Row
from instructrec.experiments.tracking import TrackingConfig, open_tracking
from instructrec.experiments.tracking_threads import in_background


def track(
    results: dict[str, Any],
    out: Path,
    config: TrackingConfig,
    *,
    markdown: str = "",
    say: Callable[[str], None] = print,
    wandb: Any = None,
) -> None:
    """Sends a comparison.

    Args:
        results: What ``compare.json`` holds.
        out: Its folder; W&B's files go there.
        config: Where to.
        markdown: What ``compare.md`` holds; online it becomes a report there.
        say: Receives one line for people.
        wandb: The module; None imports it.
    """
    opened = open_tracking(
        config,
        out,
        name=out.name,
        job_type="compare",
        group="compare",
        tags=[results["task"], *results["policies"]],
        run_config={key: results[key] for key in ("metric", "task", "split", "policies")},
        note=say,
        wandb=wandb,
    )
    tracker = in_background(opened, config.wait_s)
    for name, rows in tables(results).items():
        if rows:
            tracker.log_table(name, rows)
    tracker.finish("finished", final(results))
    if tracker.mode == "online":
        wandb_report.save(out.name, markdown, config, say=say)


def tables(results: dict[str, Any]) -> dict[str, list[Row]]:
    """The tables of a comparison, numbers as numbers.

    Args:
        results: What ``compare.json`` holds.

    Returns:
        ``policies`` (a row each), ``differences`` (one for each pair and reward), ``tasks`` (means
        by task; empty for a single one) and ``notes`` (verdicts and warnings).
    """
    parts, metric = results["parts"], results["metric"]
    policies = []
    for name, about in results["policies"].items():
        row: Row = {"policy": name, "algorithm": about["algorithm"], "runs": len(about["runs"])}
        for part, found in parts.items():
            of_policy = found["policies"][name]
            row |= {part: of_policy["mean"], f"{part} low": of_policy["low"]}
            row[f"{part} high"] = of_policy["high"]
            if of_policy["runs"] is not None:
                ends = zip(("low", "high"), of_policy["runs"], strict=True)
                row |= {f"{part} of other runs {end}": value for end, value in ends}
        policies.append(row | {"tokens": about["response_len"], "kl": about["kl_per_token"]})
    differences = [{"reward": part, **pair} for part in parts for pair in parts[part]["pairs"]]
    by_task = parts[metric]["tasks"].items()
    notes = [{"kind": "verdict", "text": text} for text in results["verdicts"]]
    notes += [{"kind": "warning", "text": text} for text in results["warnings"]]
    return {
        "policies": policies,
        "differences": differences,
        "tasks": [
            {"task": label, "instructions": found["n"]}
            | {name: means["mean"] for name, means in found["policies"].items()}
            for label, found in by_task
        ],
        "notes": notes,
    }


def final(results: dict[str, Any]) -> Row:
    """The numbers of the summary: mean and interval of each policy, and the first verdict."""
    found: Row = {"instructions": results["instructions"], "verdict": results["verdicts"][0]}
    for name, of_policy in results["parts"][results["metric"]]["policies"].items():
        found |= {f"{name}/{key}": of_policy[key] for key in ("mean", "low", "high")}
    return found

"""What an evaluation says: a table for people, and a run of job type ``eval`` in a tracker."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instructrec.experiments.best_of import sizes_up_to
from instructrec.experiments.bounds import Bounds
from instructrec.experiments.evaluation import Evaluation
from instructrec.experiments.groups import by_level, by_task
from instructrec.experiments.jsonl import Row
from instructrec.experiments.listing import table
from instructrec.experiments.tracking import TrackingConfig, open_tracking
from instructrec.experiments.tracking_threads import in_background

_SAMPLES = 200
"""Most responses that a tracker is told of; the file of the evaluation has all."""


_AS_ROWS = ("eval/pass_at_", "eval/best_of_")
"""Metrics that have rows with an interval of their own."""


def report(policy: str, evaluation: Evaluation, bounds: Bounds | None = None) -> str:
    """The result as a table: rewards, corpus metrics, families of instructions, then the rest.

    With several responses to an instruction there are rows for the chance that one of k gets full
    marks, and for the best of k. The latter needs the reward at test time: a bound for what
    reranking could reach, not what the policy gets.

    Args:
        policy: As on the command line.
        evaluation: Its rows and numbers.
        bounds: What scripted policies get on the same instructions.
    """
    header, metrics = evaluation.header, evaluation.metrics()
    temperature = header["sampling"]["temperature"]
    items = len({row["id"] for row in evaluation.rows})
    episodes = header.get("episodes", {})
    tries = f"up to {episodes['max_turns']} answers in each, " if "max_turns" in episodes else ""
    title = (
        f"{policy} on {header['task']} ({header['split']}): {items} instructions, "
        f"{header['samples']} response{'s' if header['samples'] > 1 else ''} each, {tries}"
        + ("greedy" if temperature == 0 else f"sampled at temperature {temperature:g}")
    )
    rows: list[tuple[str, ...]] = [("", "mean", "95 % interval", "scored")]
    parts = [*evaluation.parts, *(["total"] if len(evaluation.parts) > 1 else [])]
    for part in parts:
        rows.append(_row(part, evaluation.interval(part)))
    unscored = [row[0] for row in rows[1:] if row[-1] == "0"]
    rows = [row for row in rows if row[0] not in unscored]
    rows += [_row(f"corpus {name}", value) for name, value in evaluation.corpus.items()]
    sizes = sizes_up_to(evaluation.samples_scored)
    rows += [_row(f"pass@{k}", evaluation.pass_at(k)) for k in ([1, *sizes] if sizes else [])]
    rows += [_row(f"best of {k}", evaluation.best_of(k)) for k in sizes]
    metrics = {key: value for key, value in metrics.items() if not key.startswith(_AS_ROWS)}
    for family, intervals in evaluation.families().items():
        if intervals["total"].n:
            rows.append(_row(f"  {family}", intervals["total"]))
    for name, value in by_level(evaluation).items():
        rows.append(_row(f"  level {name}", value))
    for name, value in by_task(evaluation).items():
        rows.append(_row(f"  task {name}", value))
    bounds = bounds or Bounds()
    rows += [_row(f"bound {name}", value) for name, value in bounds.totals.items()]
    rest = [
        (key.removeprefix("eval/"), f"{value:.3f}")
        for key, value in metrics.items()
        if key.count("/") == 1 or (key.endswith("_frac") and value > 0)
    ]
    if unscored:
        rest.append(("without any score", ", ".join(unscored)))
    return "\n".join([title, "", table(rows), *(["", table(rest)] if rest else []), *bounds.notes])


def _row(name: str, interval: Any) -> tuple[str, ...]:
    between = f"{interval.low:.3f} to {interval.high:.3f}"
    known = math.isfinite(interval.low) and math.isfinite(interval.high)
    return name, f"{interval.mean:.3f}", between if known else "unknown", str(interval.n)


def track(
    policy: str,
    evaluation: Evaluation,
    folder: Path,
    config: TrackingConfig,
    *,
    say: Callable[[str], None] = print,
    wandb: Any = None,
) -> None:
    """Sends an evaluation.

    Args:
        policy: As on the command line.
        evaluation: Its rows and numbers.
        folder: The run folder that it lies in; W&B's files go there.
        config: Where to.
        say: Receives one line for people.
        wandb: The module; None imports it.
    """
    header = evaluation.header
    opened = open_tracking(
        config,
        folder,
        name=f"{Path(policy).name}-{header['task']}-{header['split']}",
        job_type="eval",
        group=Path(policy).name,
        tags=[str(header["task"]), *evaluation.parts],
        run_config=header,
        note=say,
        wandb=wandb,
    )
    tracker = in_background(opened, config.wait_s)
    tracker.log_table("families", _families(evaluation))
    tracker.log_samples(evaluation.rows[:_SAMPLES])
    tracker.finish("finished", evaluation.metrics())


def _families(evaluation: Evaluation) -> list[Row]:
    """A row for each family of instructions and reward, and for all of them together."""
    found = {
        "all": {part: evaluation.interval(part) for part in (*evaluation.parts, "total")},
        **evaluation.families(),
    }
    return [
        {"family": family, "reward": part, "mean": of.mean, "low": of.low, "high": of.high}
        for family, parts in found.items()
        for part, of in parts.items()
    ]

"""What a pipeline found as a run of job type ``compare``, in the group of its stages."""

from __future__ import annotations

from typing import Any

from instructrec.experiments import telling
from instructrec.experiments.jsonl import Row
from instructrec.experiments.pipeline_config import PipelineConfig
from instructrec.experiments.tracking import open_tracking
from instructrec.experiments.tracking_threads import in_background


def track(
    numbers: dict[str, Any],
    config: PipelineConfig,
    *,
    say: telling.Say = telling.say,
    wandb: Any = None,
) -> None:
    """Sends the comparison of all stages.

    Args:
        numbers: What ``pipeline.json`` holds.
        config: The pipeline; W&B's files go to its folder.
        say: Receives one line for people.
        wandb: The module; None imports it.
    """
    folder = config.folder
    opened = open_tracking(
        config.stage_tracking,
        folder,
        name=folder.name,
        job_type="compare",
        group=folder.name,
        tags=[config.algorithm, config.policy.model, config.task.name],
        run_config=config.to_dict(),
        note=say,
        wandb=wandb,
    )
    tracker = in_background(opened, config.tracking.wait_s)
    for name, rows in tables(numbers).items():
        tracker.log_table(name, rows)
    tracker.finish("finished", final(numbers))


def tables(numbers: dict[str, Any]) -> dict[str, list[Row]]:
    """The tables of a pipeline, numbers as numbers.

    Args:
        numbers: What ``pipeline.json`` holds.

    Returns:
        ``policies`` (a row each), ``differences`` (gold against SFT), ``rounds`` (preferences and
        the reward model's accuracy), and ``points`` (proxy and gold of each evaluated update).
    """
    policies = []
    for name, found in numbers["policies"].items():
        gold = {("gold" if k == "mean" else f"gold {k}"): v for k, v in found["gold"].items()}
        rest = {key: value for key, value in found.items() if key != "gold"}
        policies.append({"policy": name, **gold, **rest})
    differences = [
        {"policy": name, **found} for name, found in numbers["differences_to_sft"].items()
    ]
    rounds, points = [], []
    for number, found in enumerate(numbers["rounds"], start=1):
        accuracy = {f"pair accuracy {key}": value for key, value in found["pair_accuracy"].items()}
        told = ("preferences", "turned_round", "kept_update", "best_gold_update", "told")
        rounds.append({"round": number, **{key: found[key] for key in told}, **accuracy})
        points += [{"round": number, **point} for point in found["points"]]
    return {"policies": policies, "differences": differences, "rounds": rounds, "points": points}


def final(numbers: dict[str, Any]) -> Row:
    """The numbers of the summary: gold of each policy, and what it is above SFT."""
    found: Row = {}
    for name, policy in numbers["policies"].items():
        found |= {f"{name}/gold/{key}": policy["gold"][key] for key in ("mean", "low", "high")}
    for name, difference in numbers["differences_to_sft"].items():
        found |= {f"{name}/above SFT/{key}": difference[key] for key in ("mean", "low", "high")}
    return found

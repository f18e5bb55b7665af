"""Where an evaluation goes: into the policy's run folder, or one of its own; one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec.errors import CheckpointError, ConfigError
from instructrec.experiments import telling
from instructrec.experiments.config import EvaluateConfig, PlaceConfig
from instructrec.experiments.jsonl import plain
from instructrec.experiments.locks import held
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.policies.endpoint import is_endpoint

if TYPE_CHECKING:
    from instructrec.experiments.evaluate_policy import Plan

Hold = Callable[[AbstractContextManager[None]], None]
"""Enters a context that somebody else leaves."""


def place(
    policy: str,
    plan: Plan,
    config: EvaluateConfig,
    run: RunFolder | None,
    overwrite: bool,
    command: Sequence[str] | None,
    hold: Hold,
) -> tuple[RunFolder | None, Path]:
    """Makes room for the rows of an evaluation, where nobody else writes.

    Args:
        policy: As on the command line.
        plan: The evaluation with every open setting filled in.
        config: What was asked for.
        run: The policy's run folder, if it has one.
        overwrite: Delete an earlier evaluation in the same place.
        command: The command line after the program's name, for the record.
        hold: Enters a lock that lasts as long as the evaluation.

    Returns:
        The evaluation's own run folder, if any, and the file of its rows.

    Raises:
        CheckpointError: Another process writes there, or it holds this one or something else.
        ConfigError: No folder name can be made of the policy's, or a place was given that is none.
    """
    decoding = telling.decoding(plan.sampling, plan.samples, plan.limit, config.seed, plan.episodes)
    if run is None or config.name is not None:
        folder = _new_folder(policy, plan, config, decoding, overwrite, command, hold)
        return folder, folder.eval_path(plan.task, plan.split, decoding, 0)
    asked = config.output.dir
    if asked != PlaceConfig.dir and Path(asked).resolve() != run.path.resolve().parent:
        raise ConfigError(
            f"output.dir = {asked!r} given, but the evaluation of a run goes into its "
            f"own folder, {run.path}: leave it out, or give --name as well for a folder there."
        )
    update = int(run.summary().get("best_update", 0))
    file = run.eval_path(plan.task, plan.split, decoding, update)
    hold(held(run.path, "evaluate", shared=True))  # others may measure it otherwise meanwhile
    hold(held(file, "evaluate"))
    if overwrite:
        file.unlink(missing_ok=True)
        file.with_suffix(".json").unlink(missing_ok=True)
    return None, file


def _new_folder(
    policy: str,
    plan: Plan,
    config: EvaluateConfig,
    decoding: str,
    overwrite: bool,
    command: Sequence[str] | None,
    hold: Hold,
) -> RunFolder:
    who = f"{config.endpoint.model} at {policy}" if is_endpoint(policy) else policy
    label = re.sub(r"[^A-Za-z0-9.]+", "-", who).strip("-.")
    task = re.sub(r"[^A-Za-z0-9.]+", "-", Path(plan.task.split(":")[0]).stem)
    derived = f"eval-{label}-{task}-{plan.split}-{decoding}".replace("_", "-")
    if not re.fullmatch(r"[A-Za-z0-9.-]+", derived):
        raise ConfigError(f"no folder name can be made of {policy!r}: give one with --name.")
    parent = policy if (Path(policy) / "run.json").is_file() else None
    trained_with = None if parent is None else RunFolder.open(parent).info().seed
    info = RunInfo(
        job_type="eval",
        algorithm="none",
        variant=label,
        # Greedy answers of a run are those of its seed, by which runs are compared pair by pair.
        seed=trained_with if plan.sampling.greedy else config.seed,
        base_model=who,
        task=plan.task,
        parent=parent,
    )
    resolved = {
        "policy": {"model": policy, "system_prompt": plan.policy.system_prompt},
        "task": {"name": plan.task, "options": plan.options, "test_split": plan.split},
        "rewards": plan.rewards,
        "eval": {"limit": plan.limit, "samples": plan.samples, "batch_size": config.batch_size},
        "seed": config.seed,
    }
    if is_endpoint(policy):
        resolved["endpoint"] = asdict(config.endpoint)
    resolved["task"] |= plan.episodes.header()
    resolved["eval"] |= vars(plan.sampling)
    resolved["eval"] |= {
        "corpus_metrics": list(plan.corpus.names),
        "corpus_references": plan.corpus.references,
    }
    path = Path(config.output.dir) / (config.name or derived)
    hold(held(path, "evaluate"))
    return RunFolder.create(
        path,
        info,
        resolved,
        resume=not overwrite and _goes_on(path, resolved),
        overwrite=overwrite,
        command=None if command is None else ["instructrec", *command],
    )


def _goes_on(path: Path, resolved: dict[str, Any]) -> bool:
    """Whether the folder holds the same evaluation, which did not come to its end.

    Raises:
        CheckpointError: It holds one that did, or another run.
    """
    if not (path / "run.json").is_file():
        return False
    before = RunFolder.open(path)
    is_same = before.config() == plain(resolved)
    if is_same and before.record().get("status") != "finished":
        return True
    what = "this evaluation, finished" if is_same else "another run, or other settings"
    raise CheckpointError(
        f"{path} exists already and holds {what}: give another --name, or --overwrite to delete "
        "what is there and measure anew."
    )

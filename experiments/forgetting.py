"""Old tasks, measured before and after a training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec.errors import DataError
from instructrec.experiments import telling
from instructrec.experiments.before_after import changes
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.evaluation import Evaluation, evaluate, load_evaluation
from instructrec.experiments.kept_tasks import KeptTask
from instructrec.experiments.runfolder import RunFolder
from instructrec.policies.base import Policy


def measure_kept(
    kept: KeptTask, policy: Policy, config: TrainConfig, folder: RunFolder, update: int
) -> Evaluation:
    """Measures a policy on an old task; where that was done at the start, it is read.

    Args:
        kept: The task.
        policy: Who answers.
        config: How it is evaluated.
        folder: Gets the rows.
        update: Update or step after which this is; 0 is the start.
    """
    settings, sampling = config.eval, config.eval_sampling
    name = telling.decoding(sampling, settings.samples, settings.limit, config.seed, kept.episodes)
    file = folder.eval_path(f"kept_{kept.label}", kept.task.split, name, update)
    if update == 0 and file.exists() and (found := _complete(file)) is not None:
        return found
    return evaluate(
        policy,
        kept.task,
        kept.reward,
        sampling=sampling,
        samples=settings.samples,
        batch_size=settings.batch_size,
        limit=settings.limit,
        episodes=kept.episodes,
        out=file,
    )


def forgotten(
    kept: Sequence[KeptTask], policy: Policy, config: TrainConfig, folder: RunFolder, update: int
) -> dict[str, Any]:
    """What the summary of a run says of its old tasks: ``kept``, a mapping of them to `change`.

    Args:
        kept: The tasks, measured at the start.
        policy: As training left it.
        config: How it is evaluated.
        folder: Has the rows of the start.
        update: Update or step of the policy's weights.
    """
    if not kept:
        return {}
    measured = {
        each.name: [measure_kept(each, policy, config, folder, n) for n in (0, update)]
        for each in kept
    }
    return {"kept": {name: change(*pair) for name, pair in measured.items()}}


def change(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """What became of an old task: both means, and the interval of the difference.

    Args:
        before: Of the policy as training began.
        after: Of the policy that training left.

    Returns:
        ``before, after, low, high, p, n, verdict``, where an end of the interval that is not known
        is None; empty where no instruction was scored both times.
    """
    found = changes(before, after, rewards=False)
    if not found:
        return {}
    values = dataclasses.asdict(found[0]) | {"verdict": found[0].verdict}
    del values["part"]
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }


def _complete(file: Path) -> Evaluation | None:
    """Reads an evaluation that was made; None where it is missing or was interrupted."""
    try:
        return load_evaluation(file)
    except DataError:
        return None

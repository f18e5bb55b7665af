"""Holds a run to its data: what it was started on is in ``run.json``, under ``data``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from instructrec.envs.tasks.base import Task
from instructrec.errors import CheckpointError
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.runfolder import RunFolder

Splits = Mapping[str, Task]
"""What a run learns from and is measured on, by the name of the split."""


def fingerprints(splits: Splits) -> dict[str, str]:
    """What the instructions of each split hash to, by split."""
    return {name: task.fingerprint for name, task in splits.items()}


def note_data(folder: RunFolder, splits: Splits) -> None:
    """Records the data of a run."""
    data = {"data": fingerprints(splits)}
    write_json(folder.path / "run.json", folder.record() | data)


def refuse_other_data(folder: Path, splits: Splits) -> None:
    """Refuses to continue a run on other data than it was started on.

    Raises:
        CheckpointError: A split has changed since.
    """
    before = RunFolder.open(folder).record().get("data", {})
    changed = [name for name, now in fingerprints(splits).items() if before.get(name, now) != now]
    if changed:
        raise CheckpointError(
            f"the data of {folder} has changed since the run was started ({', '.join(changed)} "
            "split): the order of the instructions and every number would no longer be those of "
            "one run. Put the data back, start a new run from the policy of this one, or go on all "
            "the same with --allow_change data."
        )

"""What must be as it was when a run goes on, and what may be allowed to differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from instructrec import processes
from instructrec.errors import CheckpointError
from instructrec.rl.config import CHOSEN_AT_START, MAY_CHANGE, PPOConfig
from instructrec.rl.monitor_config import read_monitors

if TYPE_CHECKING:
    from instructrec.envs.tasks.base import Task

_STATE = (
    *("progress", "config", "rewards", "monitors", "prompt_filter"),
    *("scheduler_step", "coefficients", "reuse"),
)
"""What every checkpoint holds beside the tensors."""
_PACKAGES = (
    *("instructrec", "torch", "transformers", "tokenizers", "trl", "accelerate", "peft", "numpy"),
)
"""Packages whose version decides the numbers of a run."""


def versions() -> dict[str, str]:
    """The versions of the packages that decide the numbers of a run."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a checkout that was not installed
            continue
    return found


def check_compatible(
    state: Mapping[str, Any], config: PPOConfig, task: Task, allow_change: Collection[str] = ()
) -> None:
    """Refuses to continue a run with what would make it another run.

    Args:
        state: What the checkpoint says.
        config: Settings now.
        task: Instructions now.
        allow_change: What may differ all the same: ``ppo.<setting>``, ``data``, ``versions``.

    Raises:
        CheckpointError: A setting differs that shapes an update, or the number of processes, the
            instructions, or the version of a package.
    """
    _check_processes(state.get("processes", 1))
    saved, now = state.get("config", {}), dataclasses.asdict(config)
    missing = [name for name in _STATE if name not in state]
    missing += [f"ppo.{name}" for name in now if name not in saved and name not in MAY_CHANGE]
    if missing:
        raise CheckpointError(
            f"the checkpoint says nothing of {', '.join(missing)}: expected one that was written "
            "by this version of instructrec. Continue the run with the version that began it, or "
            "start a new run from its policy."
        )
    chosen = CHOSEN_AT_START if config.micro_batch_size is None else ()
    for name, value in now.items():
        if name in chosen and value is None:  # is taken from the checkpoint
            continue
        before = saved.get(name)
        before = tuple(before) if isinstance(before, list) else before
        if name not in MAY_CHANGE and before != value and f"ppo.{name}" not in allow_change:
            raise CheckpointError(
                f"ppo.{name} = {value!r} but the run was started with {before!r}: a resumed run "
                f"keeps its settings. Set ppo.{name} back, start a new run, or go on all the same "
                f"with --allow_change ppo.{name}."
            )
    _check_monitors(saved.get("monitors") or {}, config, allow_change)
    if "data" in state and state["data"] != task.fingerprint and "data" not in allow_change:
        raise CheckpointError(
            f"the instructions of {task.name!r} ({task.split}) have the fingerprint "
            f"{task.fingerprint[:12]}, but those that the run was started with had "
            f"{state['data'][:12]}: a resumed run goes on with the same data. Put them back, start "
            "a new run, or go on all the same with --allow_change data."
        )
    if "versions" not in allow_change:
        check_versions(state.get("versions"))


def _check_monitors(
    saved: Mapping[str, Any], config: PPOConfig, allow_change: Collection[str]
) -> None:
    """Who is warned or stops may change; who changes the learning rate or the KL may not."""
    before, now = read_monitors(saved).steering(), config.monitors.steering()
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed and "ppo.monitors" not in allow_change:
        raise CheckpointError(
            f"ppo.monitors.{changed[0]} = {now.get(changed[0])} but the run was started with "
            f"{before.get(changed[0])}: it changes updates, and a resumed run keeps such settings. "
            "Set it back, start a new run, or go on all the same with --allow_change ppo.monitors."
        )


def _check_processes(before: int) -> None:
    count = processes.world_size()
    if before != count:
        raise CheckpointError(
            f"the run was started with {before} process{'es' if before > 1 else ''} and this is "
            f"{count}: each draws and shuffles by a generator of its own, so a resumed run keeps "
            f"their number. Launch {before}, or start a new run from the policy of this one."
        )


def check_start(
    state: Mapping[str, Any], weights_hash: str, allow_change: Collection[str] = ()
) -> None:
    """Refuses to continue a run from another start, whose frozen weights and reference differ.

    Args:
        state: What the checkpoint says; an older one says nothing of the start, and passes.
        weights_hash: Hash of the policy as it was loaded now, before the checkpoint is put into it.
        allow_change: What may differ all the same: ``weights``.

    Raises:
        CheckpointError: The weights that the run started from were others.
    """
    before = state.get("start", weights_hash)
    if before != weights_hash and "weights" not in allow_change:
        raise CheckpointError(
            f"the model starts from different weights (hash {weights_hash[:12]}) than the run did "
            f"({before[:12]}): a checkpoint holds only what trains, so all other weights, and the "
            "reference of a policy, would be those of another model. Was the model replaced, or "
            "policy.train changed? Put it back, start a new run, or go on all the same with "
            "--allow_change weights."
        )


def check_versions(before: Mapping[str, str] | None) -> None:
    """Refuses to continue a run with other packages than it was started with.

    Args:
        before: Their versions then; None where none were kept, which passes.

    Raises:
        CheckpointError: A version differs.
    """
    if before is None:
        return
    now = versions()
    changed = [
        f"{name} {before.get(name, 'missing')} -> {now.get(name, 'missing')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise CheckpointError(
            f"the run was started with other versions ({', '.join(changed)}), with which its "
            "numbers may differ: expected the same. Install those, or go on all the same with "
            "--allow_change versions."
        )

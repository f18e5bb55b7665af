"""What a PPO checkpoint carries: to and from named tensors and JSON."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from instructrec import processes
from instructrec.errors import CheckpointError
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.rl import sharing
from instructrec.rl.checkpoint import (
    Snapshot,
    checkpoint_path,
    prune_checkpoints,
    write_checkpoint,
)
from instructrec.rl.config import MAY_CHANGE, PPOConfig
from instructrec.rl.run_state import Progress, Stopped, TrainingResult
from instructrec.rl.trained import copy_into

if TYPE_CHECKING:
    from instructrec.rl.ppo import PPOTrainer

_LEARNER = ("scheduler_step", "coefficients", "reuse")
"""Of the learner's state, what is no tensor."""
_GENERATORS = ("sampler", "shuffler")
"""States of generators, of which each process has its own."""
_STATE = ("progress", "config", "rewards", "monitors", "prompt_filter", *_LEARNER)
"""What `capture` keeps beside the tensors, and `restore` needs."""


def capture(trainer: PPOTrainer) -> Snapshot:
    """Takes the trained weights, the critic, the optimizer, and all generator states.

    Every process has to call it: the generators of all are kept.

    Raises:
        NumericsError: The processes no longer hold the same weights.
    """
    learner = trainer.learner
    sharing.check_same_weights([learner.policy.model, learner.critic])
    own = learner.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for part in ("policy", "critic"):
        tensors |= {f"{part}.{name}": p for name, p in own[part].items()}
    for index, moments in own["optimizer"].items():
        tensors |= {
            f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()
        }
    for number, generators in enumerate(processes.gather({key: own[key] for key in _GENERATORS})):
        tensors |= {_of(name, number): state for name, state in generators.items()}
    state = {
        "processes": processes.world_size(),
        "progress": dataclasses.asdict(trainer.progress),
        "config": dataclasses.asdict(trainer.config),
        "rewards": trainer.env.reward.state_dict(),
        "monitors": trainer.monitors.state_dict(),
        "prompt_filter": trainer.prompt_filter.state_dict() if trainer.prompt_filter else None,
        **{name: own[name] for name in _LEARNER},
    }
    return Snapshot(tensors, state)


def read(folder: Path, config: PPOConfig) -> Snapshot:
    """Reads the checkpoint that a run of these settings goes on from.

    Raises:
        CheckpointError: It cannot be read, or belongs to another run.
    """
    snapshot = sharing.read_shared(folder)
    check_compatible(snapshot, config)
    return snapshot


def restore(trainer: PPOTrainer, snapshot: Snapshot) -> None:
    """Puts everything back; the trainer then goes on as if it had never stopped."""
    tensors, state = snapshot.tensors, snapshot.state
    moments: dict[int, dict[str, Any]] = {}
    for key, value in _under("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    trainer.learner.load_state_dict(
        {
            "updates": trainer.progress.update,
            "policy": _under("policy.", tensors),
            "critic": _under("critic.", tensors),
            "optimizer": moments,
            **{name: state[name] for name in _LEARNER},
            **{name: tensors[_of(name, processes.rank())] for name in _GENERATORS},
        }
    )
    trainer.env.reward.load_state_dict(state["rewards"])
    trainer.monitors.load_state_dict(state["monitors"])
    if trainer.prompt_filter is not None:
        trainer.prompt_filter.load_state_dict(state["prompt_filter"])


def save(trainer: PPOTrainer) -> None:
    """Writes a checkpoint where the run keeps some, and deletes those that are no longer kept."""
    directory, progress = trainer.checkpoint_dir, trainer.progress
    if directory is None:
        return
    snapshot = capture(trainer)

    def commit() -> None:
        write_checkpoint(checkpoint_path(directory, progress.update), snapshot)
        prune_checkpoints(directory, trainer.config.keep_checkpoints, progress.best_update or None)

    processes.on_main(commit)


def conclude(
    policy: CausalLMPolicy, progress: Progress, stopped: Stopped, checkpoint_dir: Path | None
) -> TrainingResult:
    """Leaves the best weights in the policy, where they are known and the run is over."""
    best = progress.best_update or progress.update
    if best != progress.update and checkpoint_dir is not None and stopped != "interrupted":
        load_weights(policy, sharing.read_shared(checkpoint_path(checkpoint_dir, best)))
    policy.sync()
    return TrainingResult(progress.update, best, progress.best_score, stopped)


def load_weights(policy: CausalLMPolicy, snapshot: Snapshot) -> None:
    """Puts the trained weights of a checkpoint into the policy.

    Raises:
        CheckpointError: The policy trains other weights than the checkpoint holds.
    """
    copy_into(policy.model, _under("policy.", snapshot.tensors))
    policy.sync()


def check_compatible(snapshot: Snapshot, config: PPOConfig) -> None:
    """Refuses to continue a run with settings that would make it another run.

    Raises:
        CheckpointError: A setting differs that shapes an update, or the number of processes.
    """
    before, count = snapshot.state.get("processes", 1), processes.world_size()
    if before != count:
        raise CheckpointError(
            f"the run was started with {before} process{'es' if before > 1 else ''} and this is "
            f"{count}: each draws and shuffles by a generator of its own, so a resumed run keeps "
            f"their number. Launch {before}, or start a new run from the policy of this one."
        )
    saved, now = snapshot.state.get("config", {}), dataclasses.asdict(config)
    missing = [name for name in _STATE if name not in snapshot.state]
    missing += [f"ppo.{name}" for name in now if name not in saved and name not in MAY_CHANGE]
    if missing:
        raise CheckpointError(
            f"the checkpoint says nothing of {', '.join(missing)}: expected one that was written "
            "by this version of instructrec. Continue the run with the version that began it, or "
            "start a new run from its policy."
        )
    for name, value in now.items():
        before = saved.get(name)
        before = tuple(before) if isinstance(before, list) else before
        if name not in MAY_CHANGE and before != value:
            raise CheckpointError(
                f"ppo.{name} = {value!r} but the run was started with {before!r}: a resumed run "
                f"keeps its settings. Set ppo.{name} back, or start a new run."
            )


def _of(generator: str, number: int) -> str:
    """Name of a process's generator; the main one's is that of a run on its own."""
    return f"generator.{generator}" + (f".{number}" if number else "")


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}

"""What a PPO checkpoint carries: to and from named tensors and JSON."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from instructrec import processes
from instructrec.crash_points import crash_point
from instructrec.errors import CheckpointError
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.rl import sharing
from instructrec.rl.checkpoint import (
    CheckpointReadError,
    Snapshot,
    checkpoint_path,
    update_of,
    write_checkpoint,
)
from instructrec.rl.checkpoint_keeping import prune_checkpoints
from instructrec.rl.config import PPOConfig
from instructrec.rl.global_generators import GLOBAL, global_states, set_global_states
from instructrec.rl.resuming import check_compatible, check_start, versions
from instructrec.rl.run_state import Progress, Stopped, TrainingResult
from instructrec.rl.trained import copy_into

if TYPE_CHECKING:
    from instructrec.envs.tasks.base import Task
    from instructrec.rl.ppo import PPOTrainer

_LEARNER = ("scheduler_step", "coefficients", "reuse", "drift_gate")
"""Of the learner's state, what is no tensor and the same in all processes."""
_GENERATORS = ("sampler", "shuffler")
"""States of generators, of which each process has its own."""
_GLOBAL = "global_"
"""What the names of Python's, NumPy's and torch's own generators begin with."""


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
    drawing = {key: own[key] for key in _GENERATORS}
    drawing |= {_GLOBAL + name: state for name, state in global_states().items()}
    for number, generators in enumerate(processes.gather(drawing)):
        tensors |= {_of(name, number): state for name, state in generators.items()}
    state = {
        "processes": processes.world_size(),
        "versions": versions(),
        "data": trainer.env.task.fingerprint,
        "start": trainer.start_hash,
        "progress": dataclasses.asdict(trainer.progress),
        "config": dataclasses.asdict(trainer.config),
        "rewards": trainer.env.reward.state_dict(),
        "monitors": trainer.monitors.state_dict(),
        "prompt_filter": trainer.prompt_filter.state_dict() if trainer.prompt_filter else None,
        "guards": processes.gather(own["guards"]),
        **{name: own[name] for name in _LEARNER},
    }
    return Snapshot(tensors, state)


def read(
    folder: Path | None,
    policy: CausalLMPolicy,
    config: PPOConfig,
    task: Task,
    allow_change: Sequence[str] = (),
) -> Snapshot | None:
    """Reads the checkpoint that a run of these settings goes on from; None for none.

    Args:
        folder: The checkpoint.
        policy: The policy as it starts.
        config: Settings of the run now.
        task: Its instructions now.
        allow_change: What may differ; see `check_compatible` and `check_start`.

    Raises:
        CheckpointError: It cannot be read, or belongs to another run.
    """
    if folder is None:
        return None
    snapshot = sharing.read_shared(folder)
    check_compatible(snapshot.state, config, task, allow_change)
    processes.together(lambda: check_start(snapshot.state, policy.weights_hash(), allow_change))
    said = snapshot.state["progress"]["update"]
    if said != update_of(folder):
        raise CheckpointError(
            f"{folder} holds the state after update {said}: expected that of its name. Give it "
            "its name back."
        )
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
            "guards": state["guards"][processes.rank()] if "guards" in state else {},
            **{name: state.get(name) for name in _LEARNER},
            **{name: tensors[_of(name, processes.rank())] for name in _GENERATORS},
        }
    )
    trainer.env.reward.load_state_dict(state["rewards"])
    trainer.monitors.load_state_dict(state["monitors"])
    if trainer.prompt_filter is not None:
        trainer.prompt_filter.load_state_dict(state["prompt_filter"])
    trainer.resumed_from = snapshot
    crash_point("resume.restored")


def restore_globals(trainer: PPOTrainer) -> None:
    """Puts the global generators back, once: setting up the loop over updates has drawn of them."""
    snapshot, trainer.resumed_from = trainer.resumed_from, None
    if snapshot is not None:
        _set_globals(snapshot)


def _set_globals(snapshot: Snapshot) -> None:
    saved = _under(f"generator.{_GLOBAL}", snapshot.tensors)
    own = f".{processes.rank()}" if processes.rank() else ""
    set_global_states({name: saved[name + own] for name in GLOBAL if name + own in saved})


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


def ended(snapshot: Snapshot, config: PPOConfig) -> Stopped | None:
    """How the run of a checkpoint came to its end; None where updates are left to do."""
    progress, patience = Progress(**snapshot.state["progress"]), config.early_stopping_patience
    if progress.update >= config.num_updates:
        return "finished"
    if patience and progress.evaluations_without_gain >= patience:
        return "early_stopping"
    return None


def take_result(
    policy: CausalLMPolicy, snapshot: Snapshot, stopped: Stopped, checkpoint_dir: Path | None
) -> TrainingResult:
    """Leaves a policy as the run of a checkpoint left it, where no update is left to do."""
    load_weights(policy, snapshot)
    policy.set_generator_state(snapshot.tensors[_of("sampler", processes.rank())])
    _set_globals(snapshot)
    return conclude(policy, Progress(**snapshot.state["progress"]), stopped, checkpoint_dir)


def conclude(
    policy: CausalLMPolicy, progress: Progress, stopped: Stopped, checkpoint_dir: Path | None
) -> TrainingResult:
    """Leaves the best weights in the policy, where they are known and the run is over."""
    best = progress.best_update or progress.update
    if best != progress.update and checkpoint_dir is not None and stopped != "interrupted":
        try:
            load_weights(policy, sharing.read_shared(checkpoint_path(checkpoint_dir, best)))
        except CheckpointReadError:
            raise  # the best weights may be there all the same: a resume asks for them again
        except CheckpointError as error:
            warnings.warn(
                f"{error} The policy keeps the weights of update {progress.update}, the last one, "
                f"and not those of update {best}, whose evaluation was the best.",
                RuntimeWarning,
                stacklevel=2,
            )
            best = progress.update
    policy.sync()
    return TrainingResult(progress.update, best, progress.best_score, stopped)


def load_weights(policy: CausalLMPolicy, snapshot: Snapshot) -> None:
    """Puts the trained weights of a checkpoint into the policy.

    Raises:
        CheckpointError: The policy trains other weights than the checkpoint holds.
    """
    copy_into(policy.model, _under("policy.", snapshot.tensors))
    policy.sync()


def _of(generator: str, number: int) -> str:
    """Name of a process's generator; the main one's is that of a run on its own."""
    return f"generator.{generator}" + (f".{number}" if number else "")


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}

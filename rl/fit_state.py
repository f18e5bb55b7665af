"""What the checkpoint of a fit carries: to and from named tensors and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from instructrec.crash_points import crash_point
from instructrec.errors import CheckpointError
from instructrec.rl.checkpoint import Snapshot, read_checkpoint
from instructrec.rl.global_generators import global_states, set_global_states
from instructrec.rl.optim import go_to_step
from instructrec.rl.resuming import check_start, check_versions, versions
from instructrec.rl.reward_config import MAY_CHANGE

if TYPE_CHECKING:
    from instructrec.rl.fitting import Fit

_GLOBAL, _SAMPLER = "generator.global_", "generator.sampler"


def capture(fit: Fit) -> Snapshot:
    """Takes the weights, the best ones so far, the optimizer, and all generators."""
    tensors: dict[str, Tensor] = {f"weights.{name}": p.detach() for name, p in fit.weights.items()}
    tensors |= {f"best.{name}": value for name, value in fit.best_weights.items()}
    for index, moments in fit.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{n}": torch.as_tensor(v) for n, v in moments.items()}
    tensors |= {_GLOBAL + name: value for name, value in global_states().items()}
    if fit.sampler is not None:
        tensors[_SAMPLER] = fit.sampler.generator_state()
    state = {
        "step": fit.step,
        "seed": fit.seed,
        "config": dataclasses.asdict(fit.config),
        "best": [fit.best_score, fit.best_step, fit.without_gain],
        "loss": fit.loss,
        "start": fit.around.start,
        "versions": versions(),
    }
    return Snapshot(tensors, state)


def restore(fit: Fit, checkpoint: Path) -> dict[str, Tensor]:
    """Puts everything back into a fit that has just begun.

    Args:
        fit: The fit.
        checkpoint: What it goes on from.

    Returns:
        The global generators as they were then, which making a trainer sets to something else.

    Raises:
        CheckpointError: It cannot be read, or belongs to another run.
    """
    snapshot = read_checkpoint(checkpoint)
    tensors, state = snapshot.tensors, snapshot.state
    _check_same(fit, checkpoint, state)
    load(fit.weights, _under("weights.", tensors))
    fit.best_weights = _under("best.", tensors)
    moments: dict[int, dict[str, Any]] = {}
    for key, value in _under("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    groups = fit.optimizer.state_dict()["param_groups"]
    fit.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    fit.first = fit.step = int(state["step"])
    go_to_step(fit.scheduler, fit.step)
    fit.best_score, fit.best_step, fit.without_gain = state["best"]
    fit.loss = state.get("loss", fit.loss)
    if fit.sampler is not None and _SAMPLER in tensors:
        fit.sampler.set_generator_state(tensors[_SAMPLER])
    drawn = _under(_GLOBAL, tensors)
    set_global_states(drawn)
    crash_point("fit.restored")
    return drawn


def _check_same(fit: Fit, checkpoint: Path, state: Mapping[str, Any]) -> None:
    """Refuses a checkpoint that was written with settings that make other steps."""
    allowed, section = fit.around.allow_change, fit.naming.section
    before, now = state.get("config", {}), dataclasses.asdict(fit.config)
    changed = [k for k in now if k not in MAY_CHANGE and now[k] != before.get(k)]
    changed = [key for name in changed if (key := f"{section}.{name}") not in allowed]
    changed += ["seed"] if state.get("seed") != fit.seed else []
    if changed:
        raise CheckpointError(
            f"the checkpoint {checkpoint} was written with other settings ({', '.join(changed)}): "
            "continue the run as it was started, or start another one."
        )
    if "versions" not in allowed:
        check_versions(state.get("versions"))
    if fit.around.start is not None and state.get("start") is not None:
        check_start(state, fit.around.start, allowed)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def load(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Puts saved weights into those that train.

    Raises:
        CheckpointError: They are others.
    """
    if {n: p.shape for n, p in weights.items()} != {n: v.shape for n, v in values.items()}:
        raise CheckpointError(
            "the checkpoint holds other weights than those that train now: continue the run with "
            "the policy settings that it was started with."
        )
    for name, value in values.items():
        weights[name].copy_(value)

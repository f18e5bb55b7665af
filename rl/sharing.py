"""What the processes of one training run share: its size, weights, gradients and checkpoints.

Every process holds all weights and takes every optimizer step itself, with the gradient that is
summed over the processes. So equal weights stay equal, which each checkpoint makes sure of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from instructrec import processes
from instructrec.errors import ConfigError, DataError, NumericsError, PolicyError
from instructrec.phases import phase
from instructrec.rl.checkpoint import Snapshot, read_checkpoint
from instructrec.rl.config import PPOConfig
from instructrec.rl.trained import trained_of

if TYPE_CHECKING:
    from instructrec.envs.tasks.base import Task
    from instructrec.policies.causal_lm import CausalLMPolicy
    from instructrec.rewards.combine import CombinedReward


def check_shares(config: PPOConfig) -> None:
    """Refuses a rollout that the processes cannot share equally.

    Args:
        config: Settings over all processes.

    Raises:
        ConfigError: An equal share would split a group, a minibatch or a micro-batch.
    """
    count = processes.world_size()
    episodes, size = config.episodes_per_update, config.micro_batch_size or 1
    for number, name in (
        (config.num_generations, "ppo.num_generations"),
        (config.num_mini_batches * size, "ppo.num_mini_batches × ppo.micro_batch_size"),
    ):
        if episodes % (count * number):
            raise ConfigError(
                f"ppo.episodes_per_update = {episodes} cannot be shared by {count} processes: "
                f"expected a multiple of {count} × {name} = {count * number}, so that each plays "
                "as many whole groups and minibatches. Change one of them, or start another number "
                "of processes."
            )


def check_stateless(reward: CombinedReward) -> None:
    """Refuses rewards that remember, to several processes.

    Raises:
        ConfigError: A reward has a state.
    """
    count = processes.world_size()
    for name, part in reward.parts.items():
        if count > 1 and part.reward.state_dict():
            raise ConfigError(
                f"the reward {name!r} keeps a state, which would come to differ between {count} "
                "processes, as each scores its own episodes: expected rewards without state_dict. "
                "Use one process, or make the reward stateless."
            )


def check_same_task(task: Task) -> None:
    """Refuses processes that have read different data under one name.

    Raises:
        DataError: Their tasks differ.
    """
    if processes.world_size() == 1:
        return
    found = processes.gather(task.fingerprint)
    if len(set(found)) > 1:
        raise DataError(
            f"the processes have different instructions in the {task.split} split of "
            f"{task.name!r} (fingerprints: {', '.join(f[:12] for f in found)}): expected the same "
            "data on every machine. Copy it there again, or put it where all of them see it."
        )


def own_rows(num_episodes: int) -> range:
    """The episodes of a rollout that this process plays and trains on."""
    share = num_episodes // processes.world_size()
    return range(processes.rank() * share, (processes.rank() + 1) * share)


def seed_own_draws(policy: CausalLMPolicy, seed: int) -> torch.Generator:
    """Gives every process draws of its own; the main one keeps those of a run on its own.

    Args:
        policy: Its sampling generator is seeded anew, except in the main process.
        seed: Seed of the run.

    Returns:
        The generator of the minibatch shuffles.
    """
    number = processes.rank()
    if number == 0:
        return torch.Generator().manual_seed(seed)
    own = int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
    policy.set_generator_state(torch.Generator().manual_seed(own).get_state())
    return torch.Generator().manual_seed(own)


def share_start(policy: CausalLMPolicy, modules: Sequence[nn.Module]) -> None:
    """Starts all processes from the trained weights of the main one.

    Raises:
        PolicyError: The processes have loaded models whose frozen weights differ.
    """
    if processes.world_size() == 1:
        return
    processes.broadcast_([p.data for module in modules for p in trained_of(module).values()])
    policy.sync()
    hashes = processes.gather(policy.weights_hash())
    if len(set(hashes)) > 1:
        raise PolicyError(
            f"the processes loaded different models as {policy.name!r} (hashes of the weights: "
            f"{', '.join(h[:12] for h in hashes)}): expected the same files on every machine. "
            "Put the model where all of them see it."
        )


def check_same_weights(modules: Sequence[nn.Module]) -> None:
    """Makes sure that the processes still hold the same trained weights.

    Raises:
        NumericsError: They do not.
    """
    if processes.world_size() == 1:
        return
    digest = hashlib.sha256()
    for parameter in (p for module in modules for p in trained_of(module).values()):
        flat = parameter.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    hashes = processes.gather(digest.hexdigest())
    if len(set(hashes)) > 1:
        raise NumericsError(
            f"the weights of the processes differ (hashes: {', '.join(h[:12] for h in hashes)}), "
            "so they no longer train one policy. No checkpoint was written of this state: resume "
            "from the one before, with the same kind of hardware for every process."
        )


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds gradients up over the processes.

    A weight that has a gradient in some processes only counts as 0 in the others; one that has none
    anywhere keeps none, because an optimizer steps on a zero.
    """
    listed = list(parameters)
    if processes.world_size() == 1 or not listed:
        return
    with phase("reduce"):
        device = listed[0].device
        present = torch.tensor([p.grad is not None for p in listed], dtype=torch.int32).to(device)
        processes.sum_([present])
        gradients = []
        for parameter, number in zip(listed, present.tolist(), strict=True):
            if number and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
        processes.sum_(gradients)


def read_shared(folder: Path) -> Snapshot:
    """Reads a checkpoint in the main process, for all.

    Raises:
        CheckpointError: It cannot be read.
    """
    snapshot = processes.on_main(lambda: read_checkpoint(folder))
    if processes.world_size() == 1 and snapshot is not None:
        return snapshot
    state: dict[str, Any] = processes.broadcast(snapshot.state if snapshot else {})
    return Snapshot(processes.broadcast_tensors(snapshot.tensors if snapshot else None), state)

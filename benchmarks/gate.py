"""Is what we time right? Our passes, as an update runs them, beside plain ones in float32.

``python -m benchmarks.gate WORKLOAD ANSWER``, in a process of its own so that no side carries its
memory, plays a small rollout with the engine that is timed and lets the learner that is timed learn
from it: kept states, shared prompts, states at the cut, micro-batches, critic and backward pass
included. The loss is a weighted sum of log-probs and values, and no step is taken. The plain side
is one sequence after the other through the model of transformers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.side_ours import environment, make_policy, settings
from benchmarks.workload import TOLERANCE, GateError, Prompts, Workload, read_workload
from instructrec.policies.critic import Critic, SeparateCritic, SharedCritic
from instructrec.policies.trunk import base_causal_lm
from instructrec.rl.learner import PPOLearner
from instructrec.rl.rollout import Rollout, collect

_EPISODES = 8
"""Episodes of the rollout, where the workload has as many."""
MOST_GRADIENT = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest norm of the difference of two gradients over the norm of the plain one."""
MOST_VALUE = {"float32": 1e-3, "bfloat16": 0.05}
"""Largest mean difference of values over the mean size of the plain ones."""


@dataclass(frozen=True)
class Errors:
    """How far the passes that are timed are from plain ones."""

    sampler: float
    """Mean absolute difference of the log-probs that decoding reported (nats per token)."""
    logprobs: float
    """That of the log-probs of the pass over the rollout, which decoding may have filled in."""
    reference: float
    """That of the reference's, which has the policy's weights; 0 without one."""
    values: float
    """Mean absolute difference of values over their mean size."""
    gradient: float
    """Norm of the difference of gradients over the norm of the plain one; the larger of policy
    and critic."""


class Probe(PPOLearner):
    """The learner that is timed, with a loss that anyone can compute, and without steps."""

    gradients: dict[str, Tensor]

    def loss(
        self, rows: list[int], logprobs_N: Tensor, values_N: Tensor, entropy_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum instead of the loss of PPO; the statistics are its own."""
        _, stats = super().loss(rows, logprobs_N, values_N, entropy_N)
        mask_BT = self.experience.action_mask_BT
        first_BT, second_BT = token_weights(mask_BT)
        picked = mask_BT[rows]
        total = first_BT[rows][picked] @ logprobs_N + second_BT[rows][picked] @ values_N
        return total, stats

    def clip(self) -> Tensor:
        """Takes down the gradients before they are clipped."""
        self.gradients = gradients_of(self)
        return super().clip()

    def may_step(self) -> bool:
        """Never: another minibatch would find other weights."""
        super().may_step()
        return False


def token_weights(mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Two weights between -1 and 1 for each token, that of its log-prob and that of its value."""
    places = torch.arange(mask_BT.numel(), device=mask_BT.device).view(mask_BT.shape).float()
    return torch.cos(places), torch.sin(1.7 * places)


def gradients_of(learner: PPOLearner) -> dict[str, Tensor]:
    """The gradients of everything that trains, by name."""
    weights = learner.trained_weights()
    return {name: w.grad.detach().clone() for name, w in weights.items() if w.grad is not None}


def small(workload: Workload) -> Workload:
    """The same work for a few episodes: one epoch and step, two micro-batches where that goes."""
    groups = max(min(_EPISODES, workload.episodes) // workload.generations, 1)
    episodes = max(groups * workload.generations, 2)
    half = episodes // 2 if episodes % 2 == 0 else episodes
    return replace(workload, episodes=episodes, epochs=1, mini_batches=1, micro_batch=half)


def measure(workload: Workload) -> Errors:
    """Compares our passes with plain ones.

    Args:
        workload: What will be timed.
    """
    workload, prompts = small(workload), Prompts.read(workload.prompts)
    policy = make_policy(workload)
    probe = Probe(policy, settings(workload), seed=workload.seed)
    wake(probe.critic)
    groups = workload.episodes // workload.generations
    indices = [i for i in range(groups) for _ in range(workload.generations)]
    with environment(workload, prompts) as env:
        policy.sync()
        with probe.reuse.keeping():
            rollout = collect(policy, env, indices, probe.config)
    probe.update(rollout)
    timed = probe.gradients
    probe.optimizer.zero_grad()
    logprobs_BT, values_BT = plain_passes(probe, rollout)
    experience, mask_BT = probe.experience, probe.experience.action_mask_BT

    def error(found_BT: Tensor) -> float:
        return float((found_BT.float() - logprobs_BT)[mask_BT].abs().mean())

    size = float(values_BT[mask_BT].abs().mean())
    reference_BT = experience.ref_logprobs_BT
    return Errors(
        sampler=error(experience.sampler_logprobs_BT),
        logprobs=error(experience.old_logprobs_BT),
        reference=0.0 if reference_BT is None else error(reference_BT),
        values=float((experience.values_BT - values_BT)[mask_BT].abs().mean()) / size,
        gradient=gradient_error(timed, gradients_of(probe)),
    )


@torch.no_grad()
def wake(critic: Critic) -> None:
    """Gives a value head weights: it starts at zero, where all values are right by themselves."""
    assert isinstance(critic, SharedCritic | SeparateCritic)
    weight = critic.head.linear.weight
    places = torch.arange(weight.numel(), device=weight.device).view_as(weight)
    weight.copy_(torch.sin(places + 1.0) / weight.shape[1] ** 0.5)


def plain_passes(probe: Probe, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Log-probs and values (B, T) by plain passes in float32; their gradients add up in place."""
    mask_BT = probe.experience.action_mask_BT
    first_BT, second_BT = token_weights(mask_BT)
    logprobs_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    values_BT = torch.zeros_like(logprobs_BT)
    pairs = zip(rollout.prompt_ids, rollout.response_ids, strict=True)
    for row, (prompt, response) in enumerate(pairs):
        ids_1L = torch.tensor([prompt + response], device=mask_BT.device)
        before, length = slice(len(prompt) - 1, -1), len(response)
        logits, states = _plain(base_causal_lm(probe.policy.model), ids_1L)
        answer = ids_1L[0, len(prompt) :, None]
        logprobs = logits[before].log_softmax(-1).gather(-1, answer).squeeze(-1)
        values = _plain_values(probe.critic, ids_1L, states)[before]
        (first_BT[row, :length] @ logprobs + second_BT[row, :length] @ values).backward()
        logprobs_BT[row, :length], values_BT[row, :length] = logprobs.detach(), values.detach()
    return logprobs_BT, values_BT


def _plain(model: Any, ids_1L: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (L, V) and last hidden states (L, H) of one sequence."""
    output = model(input_ids=ids_1L, use_cache=False, output_hidden_states=True)
    return output.logits[0].float(), output.hidden_states[-1][0].float()


def _plain_values(critic: nn.Module, ids_1L: Tensor, states: Tensor) -> Tensor:
    assert isinstance(critic, SharedCritic | SeparateCritic)
    if isinstance(critic, SeparateCritic):
        states = critic.backbone(input_ids=ids_1L, use_cache=False).last_hidden_state[0]
    elif critic.detach:
        states = states.detach()
    return nn.functional.linear(states, critic.head.linear.weight, critic.head.linear.bias)[:, 0]


def gradient_error(found: dict[str, Tensor], plain: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm of the plain gradient, policy and critic apart.

    Raises:
        GateError: One side has a gradient that the other does not have.
    """
    if found.keys() != plain.keys():
        raise GateError(f"gradients of {sorted(found.keys() ^ plain.keys())[:3]} on one side alone")
    errors = []
    for part in {name.partition(".")[0] for name in plain}:
        names = [name for name in plain if name.startswith(f"{part}.")]
        difference = _norm([found[name] - plain[name] for name in names])
        errors.append(difference / _norm([plain[name] for name in names]))
    return max(errors)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.float().norm() for tensor in tensors]).norm())


def check(workload: Workload, errors: Errors) -> None:
    """Refuses passes that are too far from plain ones.

    Raises:
        GateError: Names every error that is too large.
    """
    dtype = workload.dtype
    most = dict.fromkeys(("sampler", "logprobs", "reference"), TOLERANCE[dtype])
    most |= {"values": MOST_VALUE[dtype], "gradient": MOST_GRADIENT[dtype]}
    faults = [
        f"{field.name} {getattr(errors, field.name):.3g} (at most {most[field.name]:g})"
        for field in fields(errors)
        if not getattr(errors, field.name) <= most[field.name]
    ]
    if faults:
        raise GateError(f"the passes to be timed differ from plain ones: {', '.join(faults)}.")


def main(arguments: Sequence[str]) -> int:
    """Measures the passes of a workload and writes what was found, unless it is refused."""
    workload = read_workload(arguments[0])
    if workload.threads:
        torch.set_num_threads(workload.threads)
    errors = measure(workload)
    check(workload, errors)
    found = {field.name: getattr(errors, field.name) for field in fields(errors)}
    Path(arguments[1]).write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What the sides of a part have to do, and how fast this machine could do it.

``python -m benchmarks.limits REQUEST ANSWER``: a process of its own, so that no side carries it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.parts import GRPO_PEER, OURS, PPO_PEER
from benchmarks.side_ours import make_policy
from benchmarks.workload import Prompts, Workload, asked_prompts, target_lengths
from instructrec.policies.flops import ModelCost, model_cost
from instructrec.policies.prefill import common_prefix
from instructrec.policies.rates import Rates, measure_rates
from instructrec.policies.trunk import Trunk
from instructrec.rl.speed import Lengths, Recipe, needs

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s of the SXM boards, as NVIDIA's data sheets name them."""


@cache
def _cost(workload: Workload) -> tuple[ModelCost, torch.device]:
    policy = make_policy(workload)
    return model_cost(Trunk(policy.model)), policy.device


@cache
def _rates(
    shapes: tuple[tuple[int, int, int], ...], tokens: int, dtype: torch.dtype, device: torch.device
) -> Rates:
    return measure_rates(shapes, tokens=tokens, dtype=dtype, device=device)


def recipe_of(program: str, workload: Workload) -> Recipe:
    """What the algorithm of a side needs, whether or not the side does it that way."""
    ours = program == OURS
    return Recipe(
        epochs=workload.epochs,
        steps=workload.steps,
        generations=workload.generations if ours else 1,
        reference=workload.kl_coef > 0,
        old_logprobs=program == GRPO_PEER and workload.epochs > 1,
        separate_critic=program == PPO_PEER or (ours and workload.critic == "separate"),
        reuses_lower=ours,
    )


def limits(program: str, workload: Workload) -> dict[str, Any]:
    """FLOPs of each phase of a side's update, and the least seconds for it on this machine."""
    cost, device = _cost(workload)
    dtype = getattr(torch, workload.dtype)
    prompts = Prompts.read(workload.prompts)
    asked = asked_prompts(workload, prompts)
    targets = target_lengths(workload, prompts)
    lengths = Lengths(
        tuple(map(len, asked)),
        tuple(targets[tuple(ids)] for ids in asked),
        common_prefix(asked) if program == OURS else 0,
    )
    tokens = workload.micro_batch_size * (max(map(len, asked)) + workload.response_length)
    rates = _rates(cost.shapes, tokens, dtype, device)
    found = needs(
        cost,
        lengths,
        recipe_of(program, workload),
        decode_bytes=dtype.itemsize,
        train_bytes=dtype.itemsize if program == PPO_PEER else 4,
    )
    return {
        "matrix_flops_per_s": rates.flops_per_s,
        "copy_bytes_per_s": rates.bytes_per_s,
        "peak_flops_per_s": _peak(device) or rates.flops_per_s,
        "tokens": sum(map(len, asked)) + sum(lengths.responses),
        "flops": {name: need.flops for name, need in found.items()},
        "seconds": {name: need.seconds(rates) for name, need in found.items()},
    }


def _peak(device: torch.device) -> float | None:
    """The named peak of a known GPU; None where only a measured rate is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for board, peak in PEAKS.items() if board in name), None)


def main(arguments: Sequence[str]) -> int:
    """Answers a request: a list of [program, workload]."""
    request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    answer = [limits(program, Workload(**workload)) for program, workload in request]
    Path(arguments[1]).write_text(json.dumps(answer, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

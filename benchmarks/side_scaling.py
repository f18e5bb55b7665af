"""One process of a weak-scaling measurement: ``python -m benchmarks.side_scaling REQUEST ANSWER``.

A launcher's variables (``WORLD_SIZE`` and the like) say whether it trains with others. Every
process has as many episodes as the workload names, with responses of one forced length.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.side_ours import logprob_error, make_policy, settings, short_words
from benchmarks.stopwatch import peak_rss_bytes
from benchmarks.workload import GateError, Prompts, Workload, check_logprobs, read_workload
from instructrec import processes
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.phases import listening
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.rl.ppo import train_ppo
from instructrec.rl.sharing import sum_gradients

_LAPS = ("rollout_s", "score_s", "advantage_s", "update_s")
_SUMS = 5


class Laps:
    """Seconds and numbers of the phases since the last update."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.number: dict[str, int] = defaultdict(int)
        self.start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times the block."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
        self.number[name] += 1


def faults(workload: Workload, count: int, rows: list[dict[str, Any]], steps: int) -> list[str]:
    """What an update did that it should not have done.

    Args:
        workload: The work of one process.
        count: Number of processes.
        rows: The episodes of all.
        steps: Optimizer steps that were taken.
    """
    lengths = [int(row["response_len"]) for row in rows]
    found = []
    if len(rows) != count * workload.episodes:
        found.append(f"{len(rows)} episodes instead of {count * workload.episodes}")
    if wrong := [length for length in lengths if length != workload.response_length]:
        found.append(f"{len(wrong)} responses of another length, e.g. {wrong[0]}")
    if steps != workload.steps:
        found.append(f"{steps} optimizer steps instead of {workload.steps}")
    return found


def run(workload: Workload, folder: Path) -> dict[str, Any]:
    """Trains, alone or with others.

    Args:
        workload: The work of one process; its micro-batch is that of the process.
        folder: Where the prompts of this process can be written.

    Returns:
        Of the main process: the timed updates, the steps of an update, and the link.

    Raises:
        GateError: The work is not what is to be timed.
    """
    count = processes.world_size()
    prompts, policy = Prompts.read(workload.prompts), make_policy(workload)
    check_logprobs(workload, logprob_error(policy, prompts))
    whole = replace(
        workload, episodes=count * workload.episodes, micro_batch=workload.micro_batch_size
    )
    file = folder / f"prompts-{processes.rank()}.jsonl"
    texts = prompts.texts[: whole.episodes]
    lines = [json.dumps({"prompt": text, "reference": ""}) + "\n" for text in texts]
    file.write_text("".join(lines), encoding="utf-8")
    env = InstructionVectorEnv(
        workload.episodes,
        task=str(file),
        split="all",
        reward=short_words,
        autoreset_mode="DISABLED",
    )
    updates: list[dict[str, float]] = []
    laps = Laps()

    def on_update(metrics: dict[str, float], rows: list[dict[str, Any]]) -> None:
        nonlocal laps
        seconds = time.perf_counter() - laps.start
        if wrong := faults(workload, count, rows, laps.number["optimizer"]):
            raise GateError("this is not the work to be timed: " + "; ".join(wrong) + ".")
        told = {name: metrics[f"time/{name}"] for name in _LAPS}
        inner = {f"{name}_s": laps.seconds[name] for name in ("optimizer", "reduce")}
        updates.append({"seconds": seconds, **told, **inner})
        laps = Laps()

    with listening(lambda name: laps.phase(name)):
        train_ppo(policy, env, settings(whole), seed=workload.seed, on_update=on_update)
    return {
        "updates": updates[workload.warmup :],
        "steps": workload.steps,
        "link": measure_link(policy) if count > 1 else None,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def measure_link(policy: CausalLMPolicy) -> dict[str, float]:
    """Seconds to sum the gradients of all trained weights, and those of a single number."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    number = torch.nn.Parameter(torch.zeros(1, device=policy.device))
    number.grad = torch.zeros_like(number)
    found = {}
    for name, parameters in (("large", trained), ("small", [number])):
        seconds = []
        for _ in range(_SUMS + 1):
            processes.gather(0)  # all begin together
            start = time.perf_counter()
            sum_gradients(parameters)
            seconds.append(time.perf_counter() - start)
        found[f"{name}_s"] = median(seconds[1:])
        size = sum(p.numel() * p.element_size() for p in parameters)
        found[f"{name}_bytes"] = float(size)
    return found


def main() -> int:
    """Answers a request; the main process writes."""
    request, answer = map(Path, sys.argv[1:])
    workload = read_workload(request)
    torch.set_num_threads(workload.threads or 1)
    with processes.joined(workload.device):
        report = run(workload, answer.parent)
        if processes.is_main():
            answer.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a checkpoint costs: ``python -m benchmarks.commits``.

Commits the whole state of full fine-tuning (policy, critic, moments) of the embedded model a few
times, as training does, and measures the seconds, the memory above what training holds anyway, and
beside them a plain copy of as many bytes, flushed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

LIMIT = 0.03
"""Share of the time between two checkpoints that a commit may cost."""


@dataclass(frozen=True)
class Cost:
    """What one commit took."""

    seconds: float
    """Wall time."""
    extra_bytes: int
    """Most memory above that before the commit."""


def measured(work: Callable[[], object]) -> Cost:
    """Runs the work and watches the memory of this process meanwhile."""
    import psutil

    process, over = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    return Cost(seconds, most - before)


def plain_copy(path: Path, size: int) -> None:
    """Writes as many bytes in the plainest way: what the disk alone costs."""
    piece = os.urandom(2**24)
    with path.open("wb") as file:
        for _ in range(0, size, len(piece)):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def main() -> None:
    """Runs the command."""
    import torch

    from instructrec.policies.causal_lm import load_policy
    from instructrec.policies.config import PolicyConfig
    from instructrec.policies.labels import writer
    from instructrec.rl.checkpoint import Snapshot, checkpoint_path, write_checkpoint
    from instructrec.rl.checkpoint_keeping import latest_checkpoint, prune_checkpoints
    from instructrec.rl.config import PPOConfig
    from instructrec.rl.learner import PPOLearner

    parser = argparse.ArgumentParser(prog="python -m benchmarks.commits", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="a model, or `tiny`")
    parser.add_argument("--rounds", type=int, default=5, help="commits")
    parser.add_argument("--update_s", type=float, help="seconds of an update, for the share")
    parser.add_argument("--every", type=int, default=16, help="updates between two checkpoints")
    options = parser.parse_args()
    settings = PolicyConfig(model=options.model, device="cpu", dtype="float32")
    policy = writer(load_policy(settings, seed=0), "a benchmark of PPO")
    config = PPOConfig(kl_coef=0.0)
    learner = PPOLearner(policy, config)
    for group in learner.optimizer.param_groups:
        for weight in group["params"]:
            moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            learner.optimizer.state[weight] = {"step": torch.tensor(1.0), **moments}
    own = learner.state_dict()
    tensors = {f"{part}.{n}": t for part in ("policy", "critic") for n, t in own[part].items()}
    for index, moments in own["optimizer"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    costs, reads, copies = [], [], []
    place = Path("build")  # on the disk of the project, not in memory
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as name:
        folder = Path(name)
        for update in range(1, options.rounds + 1):
            path = checkpoint_path(folder, update)
            costs.append(measured(lambda: write_checkpoint(path, Snapshot(tensors, {}))))  # noqa: B023
            reads.append(measured(lambda: latest_checkpoint(folder)))
            prune_checkpoints(folder, keep=1)
            copies.append(measured(lambda: plain_copy(folder / "plain", size)))
    took = median(cost.seconds for cost in costs)
    print(f"{options.model}: {size / 2**20:.0f} MiB, {options.rounds} commits")
    print(f"commit   {took:.2f} s (largest {max(c.seconds for c in costs):.2f})")
    print(f"verify   {median(cost.seconds for cost in reads):.2f} s")
    print(f"copying  {median(cost.seconds for cost in copies):.2f} s, as many bytes, flushed")
    print(f"memory   {max(c.extra_bytes for c in costs) / 2**20:.0f} MiB above what training holds")
    if options.update_s:
        # As often as `--every` says; a run goes by the clock unless `ppo.save_every` is set.
        share = took / (options.update_s * options.every)
        print(f"share    {share:.2%} of the time of {options.every} updates (limit {LIMIT:.0%})")


if __name__ == "__main__":
    main()

"""How the cost of an episode grows: with the batch, the response, the rewards and the data.

``python -m benchmarks.growth`` measures one axis after the other, all else fixed, and says by which
power the cost grows: 0 is constant, 1 is in proportion. Batch and response length are measured on
whole updates; rewards and rows on the environment alone, where nothing hides them.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.ppo import ROOT
from benchmarks.prepare import prepare
from benchmarks.side_ours import run as run_update
from benchmarks.side_ours import short_words
from benchmarks.stopwatch import peak_rss_bytes
from benchmarks.summary import seconds_of
from benchmarks.workload import Workload
from instructrec.devices import pick_device, pick_dtype
from instructrec.envs.tasks.dataset import DatasetTask
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.experiments import machine
from instructrec.experiments.jsonl import write_atomic, write_json
from instructrec.rl.rollout import instruction_order

_REPEATS = 5


@dataclass(frozen=True)
class Axis:
    """One quantity that grows."""

    name: str
    """Its name on the command line."""
    sizes: tuple[int, ...]
    """Values that are measured."""
    tiny: tuple[int, ...]
    """Values for the tiny model, for tests."""
    most_power: float
    """The cost of an episode may grow by this power at most."""


AXES = (
    Axis("batch", (4, 8, 16, 32, 64), (4, 8), 0.1),
    Axis("response", (8, 16, 32, 64, 128), (4, 8), 1.1),
    Axis("rewards", (1, 4, 16, 64), (1, 4), 1.1),
    Axis("rows", (1_000, 10_000, 100_000, 1_000_000), (100, 1_000), 0.2),
)
"""What is measured, and how much growth is in order."""


def power(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power by which costs grow with sizes: the slope of a straight line through the logs."""
    xs, ys = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / sum(
        (x - x0) ** 2 for x in xs
    )


def usual_time(work: Callable[[], Any]) -> float:
    """Median seconds of a few calls, behind one that is not timed."""
    work()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def update_cost(workload: Workload, folder: Path, model: str) -> dict[str, float]:
    """Seconds for one episode of a whole update."""
    place = folder / f"{workload.episodes}x{workload.response_length}"
    if not place.exists():
        place.mkdir()
        prepare(
            model,
            place,
            num_prompts=workload.episodes,
            response_length=workload.response_length,
        )
    workload = replace(
        workload,
        model=str(place / "model"),
        prompts=str(place / "prompts.json"),
        micro_batch=min(workload.episodes, 16),
    )
    return {"episode_s": seconds_of(run_update(workload), workload) / workload.episodes}


def rewards_cost(number: int, folder: Path) -> dict[str, float]:
    """Seconds for scoring one episode with some rewards."""
    task = write_rows(folder / "rewards.jsonl", 256)
    env = InstructionVectorEnv(
        256,
        task=str(task),
        split="all",
        reward={f"reward_{i}": _named(i) for i in range(number)},
        autoreset_mode="DISABLED",
    )
    return {"episode_s": usual_time(lambda: _play(env, list(range(256)))) / 256}


def _named(number: int) -> Callable[..., list[float]]:
    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        return short_words(completions, **columns)

    reward.__name__ = f"reward_{number}"
    return reward


def rows_cost(number: int, folder: Path) -> dict[str, float]:
    """Seconds for one episode, and for loading and shuffling one row, with some rows of data."""
    path = write_rows(folder / f"rows-{number}.jsonl", number)
    start = time.perf_counter()
    task = DatasetTask(path, split="all")
    loaded = time.perf_counter() - start
    env = InstructionVectorEnv(
        64, task=task, split="all", reward=short_words, autoreset_mode="DISABLED"
    )
    chosen = random.Random(0).choices(range(number), k=64)
    ordered = usual_time(lambda: instruction_order(number, 0, 0, 64))
    path.unlink()
    return {
        "episode_s": usual_time(lambda: _play(env, chosen)) / 64,
        "load_s_per_row": loaded / number,
        "order_s": ordered,
        "peak_rss_bytes": float(peak_rss_bytes()),
    }


def write_rows(path: Path, number: int) -> Path:
    """A data file of different short instructions."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            row = {"prompt": f"What is {i} plus {i % 97}?", "reference": str(i + i % 97)}
            file.write(json.dumps(row) + "\n")
    return path


def _play(env: InstructionVectorEnv, indices: Sequence[int]) -> None:
    env.reset(options={"index": list(indices)})
    env.step([f"It is {i}." for i in indices])


def measure(axis: Axis, model: str, device: str, folder: Path) -> dict[str, Any]:
    """Measures one axis; returns its rows, the power, and whether that is in order."""
    sizes = axis.tiny if model.startswith("tiny") else axis.sizes
    chosen = pick_device(device)
    dtype = str(pick_dtype("auto", chosen)).removeprefix("torch.")
    base = Workload("", "", episodes=16, response_length=32, epochs=2, kl_coef=0.0)
    base = replace(base, dtype=dtype, device=chosen.type)
    measures: dict[str, Callable[[int], dict[str, float]]] = {
        "batch": lambda n: update_cost(replace(base, episodes=n), folder, model),
        "response": lambda n: update_cost(replace(base, response_length=n), folder, model),
        "rewards": lambda n: rewards_cost(n, folder),
        "rows": lambda n: rows_cost(n, folder),
    }
    rows = []
    for size in sizes:
        rows.append({axis.name: size, **measures[axis.name](size)})
        print(f"{axis.name} {size}: {rows[-1]['episode_s']:.3g} s for an episode", flush=True)
    found = power(sizes, [row["episode_s"] for row in rows])
    return {"rows": rows, "power": found, "most_power": axis.most_power}


def markdown(result: dict[str, Any]) -> str:
    """The tables of a result, for people."""
    lines = [f"# Cost of an episode, {result['model']} on {result['machine']['cpu']}"]
    for name, axis in result["axes"].items():
        columns = list(axis["rows"][0])
        lines += ["", f"## {name}: power {axis['power']:.2f}, at most {axis['most_power']}", ""]
        lines += ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += [
            "| " + " | ".join(f"{row[column]:.4g}" for column in columns) + " |"
            for row in axis["rows"]
        ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the axes; with --check it returns 1 when a cost grows faster than it should."""
    made = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    names = [axis.name for axis in AXES]
    made.add_argument("--axes", nargs="+", choices=names, default=names, help="what grows")
    made.add_argument("--model", default="smollm2-135m", help="as policy.model")
    made.add_argument("--device", default="auto", help="as policy.device")
    made.add_argument("--threads", type=int, help="threads of torch")
    made.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", help="results")
    made.add_argument("--check", action="store_true", help="refuse costs that grow too fast")
    given = made.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "model": given.model,
        "commit": machine.git_commit(),
        "machine": machine.machine_info(),
        "versions": machine.versions(),
        "axes": {},
    }
    for axis in AXES:
        if axis.name in given.axes:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(axis, given.model, given.device, Path(folder))
            result["axes"][axis.name] = found
            write_json(given.out / "growth.json", result)
            write_atomic(given.out / "growth.md", markdown(result))
    print(markdown(result))
    steep = [name for name, axis in result["axes"].items() if axis["power"] > axis["most_power"]]
    if given.check and steep:
        print(f"the cost of an episode grows too fast with: {', '.join(steep)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

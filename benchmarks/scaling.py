"""Weak scaling: what do two processes lose when they train together, each with its own episodes?

``python -m benchmarks.scaling`` runs three kinds of update in turn, with one thread for each
process, the same number of episodes for each, one minibatch and responses of one forced length:
one process *alone*, several *apart* (at the same time, without a word to each other) and several
*together*. The efficiency is the time alone over the time together; the time apart says how much
of the loss is the machine's. ``benchmarks.cost_model`` predicts from it. See docs/cost_model.md.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.ppo import ROOT
from benchmarks.prepare import prepare
from benchmarks.summary import spread
from benchmarks.workload import Workload
from instructrec.devices import pick_device, pick_dtype
from instructrec.experiments import machine
from instructrec.experiments.jsonl import write_json

_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
_LAUNCH = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class ScalingFailed(Exception):
    """A process ended without a report."""


def environments(count: int, together: bool) -> list[dict[str, str]]:
    """What each process finds in its environment: one thread, and who the others are."""
    kept = {name: value for name, value in os.environ.items() if name not in _LAUNCH}
    common = {**kept, **_QUIET, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if not together:
        return [common] * count
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    common |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [{**common, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]


def launch(
    workload: Workload, count: int, together: bool, folder: Path, timeout_s: float
) -> list[dict[str, Any]]:
    """Runs processes at the same time; returns their reports, of several together a single one.

    Raises:
        ScalingFailed: One did not finish, or was refused by the gate.
    """
    started = []
    for number, environment in enumerate(environments(count, together)):
        place = folder / str(number)
        place.mkdir()
        request, answer = place / "request.json", place / "answer.json"
        request.write_text(json.dumps(asdict(workload)), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.side_scaling", str(request), str(answer)]
        with open(place / "said.txt", "w", encoding="utf-8") as said:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT
            )
        started.append((process, place))
    try:
        for process, place in started:
            process.wait(timeout_s)
            if process.returncode:
                last = (place / "said.txt").read_text(encoding="utf-8").strip().splitlines()[-8:]
                raise ScalingFailed("\n".join([f"ended with {process.returncode}:", *last]))
    except subprocess.TimeoutExpired as error:
        raise ScalingFailed(f"took more than {timeout_s:.0f} s") from error
    finally:
        for process, _ in started:
            process.kill()
    answers = [place / "answer.json" for _, place in started[: 1 if together else count]]
    return [json.loads(answer.read_text(encoding="utf-8")) for answer in answers]


def measure(workload: Workload, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures one model; returns the updates of each kind, the efficiency and the link."""
    kinds = {"alone": (1, False), "apart": (given.processes, False)}
    kinds["together"] = (given.processes, True)
    updates: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    efficiencies, links, steps = [], [], 0
    for number in range(given.rounds):
        seconds = {}
        for kind, (count, together) in kinds.items():
            place = folder / f"{number}-{kind}"
            place.mkdir()
            reports = launch(workload, count, together, place, given.timeout_s)
            timed = [update for report in reports for update in report["updates"]]
            updates[kind] += timed
            seconds[kind] = median(update["seconds"] for update in timed)
            links += [report["link"] for report in reports if report["link"]]
            steps = reports[0]["steps"]
            print(f"round {number + 1}, {kind}: {seconds[kind]:.3g} s an update", flush=True)
        efficiencies.append(seconds["alone"] / seconds["together"])
    return {
        "processes": given.processes,
        "workload": asdict(workload),
        "steps": steps,
        **updates,
        "link": {name: median(link[name] for link in links) for name in links[0]},
        "efficiency": spread(efficiencies),
    }


def table(cases: Mapping[str, Any]) -> str:
    """The efficiencies, for people."""
    lines = ["| model | processes | episodes each | efficiency |", "|" + " --- |" * 4]
    for name, case in cases.items():
        found = case["efficiency"]
        shown = f"{found['median']:.3g} ({found['min']:.3g} to {found['max']:.3g})"
        lines.append(f"| {name} | {case['processes']} | {case['workload']['episodes']} | {shown} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a process failed."""
    made = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    made.add_argument("--models", nargs="+", default=["tiny", "smollm2-135m"], help="policy.model")
    made.add_argument("--processes", type=int, default=2, help="how many train together")
    made.add_argument("--episodes", type=int, default=32, help="episodes of each process")
    made.add_argument("--response-length", type=int, default=32, help="forced length")
    made.add_argument("--micro-batch", type=int, default=16, help="episodes in one pass")
    made.add_argument("--epochs", type=int, default=4, help="PPO epochs")
    made.add_argument("--train", default="full", help="full, last_layers (half of them) or lora")
    made.add_argument("--rounds", type=int, default=3, help="turns of each kind")
    made.add_argument("--updates", type=int, default=2, help="timed updates, behind one more")
    made.add_argument("--timeout-s", type=float, default=900.0, help="limit of one launch")
    made.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", help="results")
    given = made.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    device = pick_device("cpu")
    base = Workload("", "", given.episodes, given.response_length, epochs=given.epochs)
    base = replace(base, dtype=str(pick_dtype("auto", device)).removeprefix("torch."), threads=1)
    base = replace(base, train=given.train, updates=given.updates, micro_batch=given.micro_batch)
    result: dict[str, Any] = {
        "commit": machine.git_commit(),
        "machine": machine.machine_info(),
        "versions": machine.versions(),
        "rounds": given.rounds,
        "cases": {},
    }
    for model in given.models:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            number = given.episodes * given.processes
            prepare(model, folder, num_prompts=number, response_length=given.response_length)
            model_folder, prompts = str(folder / "model"), str(folder / "prompts.json")
            workload = replace(base, model=model_folder, prompts=prompts)
            try:
                result["cases"][model] = measure(workload, given, folder)
            except ScalingFailed as error:
                print(f"{model}: {error}", file=sys.stderr)
                return 1
        write_json(given.out / "scaling.json", result)
    print(f"\n{table(result['cases'])}\n\nwritten: {given.out / 'scaling.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

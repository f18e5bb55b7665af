"""How fast is our PPO beside TRL's trainers, and how near to the limit of this machine?

``python -m benchmarks.ppo`` (or ``make benchmark``) runs every part: the sides take turns, each in
a process of its own, on the same weights and the same prompts, token for token, with responses of
one forced length. A side whose log-probs, lengths, steps or loss are not what they should be is
refused before any time is taken. Processes that have finished are not run again: the command can
be stopped and given again. See docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import plot_phases
from benchmarks.parts import OURS, PARTS, PPO_PEER, Part, Side, most_prompts
from benchmarks.peer_env import trl112_python
from benchmarks.summary import markdown, own_shares, ratios, regressions, side_summary
from benchmarks.workload import Report, Workload
from instructrec.experiments import machine
from instructrec.experiments.jsonl import read_json, write_atomic, write_json

ROOT = Path(__file__).resolve().parent.parent
BASELINES = Path(__file__).resolve().parent / "baselines"
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}


class SideFailed(Exception):
    """A side's process ended without a report."""


class Bench:
    """Runs processes and keeps what they wrote.

    Args:
        folder: Where everything lies.
        given: The command line.
    """

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.given = folder, given
        self._pythons: dict[str, str] = {}

    def python(self, program: str) -> str:
        """The interpreter that a program runs on."""
        if program not in self._pythons:
            other = program == PPO_PEER
            chosen = trl112_python(self.given.trl112_python) if other else Path(sys.executable)
            self._pythons[program] = str(chosen)
        return self._pythons[program]

    def call(self, program: str, module: str, *arguments: str) -> None:
        """Runs a module in a fresh process.

        Raises:
            SideFailed: With the last lines of what it said.
        """
        environment = {**os.environ, **_OFFLINE}
        if program == PPO_PEER:
            environment.pop("PYTHONPATH", None)
        command = [self.python(program), "-m", f"benchmarks.{module}", *arguments]
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=self.given.timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise SideFailed(f"{module} took more than {self.given.timeout_s:.0f} s") from error
        if done.returncode:
            last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            raise SideFailed(f"{module} ended with status {done.returncode}:\n{last}")

    def report(self, part: Part, side: Side, workload: Workload, number: int) -> Report:
        """The report of one process: that of an earlier call where there is one."""
        place = self.folder / part.name / f"round-{number}"
        name = re.sub(r"[^a-z0-9.]+", "-", side.name.lower()).strip("-")
        request, answer = place / f"{name}.workload.json", place / f"{name}.json"
        text = json.dumps(asdict(workload), indent=1)
        self.once(f"side_{side.program}", side.program, request, answer, text)
        return Report.read(answer)

    def once(self, module: str, program: str, request: Path, answer: Path, text: str) -> None:
        """Has a module answer a request, unless it has answered this very one before."""
        if answer.is_file() and request.read_text(encoding="utf-8") == text:
            return
        request.parent.mkdir(parents=True, exist_ok=True)
        answer.unlink(missing_ok=True)
        write_atomic(request, text)
        staged = answer.with_suffix(".tmp")
        self.call(program, module, str(request), str(staged))
        staged.rename(answer)

    def limits(self, part: Part, workloads: dict[str, Workload]) -> dict[str, Any]:
        """What each side has to do, and how fast this machine is, measured beside the sides."""
        place = self.folder / part.name
        request, answer = place / "limits.request.json", place / "limits.json"
        asked = [[side.program, asdict(workloads[side.name])] for side in part.sides]
        self.once("limits", OURS, request, answer, json.dumps(asked, indent=1))
        found = json.loads(answer.read_text(encoding="utf-8"))
        return {side.name: limit for side, limit in zip(part.sides, found, strict=True)}

    def part(self, part: Part, base: Workload) -> dict[str, Any]:
        """Runs a part: its sides in turn, round after round.

        Raises:
            SideFailed: A side was refused by the gate, or did not finish.
        """
        workloads = {side.name: side.workload(base, part) for side in part.sides}
        for side in part.sides:
            self.python(side.program)  # installs what is missing before anything is timed
        reports: dict[str, list[Report]] = {side.name: [] for side in part.sides}
        for number in range(min(self.given.rounds, part.rounds or self.given.rounds)):
            for side in part.sides:
                start = time.perf_counter()
                report = self.report(part, side, workloads[side.name], number)
                reports[side.name].append(report)
                seconds = time.perf_counter() - start
                print(f"{part.name}, round {number + 1}: {side.name} ({seconds:.0f} s)", flush=True)
        limit = self.limits(part, workloads)
        sides = {
            side.name: {
                "workload": asdict(workloads[side.name]),
                **side_summary(reports[side.name], workloads[side.name], limit[side.name]),
            }
            for side in part.sides
        }
        found = ratios(part, reports, workloads) | own_shares(part, sides)
        return {"title": part.title, "sides": sides, "ratios": found}


def base_workload(given: argparse.Namespace) -> Workload:
    """The workload before parts and sides change it."""
    from instructrec.devices import pick_device, pick_dtype

    device = pick_device(given.device)
    dtype = str(pick_dtype(given.dtype, device)).removeprefix("torch.")
    gpu = device.type == "cuda"
    return Workload(
        model="",
        prompts="",
        episodes=given.episodes or (64 if gpu else 16),
        response_length=given.response_length or (128 if gpu else 32),
        mini_batches=given.mini_batches,
        epochs=given.epochs,
        dtype=dtype,
        device=device.type,
        threads=given.threads,
        warmup=given.warmup,
        updates=given.updates,
    )


def prepared(bench: Bench, base: Workload) -> Workload:
    """The workload with a model folder and prompts, which are made once."""
    number = most_prompts(base)
    folder = bench.folder / f"prepared-{number}x{base.response_length}"
    if not folder.exists():
        lengths = ("--prompts", str(number), "--response-length", str(base.response_length))
        bench.call(OURS, "prepare", bench.given.model, str(folder), *lengths)
    return replace(base, model=str(folder / "model"), prompts=str(folder / "prompts.json"))


def machine_name(info: dict[str, Any], model: str) -> str:
    """File name of a baseline: processor or GPU, cores, model."""
    chip = info["gpus"][0] if info["gpus"] else f"{info['cpu']}-{info['cores']}-cores"
    return re.sub(r"[^a-z0-9]+", "-", f"{chip}-{model}".lower()).strip("-")


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Writes JSON, tables and the plot of the phases."""
    write_json(folder / "ppo.json", result)
    write_atomic(folder / "ppo.md", markdown(result))
    if result["parts"]:
        plot_phases(result["parts"], folder / "ppo.png")


def check_baseline(result: dict[str, Any], path: Path) -> int:
    """Compares ratios with the committed baseline; returns the exit code."""
    if not path.is_file():
        print(f"there is no baseline of this machine: {path.name}. Write one with --write-baseline")
        return 2
    worse = regressions(read_json(path)["ratios"], _all_ratios(result))
    print("\n".join(["worse than the baseline:", *worse]) if worse else "no regression")
    return 1 if worse else 0


def _all_ratios(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for part in result["parts"].values() for k, v in part["ratios"].items()}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    names = [part.name for part in PARTS]
    made.add_argument("--parts", nargs="+", choices=names, default=names, help="what to compare")
    made.add_argument("--model", default="smollm2-135m", help="as policy.model")
    made.add_argument("--device", default="auto", help="as policy.device")
    made.add_argument("--dtype", default="auto", help="as policy.dtype")
    made.add_argument("--rounds", type=int, default=3, help="turns of each side")
    made.add_argument("--warmup", type=int, default=1, help="updates before the clock counts")
    made.add_argument("--updates", type=int, default=1, help="timed updates of a process")
    made.add_argument("--episodes", type=int, help="episodes of an update (16; on a GPU 64)")
    made.add_argument("--response-length", type=int, help="forced length (32; on a GPU 128)")
    made.add_argument("--epochs", type=int, default=4, help="PPO epochs")
    made.add_argument("--mini-batches", type=int, default=1, help="optimizer steps of an epoch")
    made.add_argument("--threads", type=int, help="threads of torch")
    made.add_argument("--timeout-s", type=float, default=900.0, help="limit of one process")
    made.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", help="results")
    made.add_argument("--trl112-python", type=Path, help="interpreter with TRL 1.12.0")
    made.add_argument("--check", action="store_true", help="compare ratios with the baseline")
    made.add_argument("--write-baseline", action="store_true", help="keep the ratios as baseline")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a side failed or something got worse."""
    given = parser().parse_args(arguments)
    base = base_workload(given)
    commit = machine.git_commit() or "installed"
    code = commit[:12] + ("-changed" if commit.endswith("+changes") else "")
    folder = given.out.resolve() / f"{code}-{given.model.replace('/', '-')}-{base.device}"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, given)
    base = prepared(bench, base)
    result: dict[str, Any] = {
        "model": given.model,
        "commit": commit,
        "machine": machine.machine_info(),
        "versions": machine.versions(),
        "rounds": given.rounds,
        "parts": {},
    }
    failed = []
    for part in PARTS:
        if part.name not in given.parts:
            continue
        try:
            result["parts"][part.name] = bench.part(part, base)
        except (SideFailed, RuntimeError) as error:
            failed.append(part.name)
            print(f"{part.name}: {error}", file=sys.stderr, flush=True)
        write_result(folder, result)
    print((folder / "ppo.md").read_text(encoding="utf-8"))
    print(f"written: {folder / 'ppo.json'}, ppo.md and ppo.png beside it")
    baseline = BASELINES / f"{machine_name(result['machine'], given.model)}.json"
    if given.write_baseline and not failed:
        baseline.parent.mkdir(exist_ok=True)
        kept = {key: result[key] for key in ("machine", "versions", "commit", "rounds")}
        write_json(baseline, {**kept, "ratios": _all_ratios(result)})
        print(f"baseline: {baseline}")
    status = check_baseline(result, baseline) if given.check else 0
    return status or bool(failed)


if __name__ == "__main__":
    sys.exit(main())

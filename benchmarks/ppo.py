"""How fast is our PPO beside TRL's trainers, and how near to the limit of this machine?

``python -m benchmarks.ppo`` (or ``make benchmark``) runs every part but those on demand: the sides
take turns, each in a process of its own, on the same weights and the same prompts, token for token,
with responses of forced length. A side whose log-probs, gradient, lengths, steps or loss are not
what they should be is refused, and its part not reported. Processes that have finished are not
run again: the command can be stopped and given again. See docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import plot_phases
from benchmarks.parts import OURS, PARTS, PPO_PEER, PROGRAMS, Part, Side, prompts_needed
from benchmarks.peer_env import trl112_python
from benchmarks.regressions import compare, machine_name, write_baseline
from benchmarks.shapes import SHAPES
from benchmarks.summary import markdown, own_shares, ratios, side_summary
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
        needed: See ``prompts_needed``.
    """

    def __init__(
        self,
        folder: Path,
        given: argparse.Namespace,
        needed: Mapping[tuple[int | None, int], int],
    ) -> None:
        self.folder, self.given, self.needed = folder, given, needed
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
        name = _file_name(side)
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

    def gate(self, part: Part, side: Side, workload: Workload) -> dict[str, float] | None:
        """How far our timed passes are from plain ones; None for a peer, which gates itself.

        Raises:
            SideFailed: They are too far.
        """
        if side.program != OURS:
            return None
        place = self.folder / part.name / _file_name(side)
        request, answer = place.with_suffix(".gate.request.json"), place.with_suffix(".gate.json")
        self.once("gate", OURS, request, answer, json.dumps(asdict(workload), indent=1))
        return {key: float(value) for key, value in read_json(answer).items()}

    def prepared(self, workload: Workload) -> Workload:
        """The workload with a model folder and prompts, which are made once."""
        prompts, length = workload.prompt_length, workload.response_length
        number = self.needed[prompts, length]
        folder = self.folder / f"prepared-{number}x{prompts or 'task'}x{length}"
        if not folder.exists():
            wanted = ["--prompts", str(number), "--response-length", str(length)]
            if prompts is not None:
                wanted += ["--prompt-length", str(prompts)]
            self.call(OURS, "prepare", self.given.model, str(folder), *wanted)
        return replace(workload, model=str(folder / "model"), prompts=str(folder / "prompts.json"))

    def part(self, part: Part, base: Workload) -> dict[str, Any]:
        """Runs a part: its sides in turn, round after round.

        Raises:
            SideFailed: A side was refused by the gate, or did not finish.
        """
        workloads = {side.name: self.prepared(side.workload(base, part)) for side in part.sides}
        for side in part.sides:
            self.python(side.program)  # installs what is missing before anything is timed
        gates = {side.name: self.gate(part, side, workloads[side.name]) for side in part.sides}
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
                "gate": gates[side.name],
            }
            for side in part.sides
        }
        found = ratios(part, reports, workloads) | own_shares(part, sides)
        return {"title": part.title, "sides": sides, "ratios": found}


def _file_name(side: Side) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", side.name.lower()).strip("-")


def base_workload(given: argparse.Namespace) -> Workload:
    """The workload before parts and sides change it."""
    from instructrec.devices import pick_device, pick_dtype

    device = pick_device(given.device)
    dtype = str(pick_dtype(given.dtype, device)).removeprefix("torch.")
    gpu = device.type == "cuda"
    return Workload(
        model="",
        prompts="",
        episodes=64 if gpu else 16,
        response_length=128 if gpu else 32,
        dtype=dtype,
        device=device.type,
        threads=given.threads,
        warmup=given.warmup,
        updates=given.updates,
    )


_WORK = ("episodes", "prompt_length", "response_length", "epochs", "mini_batches")
"""Fields of the workload that the command line decides where it names them."""


def chosen_parts(given: argparse.Namespace, named: Sequence[str] | None) -> list[Part]:
    """The parts of a command: those that it names, else all that are not on demand."""
    fields = {key: getattr(given, key) for key in _WORK if getattr(given, key) is not None}
    wanted = [p for p in PARTS if (p.name in named if named else not p.on_demand)]
    parts = [part.of(given.sides, fields) for part in wanted]
    return [part for part in parts if part.sides]


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
    found = compare(read_json(path), result)
    print(found.text())
    return found.status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    names = [part.name for part in PARTS]
    on_demand = ", ".join(part.name for part in PARTS if part.on_demand)
    parts_help = f"what to compare (all but {on_demand})"
    made.add_argument("--parts", nargs="+", choices=names, help=parts_help)
    made.add_argument("--sides", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="who plays")
    made.add_argument("--model", default="smollm2-135m", help="as policy.model")
    made.add_argument("--shape", choices=list(SHAPES), help="random weights of a shape instead")
    made.add_argument("--device", default="auto", help="as policy.device")
    made.add_argument("--dtype", default="auto", help="as policy.dtype")
    made.add_argument("--rounds", type=int, default=3, help="turns of each side")
    made.add_argument("--warmup", type=int, default=1, help="updates before the clock counts")
    made.add_argument("--updates", type=int, default=1, help="timed updates of a process")
    made.add_argument("--episodes", type=int, help="episodes of an update (16; on a GPU 64)")
    made.add_argument("--prompt-length", type=int, help="tokens of each prompt (the task's own)")
    made.add_argument("--response-length", type=int, help="(longest) forced length (32; GPU 128)")
    made.add_argument("--epochs", type=int, help="PPO epochs (4)")
    made.add_argument("--mini-batches", type=int, help="optimizer steps of an epoch (1)")
    made.add_argument("--threads", type=int, help="threads of torch")
    made.add_argument("--timeout-s", type=float, default=900.0, help="limit of one process")
    made.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks", help="results")
    made.add_argument("--trl112-python", type=Path, help="interpreter with TRL 1.12.0")
    made.add_argument("--check", action="store_true", help="compare ratios with the baseline")
    made.add_argument("--write-baseline", action="store_true", help="keep the parts as baseline")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns 1 when a side failed or something got worse."""
    given = parser().parse_args(arguments)
    if given.shape:
        given.model = f"shape:{given.shape}"
    parts = chosen_parts(given, given.parts)
    if not parts:
        print("none of these parts has one of these sides", file=sys.stderr)
        return 2
    base = base_workload(given)
    commit = machine.git_commit() or "installed"
    code = commit[:12] + ("-changed" if commit.endswith("+changes") else "")
    model = re.sub(r"[/:]+", "-", given.model)
    folder = given.out.resolve() / f"{code}-{model}-{base.device}"
    folder.mkdir(parents=True, exist_ok=True)
    # Whatever is named, so that a second command finds the prompts of the first.
    needed = prompts_needed([*chosen_parts(given, None), *parts], base)
    bench = Bench(folder, given, needed)
    result: dict[str, Any] = {
        "model": given.model,
        "commit": commit,
        "machine": machine.machine_info(),
        "versions": machine.versions(),
        "rounds": given.rounds,
        "parts": {},
    }
    failed = []
    for part in parts:
        try:
            result["parts"][part.name] = bench.part(part, base)
        except (SideFailed, RuntimeError) as error:
            failed.append(part.name)
            print(f"{part.name}: {error}", file=sys.stderr, flush=True)
        write_result(folder, result)
    print((folder / "ppo.md").read_text(encoding="utf-8"))
    print(f"written: {folder / 'ppo.json'}, ppo.md and ppo.png beside it")
    baseline = BASELINES / f"{machine_name(result['machine'], given.model)}.json"
    if given.write_baseline and result["parts"]:
        write_baseline(result, baseline)
        print(f"baseline: {baseline}, parts {', '.join(result['parts'])}")
    status = check_baseline(result, baseline) if given.check else 0
    return status or bool(failed)


if __name__ == "__main__":
    sys.exit(main())

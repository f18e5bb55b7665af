"""What a machine reached before: one file for each machine and model, kept part by part.

A ratio belongs to the work that it was measured on, so each part keeps the workload of its sides,
and nothing is compared with a ratio of other work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.summary import Spread
from benchmarks.workload import Workload
from instructrec.experiments.jsonl import read_json, write_json

SLOWER, LARGER = 0.15, 0.05
"""How far a ratio of speeds may fall, and one of memory rise, before it is a regression."""

_PLACES = ("model", "prompts")
"""Fields of a workload that say where its files lie, and nothing about the work."""
_ORIGIN = ("machine", "versions", "commit", "rounds")
"""What a baseline keeps of the run that a part comes from."""


@dataclass
class Comparison:
    """What came out of holding a run against a baseline."""

    compared: list[str] = field(default_factory=list)
    """Ratios that both have of the same work."""
    worse: list[str] = field(default_factory=list)
    """Those that got worse than is allowed, with both values."""
    not_compared: list[str] = field(default_factory=list)
    """Parts of other work, and ratios that the run lacks: what a check was asked for in vain."""
    unknown: list[str] = field(default_factory=list)
    """Parts and ratios that the baseline does not have."""
    not_run: list[str] = field(default_factory=list)
    """Parts of the baseline that this run left out."""

    @property
    def status(self) -> int:
        """Exit code: 1 when something got worse, 2 when that cannot be said, else 0."""
        return 1 if self.worse else 2 if self.not_compared or not self.compared else 0

    def text(self) -> str:
        """What people should know of it."""
        lines = []
        if self.worse:
            lines += ["worse than the baseline:", *self.worse]
        elif self.compared:
            lines.append("no regression in what was compared")
        if self.not_compared:
            lines += ["not compared:", *self.not_compared]
        if self.unknown:
            lines.append(f"the baseline does not have: {', '.join(self.unknown)}")
        if self.not_run:
            lines.append(f"parts of the baseline that were not run: {', '.join(self.not_run)}")
        return "\n".join([*lines, f"{len(self.compared)} ratios were compared."])


def machine_name(info: Mapping[str, Any], model: str) -> str:
    """File name of a baseline: processor or GPU, cores, model."""
    chip = info["gpus"][0] if info["gpus"] else f"{info['cpu']}-{info['cores']}-cores"
    return re.sub(r"[^a-z0-9]+", "-", f"{chip}-{model}".lower()).strip("-")


def write_baseline(result: Mapping[str, Any], path: Path) -> None:
    """Keeps the parts of a run as baseline; other parts of the file stay as they are."""
    parts = dict(read_json(path)["parts"]) if path.is_file() else {}
    origin = {key: result[key] for key in _ORIGIN}
    for name, part in result["parts"].items():
        if not part["ratios"]:  # ours alone: there is nothing to hold a later run against
            continue
        work = {side: without_places(found["workload"]) for side, found in part["sides"].items()}
        parts[name] = {**origin, "workloads": work, "ratios": part["ratios"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"model": result["model"], "parts": parts})


def without_places(workload: Mapping[str, Any]) -> dict[str, Any]:
    """A workload without the fields that name files."""
    return {key: value for key, value in workload.items() if key not in _PLACES}


def compare(baseline: Mapping[str, Any], result: Mapping[str, Any]) -> Comparison:
    """Holds the parts of a run against a baseline.

    Args:
        baseline: What ``write_baseline`` wrote.
        result: A run, as in ``ppo.json``.
    """
    found = Comparison()
    found.not_run = [name for name in baseline["parts"] if name not in result["parts"]]
    for name, part in result["parts"].items():
        before = baseline["parts"].get(name)
        if before is None:
            found.unknown.append(name)
        elif differences := _other_work(before["workloads"], part["sides"]):
            found.not_compared.append(f"{name}: other work ({'; '.join(differences)})")
        else:
            _compare_ratios(before["ratios"], part["ratios"], found)
    return found


def _other_work(before: Mapping[str, Any], sides: Mapping[str, Any]) -> list[str]:
    """How the workloads of a part's sides differ from those of the baseline."""
    differences = [f"{side} is missing" for side in before if side not in sides]
    for side, content in sides.items():
        if side not in before:
            differences.append(f"{side} is new")
            continue
        was, now = _filled(before[side]), _filled(content["workload"])
        differences += [
            f"{side}: {key} {now[key]}, the baseline has {was[key]}"
            for key in now
            if now[key] != was[key]
        ]
    return differences


def _filled(workload: Mapping[str, Any]) -> dict[str, Any]:
    """A workload in which fields that came later have their default."""
    return without_places(asdict(Workload(**{"model": "", "prompts": "", **workload})))


def _compare_ratios(
    before: Mapping[str, Spread], now: Mapping[str, Spread], found: Comparison
) -> None:
    for name in sorted({*before, *now}):
        if name not in now:
            found.not_compared.append(f"{name}: only the baseline has it")
        elif name not in before:
            found.unknown.append(name)
        else:
            found.compared.append(name)
            was, new = before[name]["median"], now[name]["median"]
            larger, smaller = new > was * (1 + LARGER), new < was * (1 - SLOWER)
            if larger if name.endswith("/memory") else smaller:
                found.worse.append(f"{name}: {new:.3g}, the baseline has {was:.3g}")

"""Load: how the parts and whole runs do in great numbers, for long, and in trouble.

``python -m benchmarks.soak`` (or ``make soak``) runs the checks L1 to L12, each in a process of its
own, and writes their table to ``benchmarks/results/soak.md`` and ``soak.json``. ``--only L5 L10``
runs some of them, and keeps the rows of the others; ``--share 0.1`` a tenth of each. What is
written down are counts, hashes and memory, no speeds: the machine need not be idle.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import load_checks, load_runs
from benchmarks.load_checks import Found

RESULTS = Path(__file__).parent / "results"
TIMEOUT_S = 4 * 3600.0
"""Seconds after which a check counts as hung."""


@dataclass(frozen=True)
class Load:
    """One of the checks."""

    what: str
    """What is done, at its full size."""
    bound: str
    """What has to hold."""
    run: Callable[[float], Found]
    """Does a share of it."""


def fuzz(share: float) -> Found:
    """L11: parsers and sinks on text without sense."""
    from benchmarks.fuzz import EXAMPLES, problem
    from benchmarks.fuzz_targets import targets

    examples = max(20, round(EXAMPLES * share))
    with tempfile.TemporaryDirectory() as folder:
        told = {t.name: problem(t, examples) for t in targets(Path(folder))}
    found = Found({"targets": len(told), "values for each": examples})
    found.faults += [f"{name}: {said}" for name, said in told.items() if said]
    return found


def mutations(share: float) -> Found:
    """L12: whether the tests notice when a safety is gone."""
    from benchmarks.mutations import GOOD, check, read_mutations, table

    step = max(1, round(1 / share))
    verdicts = check(read_mutations()[::step], say=lambda line: print(line, flush=True))
    counts = {v.outcome: sum(o.outcome == v.outcome for o in verdicts) for v in verdicts}
    found = Found({"safeties taken out": len(verdicts), **counts, "table": table(verdicts)})
    found.faults += [
        f"{v.mutation.safety}: {v.outcome}, {v.detail}" for v in verdicts if v.outcome not in GOOD
    ]
    return found


LOADS = {
    "L1": Load(
        "1,000,000 episodes of the vector environment with exact match",
        "memory grows by less than 1 MiB; descriptors, threads and processes stay",
        load_checks.episodes,
    ),
    "L2": Load(
        "a JSONL file of 100,000 rows: checked, read twice in the order of a training, and resumed",
        "at most 64 MiB more memory; the same order each time",
        load_checks.large_file,
    ),
    "L3": Load("the same with 1,000,000 rows and 1 GiB", "the same", load_checks.huge_file),
    "L4": Load(
        "10,000 rewards in workers; 1 % raise, 1 % hang, 0.5 % are NaN, 0.2 % end the worker",
        "each planned fault counted, all other scores right, no process or descriptor left",
        load_checks.faulty_rewards,
    ),
    "L5": Load(
        "2,000 verdicts on programs, of which 20 % are hostile",
        "no verdict is wrong, at most 1 % is missing; no process, thread or folder is left",
        load_checks.code_verdicts,
    ),
    "L6": Load(
        "runs killed at each named place, at 40 random moments and twice in a row",
        "each ends as the run that was left alone, bit for bit",
        load_checks.killed_runs,
    ),
    "L7": Load(
        "500 commits of which three are kept",
        "each reads back; never more than 4 checkpoints on the disk; nothing is left over",
        load_checks.commits,
    ),
    "L8": Load(
        "1,000 updates of PPO on the tiny model",
        "after 100, memory grows by less than 1 MiB in 100 updates; descriptors and threads stay; "
        "each update is recorded once",
        load_runs.many_updates,
    ),
    "L9": Load(
        "a response of 50 MB, one of 100,000 words, a report on 10,000 long samples",
        "scored and recorded whole; cut in pages, which stay below 20 MiB",
        load_checks.long_texts,
    ),
    "L10": Load(
        "2,000 updates with failing rewards, killed 9 times; the reward's server down, the disk "
        "full and the tracker dead twice each",
        "ends with the hash of the run that was left alone; no checkpoint lost, no process or "
        "file left, never more than 4 checkpoints on the disk",
        load_runs.soak,
    ),
    "L11": Load(
        "every parser and every sink on 2,000 damaged texts",
        "no error but those that are documented; what is shown is text",
        fuzz,
    ),
    "L12": Load(
        "each safety taken out of a copy of the code",
        "its test fails",
        mutations,
    ),
}
"""The checks by name."""


def run_apart(name: str, share: float) -> dict[str, Any]:
    """Runs a check in a process of its own; returns its row of the results."""
    row = {"share": share, "date": datetime.now(UTC).date().isoformat()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.soak", "--inside", name, "--to", str(file)]
        try:
            code = subprocess.run([*command, "--share", str(share)], timeout=TIMEOUT_S).returncode
        except subprocess.TimeoutExpired:
            return row | {"numbers": {}, "faults": [f"not over after {TIMEOUT_S:.0f} s"]}
        if not file.exists():
            return row | {"numbers": {}, "faults": [f"its process ended with code {code}"]}
        told: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return row | told


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The results as a page."""
    lines = [
        "# Load",
        "",
        "Made by `make soak` (`python -m benchmarks.soak`); what each check is and what has to "
        "hold stands in [docs/reliability.md](../../docs/reliability.md#load). Counts, hashes and "
        "memory alone: the machine was shared with other programs. *Share* is what was run of the "
        "full size.",
        "",
        "| load | share | day | counted | outcome |",
        "| --- | --- | --- | --- | --- |",
    ]
    tables = []
    for name in LOADS:
        if name not in rows:
            continue
        row = dict(rows[name])
        numbers = dict(row["numbers"])
        if more := numbers.pop("table", ""):
            tables += ["", f"## {name}", "", more.strip()]
        counted = "; ".join(f"{key} {_shown(value)}" for key, value in numbers.items())
        wrong = "; ".join(row["faults"]).replace("|", "/").replace("\n", " ") or "as it should be"
        lines.append(f"| {name} | {row['share']:g} | {row['date']} | {counted} | {wrong} |")
    if missing := [name for name in LOADS if name not in rows]:
        lines += ["", f"Not run: {', '.join(missing)}."]
    return "\n".join([*lines, *tables]) + "\n"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(LOADS), default=list(LOADS))
    parser.add_argument("--share", type=float, default=1.0, help="share of the full sizes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--inside", choices=list(LOADS), help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if not 0 < given.share <= 1:
        parser.error(f"--share {given.share}: expected a number in (0, 1]")
    if given.inside:
        found = LOADS[given.inside].run(given.share)
        told = {"numbers": found.numbers, "faults": found.faults}
        given.to.write_text(json.dumps(told), encoding="utf-8")
        return 0
    file, failed = given.out / "soak.json", False
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.only:
        print(f"{name}: {LOADS[name].what} ...", flush=True)
        row = run_apart(name, given.share)
        failed |= bool(row["faults"])
        # Read anew: another call may have written its rows meanwhile.
        rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        rows[name] = row
        print(f"{name}: {'; '.join(row['faults']) or 'as it should be'}", flush=True)
        file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (given.out / "soak.md").write_text(markdown(rows), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

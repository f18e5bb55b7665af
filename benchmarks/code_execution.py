"""How many verdicts on code a machine gives, and whether each of them is right.

``python -m benchmarks.code_execution --json code.json`` judges 2,000 programs, of which every fifth
is hostile: forgeries, attacks and bombs of ``benchmarks.code_corpus``. It prints a table, and fails
when a hostile program earned something, a right one did not, or a process or file was left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.code_corpus import ATTACKS, BENIGN, BOMBS, CASES, FORGERIES
from instructrec.rewards import FailedScore
from instructrec.rewards.code_execution import CodeExecution, processors

HOSTILE_SHARE = 0.2
BOMB_SHARE = 0.02
"""Share of the hostile programs that use up their time: each costs a whole limit."""


def programs(number: int, seed: int = 0) -> list[tuple[str, str]]:
    """Kind and code of each program, in random order.

    Attacks and bombs are called as ``double`` as well, so that they run as far as they can.
    """
    rng = random.Random(seed)
    hostile = round(number * HOSTILE_SHARE)
    bombs = max(1, round(hostile * BOMB_SHARE))
    bare = "\ndef double(n):\n    return 6 if {call} is True else 0\n"
    attack = bare.format(call="attack(os.getppid(), '/etc/passwd')")
    pools = {
        "forgery": [*FORGERIES.values()],
        "attack": [code + attack for code in ATTACKS.values()],
        "bomb": [code + bare.format(call="attack()") for code in BOMBS.values()],
        "benign": [*BENIGN.values()],
    }
    counts = {"bomb": bombs, "attack": (hostile - bombs) // 2}
    counts |= {"forgery": hostile - sum(counts.values()), "benign": number - hostile}
    chosen = []
    for kind, count in counts.items():
        pool = pools[kind]
        chosen += [(kind, pool[i % len(pool)]) for i in range(count)]
    rng.shuffle(chosen)
    return chosen


def left_behind(before: set[str]) -> dict[str, int]:
    """Processes that this one started and that still run, and temporary folders of sandboxes."""
    children = [p for p in psutil.Process().children(recursive=True) if p.is_running()]
    return {"processes": len(children), "folders": len(folders() - before)}


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def folders() -> set[str]:
    """Names of the temporary folders of sandboxes."""
    return {p.name for p in Path(tempfile.gettempdir()).glob("instructrec-code-*")}


def measure(number: int, workers: int, timeout: float, bubblewrap: Any) -> dict[str, Any]:
    """Judges programs and compares the verdicts with what they should be."""
    reward = CodeExecution(
        run_model_code=True, timeout_s=timeout, workers=workers, bubblewrap=bubblewrap
    )
    chosen, before = programs(number), folders()
    rss, threads = psutil.Process().memory_info().rss, threading.active_count()
    start, cpu = time.perf_counter(), cpu_seconds()
    scores = reward([code for _, code in chosen], [CASES] * number, function=["double"] * number)
    wall = time.perf_counter() - start
    # The kernel credits nobody with the time of processes that end with their namespace.
    wrapped = "bubblewrap" in reward.judge.sandbox.layers
    wrong: Counter[str] = Counter()
    for (kind, _), score in zip(chosen, scores, strict=True):
        if isinstance(score, FailedScore):
            wrong["failed"] += 1
        elif kind == "benign" and score != 1.0:
            wrong["false_fail"] += 1
        elif kind != "benign" and score != 0.0:
            wrong["false_pass"] += 1
    return {
        "programs": dict(Counter(kind for kind, _ in chosen)),
        **{name: wrong[name] for name in ("false_pass", "false_fail", "failed")},
        "layers": list(reward.judge.sandbox.layers),
        "workers": workers,
        "timeout_s": timeout,
        "wall_s": wall,
        "verdicts_per_s": number / wall,
        "cpu_ms_per_verdict": None if wrapped else 1e3 * (cpu_seconds() - cpu) / number,
        "load_average": os.getloadavg()[0],
        "host_memory_rise_mib": (psutil.Process().memory_info().rss - rss) / 2**20,
        "left": {**left_behind(before), "threads": threading.active_count() - threads},
    }


def is_right(result: dict[str, Any]) -> bool:
    """Whether every verdict was right and nothing was left."""
    faults = [result[name] for name in ("false_pass", "false_fail", "failed")]
    return not any([*faults, *result["left"].values()])


def main() -> int:
    """Runs the measurement; returns 1 when a verdict was wrong or something was left."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--programs", type=int, default=2000, help="how many are judged")
    parser.add_argument("--workers", type=int, default=processors(), help="side by side")
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for each")
    parser.add_argument("--bubblewrap", choices=("auto", "never", "require"), default="auto")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    given = parser.parse_args()
    result = measure(given.programs, given.workers, given.timeout, given.bubblewrap)
    for name, value in result.items():
        print(f"{name:<22} {value:.1f}" if isinstance(value, float) else f"{name:<22} {value}")
    print("every verdict right, nothing left" if is_right(result) else "WRONG")
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if is_right(result) else 1


if __name__ == "__main__":
    sys.exit(main())

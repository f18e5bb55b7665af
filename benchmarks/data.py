"""What a large data file costs: seconds, memory, and whether its order is the same when read again.

``python -m benchmarks.data --check`` writes a JSONL file of a million rows and one GiB, reads it in
a fresh process as a task, goes through an epoch in the order of a training twice, and returns 1
when it takes more than 64 MiB beyond what the process had before, or when the two differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_MIB = 64.0
_WORDS = (
    "river",
    "seven",
    "quiet",
    "lemon",
    "under",
    "paper",
    "signal",
    "orbit",
    "velvet",
    "north",
)


def write_rows(path: Path, rows: int, row_bytes: int) -> None:
    """Writes a JSONL file, about ``row_bytes`` a row; every hundredth instruction comes twice."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            words = " ".join(rng.choices(_WORDS, k=max(1, (row_bytes - 60) // 6)))
            row = {"prompt": f"{number}: {words}", "reference": str(number), "level": number % 7}
            file.write((json.dumps(row) + "\n") * (2 if number % 100 == 99 else 1))


def measure(path: Path, seed: int = 0) -> dict[str, Any]:
    """Reads a file as a task and goes through an epoch twice; call it in a fresh process.

    Returns:
        Seconds and MiB; ``digest`` is that of the whole epoch, ``again`` of the second reading and
        ``resumed`` says whether its second half, begun by itself, is the same.
    """
    from instructrec.envs.tasks.dataset import DatasetTask
    from instructrec.rl.rollout import instruction_order

    before = _memory("VmRSS")
    _forget_peak()
    start = time.perf_counter()
    task = DatasetTask(path, split="all")
    loaded = time.perf_counter()
    found: dict[str, Any] = {"rows": len(task), "load_s": loaded - start}
    found["load_mib"] = _memory("VmHWM") - before
    digests = []
    for _ in range(2):
        digest = hashlib.sha256()
        for item in _epoch(task, seed, 0, len(task), instruction_order):
            digest.update(repr(item).encode())
        digests.append(digest.hexdigest())
    found["row_us"] = (time.perf_counter() - loaded) / len(task) / 2 * 1e6
    found["extra_mib"] = _memory("VmHWM") - before
    middle = len(task) // 2
    halves = [
        [item.id for item in _epoch(task, seed, first, middle + 100, instruction_order)][-100:]
        for first in (0, middle)
    ]
    return found | {
        "digest": digests[0],
        "again": digests[1],
        "resumed": halves[0] == halves[1],
        "fingerprint": task.fingerprint,
    }


def _epoch(task: Any, seed: int, start: int, stop: int, order: Any) -> Iterator[Any]:
    """Yields the instructions of an epoch as a training asks for them, many at a time."""
    for first in range(start, stop, 16_384):
        for index in order(len(task), seed, first, min(first + 16_384, stop)):
            yield task[index]


def _memory(name: str) -> float:
    """A figure of this process's memory in MiB, as Linux reports it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"{name} is not in /proc/self/status")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is used now


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, and with --check returns 1 when something is not as it should be."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    made.add_argument("--rows", type=int, default=1_000_000)
    made.add_argument("--row_bytes", type=int, default=1074, help="mean length of a row")
    made.add_argument("--most_mib", type=float, default=MOST_MIB, help="bound of --check")
    made.add_argument("--check", action="store_true", help="return 1 where a bound is passed")
    made.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the fresh process
    given = made.parse_args(arguments)
    if given.measure is not None:
        print(json.dumps(measure(given.measure)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, given.rows * 100 // 101, given.row_bytes)
        size = path.stat().st_size / 2**20
        command = [sys.executable, "-m", "benchmarks.data", "--measure", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"file_mib": round(size, 1)} | found, indent=2))
    same = found["digest"] == found["again"] and found["resumed"]
    fits = found["extra_mib"] < given.most_mib
    if not same:
        print("the order of the rows differs when the file is read again", file=sys.stderr)
    if not fits:
        print(
            f"{found['extra_mib']:.0f} MiB of memory: expected less than {given.most_mib:g}",
            file=sys.stderr,
        )
    return int(given.check and not (same and fits))


if __name__ == "__main__":
    sys.exit(main())

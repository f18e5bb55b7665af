"""Load checks of whole runs: a thousand updates, and hours of trouble made short.

The long run of ``benchmarks.long_run`` is done twice. The second time it is disturbed: killed, its
server and its tracker ended, its disk full. It has to end as the first one did, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.kill_run import Ended, Runner, committed, faults, outcome
from benchmarks.load_checks import Found, held, rss_mib, scratch
from benchmarks.long_run import LongRunner, Server

WARM_UP = 0.1
"""Share of a long run before its memory is looked at."""
PLAN = (
    *("kill", "kill", "server", "kill", "disk", "kill", "tracker", "kill"),
    *("kill", "server", "kill", "disk", "kill", "tracker", "kill"),
)
"""What is done to a disturbed run, one after the other; then it is left alone."""
SHORT_PLAN = ("kill", "server", "disk", "kill", "tracker", "kill")
"""The same for a small share."""


def many_updates(share: float) -> Found:
    """L8: updates of one process, whose memory stays."""
    from instructrec.crash_points import listening
    from instructrec.experiments.cli import main
    from instructrec.experiments.runfolder import read_metrics

    updates, seen = max(20, round(1_000 * share)), []

    def look(place: str) -> None:
        if place == "update.reported":
            now = held()
            seen.append((rss_mib(), now["descriptors"], now["threads"]))

    with scratch() as folder:
        runner = Runner(Path(folder) / "run", "full")
        os.chdir(runner.folder)
        settings = ["--ppo.num_updates", str(updates), "--ppo.save_every", "50"]
        with listening(look):
            code = main(["train", "run.yaml", *settings, "--ppo.eval_every", "0"])
        rows = [row["train/update"] for row in read_metrics(runner.run)]
        os.chdir("/")
    found = Found({"updates": updates, "rows of metrics": len(rows)})
    found.expect(code == 0, f"it ended with code {code}")
    found.expect(rows == list(range(1, updates + 1)), "an update is missing, or recorded twice")
    steady = seen[round(WARM_UP * len(seen)) :]
    growth = slope([mib for mib, _, _ in steady])
    found.numbers |= {"growth in MiB for 100 updates": round(100 * growth, 3)}
    found.numbers |= {"memory in MiB": round(steady[-1][0], 1)}
    most = max(1.0, 100.0 / len(steady))  # of a short run, one MiB in all
    found.expect(100 * growth < most, f"the memory grows by {100 * growth:.2f} MiB in 100 updates")
    for name, place in (("descriptors", 1), ("threads", 2)):
        first, last = steady[0][place], steady[-1][place]
        found.numbers[f"{name} more than at first"] = last - first
        found.expect(last <= first, f"{name}: {first} at first, {last} at the end")
    return found


def slope(values: list[float]) -> float:
    """Growth from one value to the next: the line of least squares."""
    import numpy as np

    return float(np.polyfit(range(len(values)), values, 1)[0])


def soak(share: float) -> Found:
    """L10: a long run that is disturbed again and again, beside one that is not."""
    from benchmarks.kills import _import_everything

    _import_everything()
    plan = PLAN if share >= 0.05 else SHORT_PLAN
    updates, server = max(4 * len(plan), round(2_000 * share)), Server()
    try:
        with scratch() as folder:
            whole = LongRunner(Path(folder) / "whole", updates, server.port)
            ended = whole.start()
            if ended.code:
                return Found({"updates": updates}, [f"the whole run: {ended.output[-800:]}"])
            disturbed = LongRunner(Path(folder) / "disturbed", updates, server.port)
            found = _disturb(disturbed, plan, ended.seconds / updates, server)
            _compare(whole, disturbed, found)
            return found
    finally:
        server.stop()


def _disturb(runner: LongRunner, plan: Sequence[str], update_s: float, server: Server) -> Found:
    """Disturbs a run as planned, then lets it end.

    Args:
        runner: The run.
        plan: What is done to it, one after the other.
        update_s: Seconds that an update takes, more or less.
        server: What its reward asks.
    """
    found, done, most, peak = Found({"updates": runner.updates}), Counter[str](), 0, 0.0
    draws = random.Random(0)
    for nth, how in enumerate(plan, 1):
        before = committed(runner.run)
        # The last one with a third of the updates to come: none may find the run at its end.
        at = round(nth / len(plan) * runner.updates * 2 / 3)
        last = runner.disturbed(how, at, update_s * draws.random(), server)
        done[how] += _was_disturbed(how, last, found)
        peak, most = max(peak, last.peak_mib), max(most, _size(runner.run / "checkpoints"))
        found.expect(committed(runner.run) >= before, f"a checkpoint was lost by: {how}")
    counts = Counter(plan)
    found.numbers |= {f"disturbed by {how}": done[how] for how in counts}
    found.expect(done == counts, f"disturbed {dict(done)}, planned {dict(counts)}")
    found.numbers["newest checkpoint behind the last disturbance"] = committed(runner.run)
    found.expect(committed(runner.run) > 0, "nothing was committed while it was disturbed")
    final = runner.start("--resume")
    found.expect(final.code == 0, f"it ended with code {final.code}: {final.output[-500:]}")
    one = _size(runner.run / "checkpoints" / f"update-{committed(runner.run):06d}")
    found.numbers["most memory of a process in MiB"] = round(max(peak, final.peak_mib), 1)
    found.numbers["most on the disk, in checkpoints"] = round(most / one, 2)
    found.expect(most <= 4 * one, f"{most / one:.1f} checkpoints lay on the disk")
    return found


def _compare(whole: LongRunner, disturbed: LongRunner, found: Found) -> None:
    """Holds what a disturbed run ended with against the run that was left alone."""
    failed = _failures(whole)
    found.numbers |= {f"planned failures: {name}": count for name, count in failed.items()}
    found.expect(bool(failed), "none of the planned failures of the reward was met")
    if found.faults:
        return
    expected = outcome(whole.run, whole.updates)
    found.faults += faults(disturbed.run, expected, whole.updates)
    found.numbers["hash left alone"] = digest(expected)
    found.numbers["hash disturbed"] = digest(outcome(disturbed.run, whole.updates))


def _was_disturbed(how: str, last: Ended, found: Found) -> bool:
    """Whether a run ended as somebody who is disturbed like that has to."""
    found.expect("Traceback" not in last.output, f"{how}: {last.output[-500:]}")
    if how in ("kill", "tracker"):
        return last.signal == signal.SIGKILL
    codes = {"disk": (1, 8), "server": (5,)}[how]
    said = f"{how}: expected code {codes}, found {last.code}: {last.output[-300:]}"
    found.expect(last.code in codes, said)
    return last.code in codes


def _failures(runner: LongRunner) -> dict[str, int]:
    """How often the reward of a run failed, by the kind of failure."""
    counts: Counter[str] = Counter()
    for line in (runner.run / "faults.jsonl").read_text().splitlines():
        fault = json.loads(line)
        if fault["boundary"] == "reward":
            counts[fault["kind"]] += fault["count"]
    return dict(sorted(counts.items()))


def digest(found: dict[str, Any]) -> str:
    """A hash of everything that has to be equal, 16 characters of it."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Load checks of the parts: environments, data, rewards, model-written code, commits, pages.

Each is a function of the share of its full size (1 is all of it) that returns what it counted and
what was wrong. ``benchmarks.soak`` runs each in a process of its own, so that the memory which one
looks at is its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 2**20


@dataclass
class Found:
    """What a check counted, and what was not as it should be."""

    numbers: dict[str, Any] = field(default_factory=dict)
    """Sizes and counts by name."""
    faults: list[str] = field(default_factory=list)
    """One line each; empty where all is well."""

    def expect(self, holds: bool, fault: str) -> None:
        """Notes a fault unless something holds."""
        if not holds:
            self.faults.append(fault)


def rss_mib() -> float:
    """Memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def held() -> dict[str, int]:
    """Open descriptors, threads and living children (zombies too) of this process."""
    import psutil

    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(psutil.Process().children(recursive=True)),
    }


def flat(found: Found, before: dict[str, int], patience_s: float = 10.0) -> None:
    """Expects no more to be held than before.

    Args:
        found: Gets the counts.
        before: What was held.
        patience_s: Seconds for threads that are about to end.
    """
    deadline = time.monotonic() + patience_s
    now = held()
    while any(now[n] > before[n] for n in before) and time.monotonic() < deadline:
        time.sleep(0.1)
        now = held()
    for name, count in before.items():
        found.numbers[f"{name} left"] = now[name] - count
        found.expect(now[name] <= count, f"{name}: {count} before, {now[name]} after")


def scratch() -> contextlib.AbstractContextManager[str]:
    """A folder in memory where there is one: what is written is the same on any disk."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


def episodes(share: float) -> Found:
    """L1: episodes of the vector environment."""
    from benchmarks import envs

    step = envs.stepper("instructrec/ClosedAnswers-v0", 256, "vector_entry_point")
    count = max(10_000, round(1_000_000 * share))
    envs.play(step, 256, max(count // 5, 20_000))  # the task finds its items, the allocator pools
    before = held()
    seen = envs.play(step, 256, count)
    growth = envs.slope(seen) * seen["episodes"][-1] / 1e6
    found = Found({"episodes": int(seen["episodes"][-1]), "growth in MiB": round(growth, 3)})
    most = envs.MOST_MIB * max(1.0, count / 1e6)
    found.expect(growth < most, f"the memory grew by {growth:.2f} MiB, at most {most:g} expected")
    flat(found, before)
    return found


def _data(rows: int) -> Found:
    from benchmarks import data

    with tempfile.TemporaryDirectory() as folder:  # on the disk: a GiB in memory is not free
        path = Path(folder) / "rows.jsonl"
        data.write_rows(path, rows * 100 // 101, 1074)
        size = path.stat().st_size / MIB
        told = data.measure(path)
    found = Found({"rows": told["rows"], "file in MiB": round(size, 1)})
    found.numbers["memory above the start in MiB"] = round(told["extra_mib"], 1)
    found.numbers["order"] = told["digest"][:12]
    found.expect(told["extra_mib"] < data.MOST_MIB, f"it took {told['extra_mib']:.0f} MiB")
    found.expect(told["digest"] == told["again"], "the order differs when the file is read again")
    found.expect(told["resumed"], "the second half of an epoch, begun by itself, differs")
    return found


def large_file(share: float) -> Found:
    """L2: a file of 100,000 rows."""
    return _data(max(1_000, round(100_000 * share)))


def huge_file(share: float) -> Found:
    """L3: a file of a million rows and one GiB."""
    return _data(max(10_000, round(1_000_000 * share)))


def faulty_rewards(share: float) -> Found:
    """L4: rewards in workers, some of which raise, hang, give NaN or die."""
    from benchmarks.rewards import measure_workers

    before = held()
    told = measure_workers(max(100, round(10_000 * share)), workers=2, timeout=1.0)
    found = Found({f"planned {name}": count for name, count in sorted(told["planned"].items())})
    found.numbers["right scores"] = told["right_scores"]
    found.expect(told["exact"], f"planned {told['planned']}, counted {told['counted']}")
    flat(found, before)
    return found


def code_verdicts(share: float) -> Found:
    """L5: verdicts on programs, every fifth of them hostile."""
    from benchmarks.code_execution import measure

    told = measure(max(100, round(2_000 * share)), workers=2, timeout=5.0, bubblewrap="never")
    names = ("false_pass", "false_fail", "failed")
    numbers = told["programs"] | {name.replace("_", " "): told[name] for name in names}
    found = Found(numbers | {f"{name} left": count for name, count in told["left"].items()})
    found.expect(not told["false_pass"], "a hostile program earned something")
    found.expect(not told["false_fail"], "a right program earned nothing")
    found.expect(not any(told["left"].values()), f"left: {told['left']}")
    # A machine that is too busy to run a program gives no verdict on it, which is not a wrong one.
    few = sum(told["programs"].values()) / 100
    found.expect(told["failed"] <= few, f"{told['failed']} programs got no verdict")
    return found


def killed_runs(share: float) -> Found:
    """L6: runs killed at every named place, at random moments and in a row."""
    from benchmarks import kills

    with scratch() as folder:
        page = Path(folder) / "kills.md"
        short = ["--short"] if share < 1 else []
        code = kills.main([*short, "--out", str(page)])
        rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][2:]
    equal = sum(row.endswith("| equal |") for row in rows)
    count = sum(int(row.split("|")[3]) for row in rows)
    found = Found({"runs": len(rows), "kills": count, "ended as the whole one": equal})
    found.expect(code == 0 and equal == len(rows) > 0, "a run did not end as the whole one")
    return found


def commits(share: float) -> Found:
    """L7: commits of a small model, of which three are kept."""
    import torch

    from instructrec.crash_points import listening
    from instructrec.rl.checkpoint import Snapshot, checkpoint_path, read_checkpoint
    from instructrec.rl.checkpoint import write_checkpoint as write
    from instructrec.rl.checkpoint_keeping import list_checkpoints, prune_checkpoints

    count, most, unreadable = max(20, round(500 * share)), 0, []
    with scratch() as folder:
        place = Path(folder)

        def look(name: str) -> None:
            nonlocal most
            sizes = (p.stat().st_size for p in place.rglob("*") if p.is_file())
            most = max(most, sum(sizes))

        before = held()
        for update in range(1, count + 1):
            weights = {name: torch.full((64, 1024), float(update)) for name in ("a", "b")}
            path = checkpoint_path(place, update)
            with listening(look):
                write(path, Snapshot({f"policy.{k}": w for k, w in weights.items()}, {"n": update}))
                prune_checkpoints(place, keep=3)
            read = read_checkpoint(path)
            if read.state != {"n": update} or not torch.equal(
                read.tensors["policy.a"], weights["a"]
            ):
                unreadable.append(update)
        size = sum(p.stat().st_size for p in path.iterdir())
        kept = [p.name for p in list_checkpoints(place)]
        others = len(list(place.iterdir())) - len(kept)
        found = Found({"commits": count, "kept": len(kept), "left over": others})
        found.numbers["most on the disk, in checkpoints"] = round(most / size, 2)
        found.expect(not unreadable, f"these do not read back: {unreadable[:5]}")
        found.expect(most <= 4 * size * 1.01, f"{most / size:.1f} checkpoints lay on the disk")
        found.expect(len(kept) == 3 and not others, f"{kept} and {others} other things are left")
        flat(found, before)
    return found


def long_texts(share: float) -> Found:
    """L9: a response of 50 MB, one of 100,000 words, and a report on 10,000 samples."""
    from instructrec.experiments.jsonl import JsonlWriter, read_rows
    from instructrec.experiments.page import long
    from instructrec.rewards import make_rewards

    found = Found()
    huge = "<b>&" * round(12_500_000 * share)
    words = " ".join(str(i % 997) for i in range(round(100_000 * share)))
    found.numbers |= {"characters": len(huge), "words": words.count(" ") + 1}
    for name, text, answer, right in (
        ("exact_match", huge, huge, 1.0),
        ("exact_match", huge, "no", 0.0),
        ("bleu", words, words, 1.0),  # its n-grams of 50 MB would take minutes and gigabytes
    ):
        batch = make_rewards(name).score(["p"], [text], {"reference": [answer]})
        found.expect(abs(batch.total[0] - right) < 1e-6, f"{name}: {batch.total[0]}, not {right}")
    cell = long(huge)
    found.numbers["cell of a page in KiB"] = round(len(cell) / 1024, 1)
    found.expect(len(cell) < 128 * 1024 and "<b>" not in cell, "a page holds the text whole")
    with scratch() as folder:
        rows = Path(folder) / "rows.jsonl"
        with JsonlWriter(rows) as writer:
            writer.write({"response": huge})
        found.expect(read_rows(rows) == [{"response": huge}], "the record of it differs")
        size, shown = _report(Path(folder) / "run", max(100, round(10_000 * share)))
    found.numbers |= {"samples": shown, "report in MiB": round(size / MIB, 2)}
    found.expect(size < 20 * MIB, f"the report has {size / MIB:.0f} MiB")
    return found


def _report(run: Path, samples: int) -> tuple[int, int]:
    """Reports on an evaluation of long responses; returns the page's bytes and the samples."""
    from instructrec.experiments.report import report
    from instructrec.experiments.runfolder import RunFolder, RunInfo

    info = RunInfo(
        job_type="eval",
        algorithm="scripted",
        variant="long",
        seed=0,
        base_model="tiny",
        task="letters",
        parent=None,
    )
    folder = RunFolder.create(run, info, {"name": "long"})
    text = "a long answer with <b>markup</b> & more. " * 250
    file = run / "eval" / "letters-test-greedy-0.jsonl"
    file.parent.mkdir()
    with file.open("w", encoding="utf-8") as out:
        for i in range(samples):
            row = {
                **{"id": f"q{i}", "sample": 0, "prompt": f"question {i}", "response": text},
                **{"reference": "no", "parts": {"match": 0.0}, "total": 0.0},
                **{"status": {"match": "scored"}, "stop_reason": "eos", "response_len": 3},
            }
            out.write(json.dumps(row) + "\n")
    header = {
        **{"task": "letters", "split": "test", "fingerprint": "f", "reward": {"match": 1.0}},
        **{"weights": {"match": 1.0}, "episodes": {"env": "instruction"}, "samples": 1},
        **{"sampling": {"temperature": 0.0}, "rows": samples},
    }
    file.with_suffix(".json").write_text(json.dumps(header))
    folder.finish("finished", {"eval_file": str(file.relative_to(run))})
    report(str(run), say=lambda line: None)
    return (run / "report" / "report.html").stat().st_size, samples

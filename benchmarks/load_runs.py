"""Load checks of whole runs: a thousand updates, and hours of trouble made short.

The long run is a training of the tiny model by the real command line. Its reward asks a server, in
worker processes, and fails now and then in a way that goes by what it is asked about; so a run that
nobody disturbs is the same each time. Then the same run is disturbed: killed, its server and its
tracker ended, its disk full. It has to end as the other one did, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.kill_run import COMMON, RUNS, Ended, Runner, committed, faults, outcome
from benchmarks.load_checks import Found, held, rss_mib, scratch

WARM_UP = 0.1
"""Share of a long run before its memory is looked at."""
SERVER = """import http.server, json, socketserver, sys


class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps([len(set(text)) / 9 for text in texts]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *unused):
        pass


socketserver.TCPServer.allow_reuse_address = True
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
REWARD = """import hashlib
import json
import os
import time
import urllib.request

FAULTS = {0: "raise", 1: "raise", 2: "nan", 3: "die", 4: "hang"}


def asked(completions, prompts, **columns):
    for prompt, text in zip(prompts, completions):
        digest = hashlib.sha256(f"{prompt}|{text}".encode()).digest()
        fault = FAULTS.get(int.from_bytes(digest[:4], "big") % 600)
        if fault == "raise":
            raise ValueError("planned")
        if fault == "die":
            os._exit(0)
        if fault == "hang":
            time.sleep(3600)
        if fault == "nan" and len(completions) == 1:
            return [float("nan")]
        if fault == "nan":
            raise ValueError("planned, for a batch")
    body = json.dumps(list(completions)).encode()
    with urllib.request.urlopen("http://127.0.0.1:PORT/", body, timeout=10) as answer:
        return json.load(answer)
"""
"""Fails on one text of 120, by the text: once killed or not, a run meets the same failures."""
PLAN = (
    *("kill", "kill", "server", "kill", "disk", "kill", "tracker", "kill"),
    *("kill", "server", "kill", "disk", "kill", "tracker", "kill"),
)
"""What is done to a disturbed run, one after the other; then it is left alone."""
ROOM = 600_000
"""Bytes that a file may have while the disk is full; the optimizer's has more."""


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


class LongRunner(Runner):
    """Starts the long run, and disturbs it.

    Args:
        folder: Where it lies.
        updates: How many it does.
        port: Of the server that its reward asks.
    """

    def __init__(self, folder: Path, updates: int, port: int) -> None:
        self.updates, self.port = updates, port
        super().__init__(folder, "full")
        self.timeout_s = 7_200.0

    def _write(self, folder: Path, kind: str) -> None:
        super()._write(folder, kind)
        (folder / "mine.py").write_text(REWARD.replace("PORT", str(self.port)))
        reward = {"use": "mine.py:asked", "isolation": "worker", "timeout": 2.0}
        ppo = {
            **{"num_updates": self.updates, "save_every": 10, "eval_every": 0},
            **{"max_error_frac": 0.6, "max_bad_steps": 10},
        }
        config = {**COMMON, **RUNS[kind], "rewards": {"asked": {**reward, "normalise": "running"}}}
        config["ppo"] = {**COMMON["ppo"], **RUNS[kind]["ppo"], **ppo}
        (folder / "run.yaml").write_text(json.dumps(config))

    def disturbed(self, how: str, after_s: float, server: Server) -> Ended:
        """Goes on with the run and disturbs it.

        Args:
            how: One of ``PLAN``.
            after_s: Seconds until then.
            server: What the reward asks.
        """
        resume = ["--resume"] if self.run.exists() else []
        if how == "disk":
            return self._wait(self._fork(resume, "", small_files), None)
        if how == "tracker":
            return self._without_tracker([*resume, "--tracking.mode", "offline"], after_s)
        if how == "kill":
            return self.start_and_kill(after_s, *resume)
        pid = self._fork(resume, "")
        deadline = time.monotonic() + after_s
        while time.monotonic() < deadline and os.waitid(os.P_PID, pid, _LOOK) is None:
            time.sleep(0.05)
        server.stop()
        ended = self._wait(pid, None)
        server.start()
        return ended

    def _without_tracker(self, arguments: list[str], after_s: float) -> Ended:
        """Kills what tracks the run as soon as it is there, and later the run."""
        import psutil

        pid = self._fork(arguments, "")
        begin = time.monotonic()
        killed = False
        while not killed and time.monotonic() < begin + 60 and not os.waitid(os.P_PID, pid, _LOOK):
            with suppress(psutil.Error):
                for child in psutil.Process(pid).children(recursive=True):
                    if child.name().startswith("wandb") and committed(self.run):
                        child.kill()
                        killed = True
            time.sleep(0.1)
        ended = self._wait(pid, max(after_s - (time.monotonic() - begin), 1.0))
        if not killed:
            raise AssertionError(f"no tracker was found: {ended.output[-500:]}")
        return ended


_LOOK = os.WEXITED | os.WNOWAIT | os.WNOHANG


def small_files() -> None:
    """Lets no file of this process grow beyond ``ROOM``, as a full disk would not."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))


class Server:
    """The server that the reward asks: a process, which can be ended and started again."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts it; returns when it answers."""
        self._process = subprocess.Popen([sys.executable, "-I", "-c", SERVER, str(self.port)])
        for _ in range(200):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            time.sleep(0.05)
        raise AssertionError("the server of the reward does not start")

    def stop(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def soak(share: float) -> Found:
    """L10: a long run that is disturbed again and again, beside one that is not."""
    from benchmarks.kills import _import_everything

    _import_everything()
    updates, server = max(60, round(2_000 * share)), Server()
    try:
        with scratch() as folder:
            whole = LongRunner(Path(folder) / "whole", updates, server.port)
            ended = whole.start()
            if ended.code:
                return Found({"updates": updates}, [f"the whole run: {ended.output[-800:]}"])
            return _disturb(Path(folder), whole, ended, server)
    finally:
        server.stop()


def _disturb(folder: Path, whole: LongRunner, ended: Ended, server: Server) -> Found:
    updates, expected = whole.updates, outcome(whole.run, whole.updates)
    one = _size(whole.run / "checkpoints" / f"update-{updates:06d}")
    runner, draws = LongRunner(folder / "disturbed", updates, server.port), random.Random(0)
    found, done, most, peak = Found({"updates": updates}), Counter[str](), 0, ended.peak_mib
    step = ended.seconds / (len(PLAN) + 1)
    for how in PLAN:
        before = committed(runner.run)
        last = runner.disturbed(how, step * draws.uniform(0.7, 1.3), server)
        harmed = last.code not in (0, -1) if how in ("disk", "server") else bool(last.signal)
        done[how] += harmed
        peak, most = max(peak, last.peak_mib), max(most, _size(runner.run / "checkpoints"))
        found.expect(committed(runner.run) >= before, f"a checkpoint was lost by: {how}")
        found.expect("Traceback" not in last.output, f"{how}: {last.output[-500:]}")
        if harmed and how in ("disk", "server"):
            code = {"disk": (1, 8), "server": (5,)}[how]
            found.expect(last.code in code, f"{how}: code {last.code}, {last.output[-300:]}")
    final = runner.start("--resume")
    found.expect(final.code == 0, f"it ended with code {final.code}: {final.output[-500:]}")
    for how in dict.fromkeys(PLAN):
        planned = PLAN.count(how)
        found.numbers[f"disturbed by {how}"] = done[how]
        found.expect(done[how] == planned, f"{how}: {done[how]} of {planned} times")
    failed = _failures(whole)
    found.numbers |= {f"planned failures: {name}": count for name, count in failed.items()}
    found.expect(len(failed) == 4, f"not every planned failure was met: {failed}")
    found.numbers["most memory of a process in MiB"] = round(peak, 1)
    found.numbers["most on the disk, in checkpoints"] = round(most / one, 2)
    found.expect(most <= 4 * one, f"{most / one:.1f} checkpoints lay on the disk")
    if final.code == 0:
        found.faults += faults(runner.run, expected, updates)
        found.numbers["hash left alone"] = digest(expected)
        found.numbers["hash disturbed"] = digest(outcome(runner.run, updates))
    return found


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


Check = Callable[[float], Found]
"""A load check: gets the share of its full size."""

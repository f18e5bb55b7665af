"""A long run of the tiny model, and ways to disturb it.

Its reward asks a server, in worker processes, and fails now and then in a way that goes by what it
is asked about; so a run that nobody disturbs is the same each time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.kill_run import COMMON, RUNS, Ended, Runner, committed

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
ROOM = 600_000
"""Bytes that a file may have while the disk is full; the optimizer's has more."""


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
        # Long enough for a busy machine: an answer that is late would make another run of it.
        reward = {"use": "mine.py:asked", "isolation": "worker", "timeout": 5.0}
        ppo = {
            **{"num_updates": self.updates, "save_every": max(1, self.updates // 200)},
            **{"eval_every": 0, "max_error_frac": 0.6, "max_bad_steps": 10},
        }
        config = {**COMMON, **RUNS[kind], "rewards": {"asked": {**reward, "normalise": "running"}}}
        config["ppo"] = {**RUNS[kind]["ppo"], **ppo}
        (folder / "run.yaml").write_text(json.dumps(config))

    def disturbed(self, how: str, at: int, after_s: float, server: Server) -> Ended:
        """Goes on with the run and disturbs it.

        Args:
            how: One of ``PLAN``.
            at: The update whose checkpoint is waited for. By the clock, a disturbance would come
                too late wherever the machine becomes faster meanwhile.
            after_s: Seconds from then on.
            server: What the reward asks.
        """
        resume = ["--resume"] if self.run.exists() else []
        if how == "disk":
            return self._wait(self._fork(resume, "", small_files), None)
        if how == "tracker":
            return self._without_tracker([*resume, "--tracking.mode", "offline"], at, after_s)
        pid = self._fork(resume, "")
        if how == "kill":
            return self._wait(pid, after_s, lambda: committed(self.run) >= at)
        while committed(self.run) < at and os.waitid(os.P_PID, pid, _LOOK) is None:
            time.sleep(0.005)
        time.sleep(after_s)
        server.stop()
        ended = self._wait(pid, None)
        server.start()
        return ended

    def _without_tracker(self, arguments: list[str], at: int, after_s: float) -> Ended:
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
            time.sleep(0.02)
        ended = self._wait(pid, after_s, lambda: committed(self.run) >= at)
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

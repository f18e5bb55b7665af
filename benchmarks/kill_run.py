"""Short training runs that can be killed, and what has to be equal however often they were.

The libraries are imported once, and every run is a copy of this process with a session of its own
that calls the command line: what takes long is the import.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instructrec.crash_points import VARIABLE

UPDATES = 5
"""Updates (supervised: steps) of a whole run."""
TIMEOUT_S = 300.0
"""Seconds after which a run that should have ended counts as hung."""
REWARD = """import random

import numpy
import torch


def letters(completions, **columns):
    noise = random.gauss(0, 1) + numpy.random.normal() + float(torch.randn(()))
    return [len(set(text)) / 9 + noise / 100 for text in completions]
"""
"""A reward that draws from every generator that libraries share."""
COMMON: dict[str, Any] = {
    "name": "run",
    "policy": {"model": "tiny", "device": "cpu", "dtype": "float32"},
    "eval": {"limit": 6, "validation_limit": 6, "temperature": 1.0},
    "tracking": {"mode": "disabled"},
}
PPO: dict[str, Any] = {
    "algorithm": "ppo",
    "rewards": {"letters": {"use": "mine.py:letters", "normalise": "running"}},
    "ppo": {
        **{"num_updates": UPDATES, "episodes_per_update": 8, "num_mini_batches": 2},
        **{"num_ppo_epochs": 1, "learning_rate": 1e-3, "response_length": 4, "warmup_steps": 2},
        **{"kl_coef": 0.05, "kl_target": 0.01, "kl_horizon": 100, "save_every": 1},
        **{"keep_checkpoints": 2, "eval_every": 2},
    },
}
RUNS: dict[str, dict[str, Any]] = {
    "full": {
        **PPO,
        "task": {"name": "levels.jsonl"},
        "ppo": {
            **PPO["ppo"],
            **{"curriculum": "level", "curriculum_pass": 0.3, "curriculum_window": 4},
            **{"curriculum_raise": 0.5, "kl_penalty": "reward"},
        },
    },
    "lora": {
        **PPO,
        "task": {"name": "levels.jsonl", "env": "refine", "max_turns": 2},
        "policy": {**COMMON["policy"], "train": "lora", "lora": {"r": 4, "dropout": 0.1}},
        "rewards": {"letters": {"use": "mine.py:letters", "normalise": "none"}},
    },
    "sft": {
        "algorithm": "sft",
        "task": {"name": "levels.jsonl"},
        "rewards": {"letters": {"use": "mine.py:letters", "weight": -1.0}},
        "sft": {
            **{"max_steps": UPDATES, "batch_size": 8, "micro_batch_size": 4, "dropout": 0.1},
            **{"learning_rate": 1e-2, "lr_schedule": "linear", "warmup_steps": 2},
            **{"eval_every": 2, "best_by": "reward", "save_every": 1, "keep_checkpoints": 2},
        },
    },
    "dpo": {
        "algorithm": "dpo",
        "task": {"name": "pairs.jsonl"},
        "rewards": {"letters": {"use": "mine.py:letters"}},
        "dpo": {
            **{"max_steps": UPDATES, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2},
            **{"eval_every": 2, "best_by": "reward", "save_every": 1, "keep_checkpoints": 2},
        },
    },
    "reward_model": {
        "algorithm": "reward_model",
        "task": {"name": "pairs.jsonl", "options": {"validation_fraction": 0.25}},
        "fit": {
            **{"max_steps": UPDATES, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-2},
            **{"eval_every": 2, "save_every": 1, "keep_checkpoints": 2},
        },
    },
}
"""PPO with a curriculum and running normalisation, PPO with adapters, dropout and turns, supervised
training with dropout, DPO, and a reward model."""
GIVEN = ("sft", "dpo", "reward_model")
"""Those that learn from given examples."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    signal: int
    """The signal that ended it, 0 for none."""
    code: int
    """Its exit code."""
    output: str
    """What it printed."""
    seconds: float
    """How long it took."""
    peak_mib: float = 0.0
    """Most memory that it had; 0 where nobody looked."""


class Runner:
    """Starts runs in a folder.

    Args:
        folder: Where ``runs/run`` lies, with its reward, data and settings.
        kind: One of ``RUNS``.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.run = folder / "runs" / "run"
        self.timeout_s = TIMEOUT_S
        folder.mkdir(parents=True)
        self._write(folder, kind)

    def _write(self, folder: Path, kind: str) -> None:
        """Writes what the run needs: ``run.yaml`` and the files that it names."""
        (folder / "mine.py").write_text(REWARD)
        for name, more in (
            ("levels.jsonl", lambda i: {"reference": "a", "level": i % 3}),
            ("pairs.jsonl", lambda i: {"chosen": f"ab {i}", "rejected": f"zz {i}"}),
        ):
            rows = [{"prompt": f"write {i}", **more(i)} for i in range(96)]
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {**COMMON, **RUNS[kind]}
        if kind == "reward_model":
            del config["eval"]  # nothing is answered
        (folder / "run.yaml").write_text(json.dumps(config))

    def start(self, *arguments: str, crash_at: str = "") -> Ended:
        """Runs the command until it ends."""
        return self._wait(self._fork(arguments, crash_at), None)

    def start_and_kill(self, after_s: float, *arguments: str) -> Ended:
        """Runs the command and kills it with everything that it started."""
        return self._wait(self._fork(arguments, ""), after_s)

    def start_anew(self, *arguments: str) -> Ended:
        """The same in a process that imports everything itself, with hashes of its own."""
        command = [sys.executable, "-m", "instructrec.experiments.cli", *self._words(arguments)]
        begin = time.monotonic()
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, timeout=TIMEOUT_S
        )
        return Ended(0, done.returncode, done.stdout + done.stderr, time.monotonic() - begin)

    def _words(self, arguments: Sequence[str]) -> list[str]:
        command = "train-reward" if self.kind == "reward_model" else "train"
        return [command, "run.yaml", *arguments]

    def _fork(
        self,
        arguments: Sequence[str],
        crash_at: str,
        prepare: Callable[[], None] = lambda: None,
    ) -> int:
        """Starts the command in a copy of this process; ``prepare`` is called there first."""
        from instructrec.experiments.cli import main

        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            os.setsid()
            os.chdir(self.folder)
            out = os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(out, 1)
            os.dup2(out, 2)
            # Whoever runs us may have put something else in their place, as pytest does.
            sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
            if crash_at:
                os.environ[VARIABLE] = crash_at
            prepare()
            code = main(self._words(arguments))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def _wait(
        self,
        pid: int,
        kill_after_s: float | None,
        since: Callable[[], bool] = lambda: True,
    ) -> Ended:
        """Waits for the end; kills the session where it was asked to, or where it has hung.

        Args:
            pid: Of the process, which leads the session.
            kill_after_s: Seconds after which it is killed; None: it is left alone.
            since: From when on they count: the first time that this is true.
        """
        begin, planned = time.monotonic(), float("inf")
        while True:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                break
            now = time.monotonic()
            if kill_after_s is not None and planned == float("inf") and since():
                planned = now + kill_after_s
            if now > min(planned, begin + self.timeout_s):
                with suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                _, status, usage = os.wait4(pid, 0)
                break
            time.sleep(0.005)
        seconds = time.monotonic() - begin
        if seconds > self.timeout_s:
            raise AssertionError(f"a run in {self.folder} has not ended in {self.timeout_s:.0f} s")
        orphans = _alive(pid)
        if orphans:
            raise AssertionError(f"processes outlived the run that started them: {orphans}")
        by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        output = (self.folder / "out.txt").read_text(errors="replace")
        return Ended(by, code, output, seconds, usage.ru_maxrss / 1024)


def _alive(session: int) -> list[int]:
    """Processes of a session, a moment after its leader has ended."""
    for _ in range(40):
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state != "Z":
                    found.append(int(stat.parent.name))
        if not found:
            return []
        time.sleep(0.05)
    return found


def committed(run: Path) -> int:
    """The newest update that has a checkpoint by its name; 0 for none."""
    names = [path.name for path in (run / "checkpoints").glob("update-*")]
    return max((int(name.partition("-")[2]) for name in names), default=0)


def outcome(run: Path, updates: int = UPDATES) -> dict[str, Any]:
    """Everything of a finished run that has to be the same however often it was killed.

    Args:
        run: The run folder.
        updates: Updates that it has done.
    """
    from instructrec.experiments.jsonl import read_rows
    from instructrec.metrics import is_wall_clock
    from instructrec.rl.monitor_config import OF_THE_CLOCK

    last = run / "checkpoints" / f"update-{updates:06d}" / "MANIFEST.json"
    found: dict[str, Any] = {}
    if last.exists():  # supervised training leaves none; the summary has the hash of its weights
        files = json.loads(last.read_text())["files"]
        found = {name: file["sha256"] for name, file in files.items()}
    scorer = run / "reward_model" / "model.safetensors"
    if scorer.exists():
        found["reward model"] = hashlib.sha256(scorer.read_bytes()).hexdigest()
    rows = read_rows(run / "metrics.jsonl")
    for number, row in enumerate(rows, start=1):
        found[f"metrics {number}"] = {k: v for k, v in row.items() if not is_wall_clock(k)}
    found["samples.jsonl"] = read_rows(run / "samples.jsonl")
    warned = read_rows(run / "warnings.jsonl")
    found["warnings.jsonl"] = [row for row in warned if row.get("monitor") not in OF_THE_CLOCK]
    for path in sorted((run / "eval").glob("*.jsonl")):
        found[path.name] = read_rows(path)
    summary = json.loads((run / "summary.json").read_text())
    timed = ("train_s", "eval_s")
    found["summary"] = {k: v for k, v in summary.items() if k not in timed and not is_wall_clock(k)}
    found["status"] = json.loads((run / "run.json").read_text())["status"]
    return found


def faults(run: Path, expected: dict[str, Any], updates: int = UPDATES) -> list[str]:
    """What of a finished run is not as it has to be, one line each.

    Args:
        run: The run folder.
        expected: What `outcome` gave of a run that was left alone.
        updates: Updates that it has done.
    """
    from instructrec.experiments.runfolder import read_metrics
    from instructrec.metrics import axis_value

    found = outcome(run, updates)
    names = sorted(expected.keys() | found.keys())
    wrong = [f"{name} differs" for name in names if expected.get(name) != found.get(name)]
    told = [axis_value(row) for row in read_metrics(run)]
    first = 1 if "train/update" in read_metrics(run)[0] else 0  # that of validating the start
    if told != list(range(first, updates + 1)):
        wrong.append(f"updates in metrics.jsonl: {told}")
    wrong += [
        f"left over: {path.relative_to(run.parent)}"
        for path in run.parent.rglob(".*")
        if not path.name.startswith(".corrupt-")
    ]
    return wrong

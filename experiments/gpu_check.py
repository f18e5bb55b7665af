"""Does it work on this GPU, and how fast? ``make gpu-check`` answers within some ten minutes.

Three parts: the tests that need a GPU, 20 PPO updates of the embedded model behind a short SFT, and
the speed of decoding and of an update. All of it ends up in one JSON file, so that whoever has a
GPU once can send what it said.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instructrec.errors import ConfigError
from instructrec.experiments import machine, telling
from instructrec.experiments.config import EvalConfig, OutputConfig
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.quickstart_config import QuickstartConfig
from instructrec.experiments.runfolder import read_metrics
from instructrec.experiments.tracking import TrackingConfig
from instructrec.experiments.train import run_training

_TESTS_S = 240
_ALL_S = 600
_BATCHES = (64, 256, 1024)
"""Responses decoded together."""
_NEW_TOKENS = 64
_KEPT = (
    *("reward/total/mean", "ppo/approx_kl", "ppo/entropy", "ppo/drift_mean"),
    *("rollout/tokens_per_s", "time/rollout_s", "time/advantage_s", "time/update_s"),
    *("time/total_s", "speed/update_limit_frac", "speed/limit_frac"),
)


class TimeIsUpError(BaseException):
    """The check has taken as long as it may; no Exception, which libraries catch and reword."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeIsUpError where the block takes longer; for the main thread, on POSIX."""

    def stop(*_: Any) -> None:
        raise TimeIsUpError("the time of the whole check is over")

    if seconds <= 0:
        stop()
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, should it be caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_tests(device: str) -> dict[str, Any]:
    """Runs the tests that need a GPU; returns pytest's last line, as an error where some failed."""
    if device == "cpu":
        return {"skipped": "these tests need a GPU"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TESTS_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"the tests did not finish within {_TESTS_S} s"}
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode:
        return {"error": lines[-1], "output": done.stdout[-4000:]}
    return {"passed": lines[-1]}


def learn(config: QuickstartConfig, updates: int, say: telling.Say) -> dict[str, Any]:
    """Short SFT and PPO with the quickstart's settings: what the updates looked like."""
    with tempfile.TemporaryDirectory() as folder:
        model = config.policy.model
        for name in ("sft", "ppo"):
            stage = config.stage(name, folder, model)
            ppo = dataclasses.replace(stage.ppo, num_updates=updates)
            outcome = run_training(
                dataclasses.replace(
                    stage,
                    ppo=ppo if name == "ppo" else stage.ppo,
                    eval=EvalConfig(limit=config.eval.limit),
                    output=OutputConfig(dir=folder, export_policy=name == "sft"),
                    tracking=TrackingConfig(mode="disabled"),
                ),
                command=["gpu-check"],
                say=lambda text: None,
            )
            model = str(outcome.folder.path)
            score = outcome.summary["eval/exact_match/mean"]
            say(f"{name}: held-out exact match {score:.3f}")
        rows = read_metrics(outcome.folder.path)
        return {
            "exact_match": score,
            "train_s": outcome.summary["train_s"],
            "first": {key: rows[0].get(key) for key in _KEPT},
            "last": {key: rows[-1].get(key) for key in _KEPT},
        }


def measure_decoding(config: QuickstartConfig, batches: Sequence[int]) -> list[dict[str, Any]]:
    """Tokens per second of sampling, best of three, for growing batches."""
    from instructrec.envs.tasks.base import make_task
    from instructrec.policies.causal_lm import load_policy
    from instructrec.policies.config import Sampling

    policy = load_policy(config.policy)
    task = make_task(config.task.name)
    sampling = Sampling(max_new_tokens=_NEW_TOKENS, temperature=1.0)
    found = []
    for size in batches:
        prompts = [task[i % len(task)].prompt for i in range(size)]
        rates = []
        _forget_peak()
        for _ in range(3):
            start = time.perf_counter()
            responses = policy.respond(prompts, sampling=sampling)
            tokens = sum(map(len, responses.response_ids))
            rates.append(tokens / (time.perf_counter() - start))
        found.append({"batch": size, "tokens_per_s": max(rates), "peak_bytes": _peak_bytes()})
    return found


def _forget_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def check(
    config: QuickstartConfig,
    *,
    updates: int = 20,
    batches: Sequence[int] = _BATCHES,
    limit_s: float = _ALL_S,
    save: Callable[[dict[str, Any]], None] = lambda found: None,
    say: telling.Say = telling.say,
) -> dict[str, Any]:
    """Runs the parts one after the other; a part that fails is recorded and the next one runs.

    Args:
        config: Quickstart settings with the device to check.
        updates: PPO updates.
        batches: Batches that decoding is measured with.
        limit_s: Seconds for all parts together; what is not done by then is recorded as an error.
        save: Called with what is known after each part.
        say: Receives lines for people.

    Returns:
        What is written: machine, versions, and one entry for each part.
    """
    parts: dict[str, Callable[[], Any]] = {
        "tests": lambda: run_tests(config.policy.device),
        "learning": lambda: learn(config, updates, say),
        "decoding": lambda: measure_decoding(config, batches),
    }
    result: dict[str, Any] = {"machine": machine.machine_info(), "versions": machine.versions()}
    end = time.perf_counter() + limit_s
    for name, part in parts.items():
        start = time.perf_counter()
        try:
            with time_limit(end - start):
                result[name] = part()
        except (Exception, TimeIsUpError) as error:  # whatever it is, it is what was to be found
            result[name] = {"error": f"{type(error).__name__}: {error}"}
        save(result)
        say(f"{name} ({time.perf_counter() - start:.0f} s): {result[name]}")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cuda", help="the device to check")
    parser.add_argument("--updates", type=int, default=20, help="PPO updates")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="file to write")
    given = parser.parse_args(arguments)
    config = QuickstartConfig()
    config = dataclasses.replace(
        config, policy=dataclasses.replace(config.policy, device=given.device)
    )
    try:
        from instructrec.devices import pick_device

        pick_device(given.device)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    result = check(config, updates=given.updates, save=lambda found: write_json(given.out, found))
    failed = [name for name, part in result.items() if isinstance(part, dict) and "error" in part]
    print(f"written: {given.out}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

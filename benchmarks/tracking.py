"""What tracking costs a run: ``python -m benchmarks.tracking``.

The same PPO run, once tracked by W&B (offline) and once not, several times in turns. Two answers:

* The CPU time of everything that tracking does (handing over, its thread, W&B's own process) as a
  share of the wall time of the updates. That is what an update would lose if no core were idle.
* The ratio of the wall times, which holds whatever else tracking may disturb, and the noise of the
  machine with it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

_PROCESS, _THREAD = 2, 6
"""CPUCLOCK_SCHED of Linux, and the same with CPUCLOCK_PERTHREAD."""
LIMIT = 0.02
"""Share of an update's time that tracking may cost."""


@dataclass
class Watch:
    """What the updates of one run took; the first one warms up and does not count."""

    steps_s: list[float] = field(default_factory=list)
    """Wall time of each update, its report included."""
    handed_s: list[float] = field(default_factory=list)
    """Wall time of each report, the run folder's included."""
    tracking_cpu_s: float = 0.0
    """CPU time of tracking's thread and processes over these updates."""

    def around(self, train: Callable[..., Any]) -> Callable[..., Any]:
        """The learner, watched."""

        def watched(*arguments: Any, on_update: Callable[..., None], **options: Any) -> Any:
            last, cpu_s = 0.0, 0.0

            def told(metrics: Any, rows: Any) -> None:
                nonlocal last, cpu_s
                start = time.perf_counter()
                on_update(metrics, rows)
                now = time.perf_counter()
                if last:
                    self.steps_s.append(now - last)
                    self.handed_s.append(now - start)
                    self.tracking_cpu_s = tracking_cpu_s() - cpu_s
                else:
                    cpu_s = tracking_cpu_s()
                last = now

            return train(*arguments, on_update=told, **options)

        return watched


def tracking_cpu_s() -> float:
    """CPU seconds so far of all Python threads but the main one, and of W&B's processes (Linux)."""
    threads = [
        _seconds(thread.native_id, _THREAD)
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and thread.native_id is not None
    ]
    processes = [
        _seconds(int(stat.parent.name), _PROCESS)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if _is_of_wandb(stat)
    ]
    return sum(threads) + sum(processes)


def _seconds(number: int, kind: int) -> float:
    """What the CPU clock of a thread or process shows; /proc counts in hundredths of a second."""
    try:
        return time.clock_gettime(~number << 3 | kind)  # how Linux numbers such clocks
    except OSError:  # it has ended
        return 0.0


def _is_of_wandb(stat: Path) -> bool:
    """Whether a process is W&B's, and was started by this one."""
    try:
        text = stat.read_text(encoding="utf-8", errors="replace")
    except OSError:  # it has ended
        return False
    name, _, rest = text.partition("(")[2].rpartition(")")
    return "wandb" in name and int(rest.split()[1]) == os.getpid()


def run(model: str, updates: int, episodes: int, tracked: bool, folder: Path) -> Watch:
    """One run on short questions; learning is so slow that all runs do the same work."""
    from instructrec.experiments.config import EvalConfig, OutputConfig, TrainConfig
    from instructrec.experiments.task_config import TaskConfig
    from instructrec.experiments.tracking import TrackingConfig
    from instructrec.experiments.train import run_training
    from instructrec.policies.config import PolicyConfig
    from instructrec.rl.config import PPOConfig
    from instructrec.rl.ppo import train_ppo

    watch = Watch()
    config = TrainConfig(
        name="tracked" if tracked else "untracked",
        task=TaskConfig(name="closed_answers"),
        policy=PolicyConfig(model=model),
        rewards={"exact_match": 1.0, "f1": 0.5, "repetition": 0.1},
        ppo=PPOConfig(
            num_updates=updates + 1,
            episodes_per_update=episodes,
            learning_rate=1e-12,
            response_length=16,
            eval_every=0,
        ),
        eval=EvalConfig(limit=2),
        tracking=TrackingConfig(mode="offline" if tracked else "disabled"),
        output=OutputConfig(dir=str(folder), export_policy=False),
    )
    train = watch.around(train_ppo)
    run_training(config, overwrite=True, train_ppo=train, say=lambda _: None)
    return watch


Run = Callable[[str, int, int, bool, Path], Watch]
"""Makes a run: model, updates, episodes in each, whether it is tracked, folder."""


def measure(rounds: int, once: Callable[[bool], Watch]) -> dict[str, Any]:
    """Runs in turns; the order of the two changes from round to round.

    Args:
        rounds: Pairs of runs.
        once: Makes a run, tracked or not.

    Returns:
        ``cpu_share`` and ``handing_share`` of the tracked updates' time, ``ratio`` of the wall
        times of a tracked and an untracked update (median over the rounds, least and largest),
        and the seconds of an update.
    """
    pairs = []
    for number in range(rounds):
        order = (False, True) if number % 2 == 0 else (True, False)
        pairs.append({tracked: once(tracked) for tracked in order})
    tracked = [pair[True] for pair in pairs]
    wall_s = sum(sum(watch.steps_s) for watch in tracked)
    handed_s = sum(sum(w[True].handed_s) - sum(w[False].handed_s) for w in pairs)
    ratios = [sum(pair[True].steps_s) / sum(pair[False].steps_s) for pair in pairs]
    return {
        "updates": sum(len(watch.steps_s) for watch in tracked),
        "update_s": median(s for watch in tracked for s in watch.steps_s),
        "cpu_share": (sum(w.tracking_cpu_s for w in tracked) + max(handed_s, 0.0)) / wall_s,
        "handing_share": handed_s / wall_s,
        "ratio": median(ratios),
        "ratio_least": min(ratios),
        "ratio_largest": max(ratios),
    }


def report(found: dict[str, Any]) -> str:
    """The result in words."""
    return (
        f"{found['updates']} tracked updates of {found['update_s']:.3f} s (median)\n"
        f"CPU time of tracking     {found['cpu_share']:.3%} of the updates' time\n"
        f"handing over             {found['handing_share']:.3%}\n"
        f"tracked / untracked      {found['ratio']:.3f} "
        f"({found['ratio_least']:.3f} to {found['ratio_largest']:.3f})"
    )


def main(arguments: Sequence[str] | None = None, run: Run = run) -> int:
    """Measures and prints; 1 when tracking costs more than it may.

    Args:
        arguments: The command line without the program; None takes ``sys.argv``.
        run: What makes a run.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="Model of the runs.")
    parser.add_argument("--updates", type=int, default=8, help="Updates of a run that count.")
    parser.add_argument("--episodes", type=int, default=64, help="Episodes in an update.")
    parser.add_argument("--rounds", type=int, default=3, help="Pairs of runs.")
    parser.add_argument("--limit", type=float, default=LIMIT, help="Share that is too much.")
    parser.add_argument("--json", type=Path, help="Where the numbers go.")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            given.rounds,
            lambda tracked: run(given.model, given.updates, given.episodes, tracked, Path(folder)),
        )
    print(report(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(found["cpu_share"] > given.limit)


if __name__ == "__main__":
    sys.exit(main())

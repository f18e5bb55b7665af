"""How fast the vector environment is, and whether its memory grows.

``python -m benchmarks.envs --check`` plays a million episodes of exact match in one process and
returns 1 when the memory grows by a MiB or more over them, or when a second of processor time sees
fewer than 50,000 episodes. Processor time is what the bound is about, because other programs on
the machine count in wall time only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MOST_MIB = 1.0
"""Bound on the growth of the memory, in MiB per million episodes."""
FEWEST_PER_S = 50_000.0
"""Bound on the episodes per second of processor time."""
_LOOKS = 40  # at the memory and the clocks, while the episodes are played


def play(step: Callable[[], Any], num_envs: int, episodes: int) -> dict[str, np.ndarray]:
    """Plays episodes and looks at memory and clocks now and then.

    Args:
        step: Plays ``num_envs`` episodes.
        num_envs: See there.
        episodes: How many to play, at least.

    Returns:
        Arrays with an entry for the beginning and one for each look: ``episodes``, ``wall_s``,
        ``cpu_s`` and ``rss_mib``.
    """
    steps = max(1, -(-episodes // num_envs // _LOOKS))
    seen = [_look(0)]
    for look in range(1, _LOOKS + 1):
        for _ in range(steps):
            step()
        seen.append(_look(look * steps * num_envs))
    names = ("episodes", "wall_s", "cpu_s", "rss_mib")
    return dict(zip(names, np.array(seen, dtype=np.float64).T, strict=True))


def _look(episodes: int) -> tuple[float, float, float, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    rss = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return float(episodes), time.perf_counter(), time.process_time(), rss


def slope(seen: dict[str, np.ndarray]) -> float:
    """Growth of the memory in MiB per million episodes: the line of least squares."""
    return float(np.polyfit(seen["episodes"], seen["rss_mib"], 1)[0] * 1e6)


def rates(seen: dict[str, np.ndarray]) -> dict[str, float]:
    """Episodes per second of wall and processor time, and per wall second of the best stretch."""
    played, wall, cpu = (np.diff(seen[name]) for name in ("episodes", "wall_s", "cpu_s"))
    return {
        "per_s": float(played.sum() / wall.sum()),
        "per_cpu_s": float(played.sum() / cpu.sum()),
        "best_per_s": float((played / wall).max()),
    }


def stepper(name: str, num_envs: int, mode: str) -> Callable[[], Any]:
    """Makes a vector environment and returns what steps all of its copies once.

    Args:
        name: Id of a registered environment of single answers.
        num_envs: Copies.
        mode: A ``vectorization_mode`` of `gymnasium.make_vec`.
    """
    import gymnasium as gym

    import instructrec  # noqa: F401 (registers the ids)

    options: dict[str, Any] = {}
    if mode == "sync":
        options["vector_kwargs"] = {"autoreset_mode": "SameStep"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gym.make_vec(name, num_envs=num_envs, vectorization_mode=mode, **options)
    env.reset(seed=0)
    answers = tuple(("even", "odd")[i % 2] for i in range(num_envs))
    return lambda: env.step(answers)


def measure(name: str, num_envs: int, episodes: int) -> dict[str, Any]:
    """Plays with our vector environment, and a fiftieth as much with Gymnasium's."""
    step = stepper(name, num_envs, "vector_entry_point")
    play(step, num_envs, episodes // 5)  # the task finds its items, the allocator its pools
    seen = play(step, num_envs, episodes)
    theirs = stepper(name, num_envs, "sync")
    play(theirs, num_envs, episodes // 50)
    gymnasiums = rates(play(theirs, num_envs, episodes // 50))
    ours = rates(seen)
    return {
        "environment": name,
        "num_envs": num_envs,
        "episodes": int(seen["episodes"][-1]),
        **ours,
        "sync_per_cpu_s": gymnasiums["per_cpu_s"],
        "ratio": ours["per_cpu_s"] / gymnasiums["per_cpu_s"],
        "rss_mib": float(seen["rss_mib"][-1]),
        "slope_mib": slope(seen),
        "load": os.getloadavg()[0],
        "cores": len(os.sched_getaffinity(0)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, and with --check returns 1 when a bound is passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.envs", description=__doc__)
    parser.add_argument(
        "--env", default="instructrec/ClosedAnswers-v0", help="id of an environment"
    )
    parser.add_argument("--num_envs", type=int, default=256, help="copies in the vector")
    parser.add_argument("--episodes", type=int, default=1_000_000)
    parser.add_argument("--most_mib", type=float, default=MOST_MIB, help="bound of --check")
    parser.add_argument("--fewest_per_s", type=float, default=FEWEST_PER_S, help="another one")
    parser.add_argument("--check", action="store_true", help="return 1 where a bound is passed")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    given = parser.parse_args(arguments)
    found = measure(given.env, given.num_envs, given.episodes)
    print(
        f"{found['episodes']:,} episodes of {found['environment']}, {found['num_envs']} at once\n"
        f"episodes/s                       {found['per_s']:,.0f}"
        f" (best stretch {found['best_per_s']:,.0f})\n"
        f"episodes/s of processor time     {found['per_cpu_s']:,.0f}\n"
        f"beside Gymnasium's SyncVectorEnv {found['ratio']:.2f} times as many\n"
        f"memory                           {found['rss_mib']:,.0f} MiB, growing by "
        f"{found['slope_mib']:.3f} MiB per million episodes\n"
        f"load                             {found['load']:.1f} on {found['cores']} cores"
    )
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    grows = found["slope_mib"] >= given.most_mib
    slow = found["per_cpu_s"] < given.fewest_per_s
    if grows:
        print(f"the memory grows: expected less than {given.most_mib:g} MiB", file=sys.stderr)
    if slow:
        print(f"too slow: expected {given.fewest_per_s:,.0f} episodes/s", file=sys.stderr)
    return int(given.check and (grows or slow))


if __name__ == "__main__":
    sys.exit(main())

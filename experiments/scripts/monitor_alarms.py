"""Would the monitors of a training have rung in runs that went well, and how near were they?

Plays the default rules of ``ppo.monitors`` over ``metrics.jsonl`` of finished runs, whatever rules
these had::

    python experiments/scripts/monitor_alarms.py runs/short-answers-s0 runs/short-answers-s1

For each monitor: the runs that have its number, their updates with trouble, and the worst number
beside the threshold. In runs known to be good, trouble is a false alarm; in one that is known to
be exploited, silence is a miss. Monitors whose number no run has are left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from instructrec.errors import DataError
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.listing import markdown_table
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.rl.config import PPOConfig
from instructrec.rl.monitor_memory import Memory
from instructrec.rl.monitors import Monitors

Row = Mapping[str, float]
LOWER_IS_WORSE = ("entropy_collapse", "length_collapse", "nothing_kept")
"""Monitors whose trouble begins below their threshold."""


def _relative(key: str, first: str) -> Callable[[Row, Memory], float | None]:
    """A number as a multiple of the first update's."""

    def value(row: Row, memory: Memory) -> float | None:
        start = getattr(memory, first)
        return row[key] / start if start else None

    return value


def _of(key: str) -> Callable[[Row, Memory], float | None]:
    return lambda row, memory: row.get(key)


def _kl_per_token(row: Row, memory: Memory) -> float | None:
    kl = row.get("ppo/kl_ref")
    return None if kl is None else abs(kl) / max(row["rollout/response_len"], 1.0)


def _fall_of_gold(row: Row, memory: Memory) -> float | None:
    """Fall of gold while the total rose, in standard deviations of gold's scores."""
    best, now = memory.best, memory.recent()
    if best is None or now is None:
        return None
    spread = max(best[2], now[2])
    return (best[1] - now[1]) / spread if spread and now[0] > best[0] else 0.0


def _unknown_scores(row: Row, memory: Memory) -> float | None:
    """The largest share of scores that a reward model hardly gave on its own data."""
    return max((value for key, value in row.items() if key.endswith("/ood_frac")), default=None)


WATCHED: dict[str, Callable[[Row, Memory], float | None]] = {
    "kl_budget": _of("ppo/kl_ref"),
    "proxy_gold_gap": _fall_of_gold,
    "reward_ood": _unknown_scores,
    "length_growth": _relative("rollout/response_len", "first_length"),
    "length_collapse": _relative("rollout/response_len", "first_length"),
    "repetition": _of("rollout/repetition"),
    "identical_answers": _of("rollout/top_response_frac"),
    "large_step": _of("ppo/approx_kl"),
    "far_from_reference": _kl_per_token,
    "entropy_collapse": _relative("ppo/entropy", "first_entropy"),
    "entropy_explosion": _relative("ppo/entropy", "first_entropy"),
    "cut_responses": _of("rollout/truncated_frac"),
    "left_out": _of("rollout/masked_frac"),
    "drift": _of("ppo/drift_mean"),
    "idle_critic": lambda row, memory: float(memory.updates_without_critic),
    "no_spread": lambda row, memory: float(memory.updates_without_spread),
    "no_variance": _of("rollout/zero_variance_frac"),
    "nothing_kept": _of("raft/kept_frac"),
    "slow_reward": lambda row, memory: memory.scoring_share(),
}
"""What each monitor goes by."""


@dataclass
class Heard:
    """One monitor over all runs."""

    updates: int = 0
    """Updates that have its number."""
    trouble: int = 0
    """Those in which it saw trouble."""
    runs: set[str] = field(default_factory=set)
    """Runs that have its number."""
    ringing: set[str] = field(default_factory=set)
    """Those in which it saw trouble."""
    values: list[float] = field(default_factory=list)
    """Its numbers."""

    def worst(self, name: str) -> float:
        """The number that was nearest to trouble, or furthest in it."""
        return min(self.values) if name in LOWER_IS_WORSE else max(self.values)


def listen(runs: Sequence[Path]) -> dict[str, Heard]:
    """Plays the monitors over runs.

    Args:
        runs: Their folders.

    Raises:
        CheckpointError: One is no run folder.
        DataError: One has no updates.
    """
    heard = {name: Heard() for name in WATCHED}
    for path in runs:
        folder = RunFolder.open(path)
        rows = [row for row in read_metrics(folder.path) if row.get("train/update")]
        if not rows:
            raise DataError(f"{path} has no updates: expected a training by rewards.")
        monitors = Monitors(_settings(folder.config().get("ppo", {})))
        for row in rows:
            known = {key: value for key, value in row.items() if value is not None}
            monitors.check(known)
            for name, value_of in WATCHED.items():
                value = value_of(known, monitors.memory)
                if value is not None:
                    _note(heard[name], str(path), value, name in monitors.ringing)
    return {name: one for name, one in heard.items() if one.updates}


def _note(heard: Heard, run: str, value: float, rings: bool) -> None:
    heard.updates += 1
    heard.values.append(value)
    heard.runs.add(run)
    if rings:
        heard.trouble += 1
        heard.ringing.add(run)


def _settings(section: Mapping[str, Any]) -> PPOConfig:
    """The settings of a run with the default rules."""
    known = {f.name for f in fields(PPOConfig)} - {"monitors"}
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in section.items()
        if key in known
    }
    return PPOConfig(**given)


def rows_of(heard: Mapping[str, Heard]) -> list[tuple[str, ...]]:
    """The table, the head first."""
    limits = PPOConfig().monitors.rules()
    rows: list[tuple[str, ...]] = [("monitor", "default", "worst seen", "updates with trouble")]
    rows[0] += ("runs with trouble",)
    for name, one in heard.items():
        share = f"{one.trouble} of {one.updates}"
        runs = f"{len(one.ringing)} of {len(one.runs)}"
        rows.append((name, f"{limits[name].limit:g}", f"{one.worst(name):.3g}", share, runs))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; writes the numbers where ``--out`` names a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of trainings by rewards")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    given = parser.parse_args(arguments)
    heard = listen(given.runs)
    print(markdown_table(rows_of(heard)))
    if given.out is not None:
        numbers = {
            name: {
                "updates": one.updates,
                "trouble": one.trouble,
                "runs": len(one.runs),
                "ringing": sorted(Path(run).name for run in one.ringing),
                "worst": one.worst(name),
            }
            for name, one in heard.items()
        }
        write_json(given.out, {"runs": [run.name for run in given.runs], "monitors": numbers})
    return 0


if __name__ == "__main__":
    sys.exit(main())

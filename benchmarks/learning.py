r"""Time from one start to a given exact match: our PPO beside TRL 1.12's.

    instructrec sft short_answers_sft --seeds 0 1 2
    python -m benchmarks.learning 'runs/short-answers-sft-s{seed}' --seeds 0 1 2

Both learn the short closed answers from the same policy: 128 episodes an update and four optimizer
steps on them, the last half of the layers, one learning rate. Ours is otherwise as the recipe
``short_answers`` says, TRL as its settings are. Greedy answers to validation instructions are
measured every two updates, off the clock. A side that does not arrive within ``--cap-min`` minutes
has a bound instead of a time. The sides run at the same time with as many threads, one beside the
other, unless ``--in-turn`` is given.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer_env import trl112_python

RECIPE = "short_answers"
SIDES = ("ours", "trl112")


@dataclass(frozen=True)
class Arrival:
    """When a side arrived."""

    seconds: float
    """Training time until then, or the time that it had."""
    reached: bool
    """Whether it arrived at all."""
    best: float
    """Best exact match that was measured."""


def arrival(points: Sequence[dict[str, float]], target: float) -> Arrival:
    """The first point at or above the target, else the last one.

    Args:
        points: Of one side, in order: ``seconds`` of training and ``exact_match`` in [0, 1].
        target: Exact match in [0, 1].

    Raises:
        ValueError: There is no point.
    """
    if not points:
        raise ValueError("nothing was measured: the side ended before its first evaluation.")
    best = max(point["exact_match"] for point in points)
    for point in points:
        if point["exact_match"] >= target:
            return Arrival(point["seconds"], True, best)
    return Arrival(points[-1]["seconds"], False, best)


def ratio(ours: Arrival, peer: Arrival) -> tuple[float, str]:
    """Peer's time over ours, and how to read it: ``""``, ``>=`` or ``<=`` (or ``?`` if neither)."""
    value = peer.seconds / ours.seconds
    signs = {(True, True): "", (True, False): ">=", (False, True): "<=", (False, False): "?"}
    return value, signs[ours.reached, peer.reached]


def our_points(folder: Path) -> list[dict[str, float]]:
    """What a run folder of ours says: seconds of its updates, and the evaluations among them."""
    seconds, points = 0.0, []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        seconds += row.get("time/total_s", 0.0)
        if "eval/exact_match/mean" in row:
            points.append(
                {
                    "update": float(row["train/update"]),
                    "seconds": seconds,
                    "exact_match": row["eval/exact_match/mean"],
                }
            )
    return points


def our_command(given: argparse.Namespace, seed: int, folder: Path) -> list[str]:
    """The training run, as a user would start it."""
    settings = {
        "policy.model": given.start.replace("{seed}", str(seed)),
        "seed": seed,
        "variant": "learning",
        "ppo.episodes_per_update": given.episodes,
        "ppo.eval_every": given.every,
        "ppo.save_every": 0,
        "ppo.save_minutes": 0,
        "eval.validation_limit": given.limit,
        "eval.limit": given.limit,
        "output.dir": folder,
        "output.export_policy": "false",
        "tracking.mode": "disabled",
    }
    words = [f"--{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "instructrec.experiments.cli", "train", RECIPE, *words]


def job(given: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    """What the peer is told: the start as a plain folder, prompts as tokens, and the settings."""
    from benchmarks.prepare import unused_token
    from instructrec.envs.tasks.base import iterate, make_task
    from instructrec.experiments.api import train_config
    from instructrec.experiments.setup_run import model_folder
    from instructrec.policies.chat import ChatEncoder
    from instructrec.policies.loading import load_source

    config = train_config(RECIPE)
    loaded = load_source(model_folder(given.start.replace("{seed}", str(seed))))
    tokenizer = loaded.tokenizer
    encoder = ChatEncoder(
        tokenizer, system_prompt=config.policy.system_prompt or "", max_length=2**31
    )

    def rows(split: str, most: int) -> list[dict[str, Any]]:
        task = make_task(config.task.name, split=split, **config.task.options)
        items = [item for _, item in zip(range(most), iterate(task), strict=False)]
        ids = encoder.encode([item.prompt for item in items])
        found = {tuple(i): x.columns["reference"] for i, x in zip(ids, items, strict=True)}
        return [{"ids": list(key), "reference": value} for key, value in found.items()]

    made = {
        "train": rows("train", given.episodes * given.most_updates),
        "validation": rows("validation", given.limit),
    }
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = unused_token(tokenizer)
    loaded.model.generation_config.pad_token_id = tokenizer.pad_token_id
    loaded.model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return made | {
        "model": str(folder / "model"),
        "seed": seed,
        "episodes": given.episodes,
        "most_updates": given.most_updates,
        "response_length": config.ppo.response_length,
        "learning_rate": config.ppo.learning_rate,
        "warmup_steps": config.ppo.warmup_steps,
        "dtype": given.dtype,
        "threads": given.threads,
        "every": given.every,
        "target": given.target,
        "cap_s": 60.0 * given.cap_min,
    }


def run_seed(given: argparse.Namespace, seed: int) -> dict[str, list[dict[str, float]]]:
    """Both sides from one start; a curve that is there already is not made again."""
    folder = given.out / f"s{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    curves = {side: folder / f"{side}.json" for side in SIDES}
    environment = dict(os.environ, OMP_NUM_THREADS=str(given.threads))
    peer: subprocess.Popen[bytes] | None = None
    if not (folder / "trl112.done").exists() and "trl112" in given.sides:
        (folder / "job.json").write_text(json.dumps(job(given, seed, folder)), encoding="utf-8")
        paths = [str(folder / "job.json"), str(curves["trl112"])]
        command = [str(trl112_python(given.python)), "-m", "benchmarks.learn_trl112", *paths]
        peer = subprocess.Popen(command, env=environment)
    try:
        if peer is not None and given.in_turn:
            _wait(peer)
        if not curves["ours"].exists() and "ours" in given.sides:
            ours = our_command(given, seed, folder)
            _wait(subprocess.Popen([*ours, "--overwrite"], env=environment))
            points = our_points(folder / f"learning-s{seed}")
            curves["ours"].write_text(json.dumps(points, indent=1), encoding="utf-8")
        if peer is not None:
            _wait(peer)
            (folder / "trl112.done").touch()
    finally:
        if peer is not None:
            peer.kill()  # nothing, where it has ended
    there = {side: path for side, path in curves.items() if path.exists()}
    return {side: json.loads(path.read_text(encoding="utf-8")) for side, path in there.items()}


def _wait(process: subprocess.Popen[bytes]) -> None:
    if code := process.wait():
        raise SystemExit(f"{process.args!r} ended with {code}.")


def table(curves: dict[int, dict[str, list[dict[str, float]]]], target: float) -> str:
    """Markdown: a row for each seed, and the median of the ratios."""
    header = ("seed", "ours", "TRL 1.12", "best of TRL 1.12", "TRL 1.12 over ours")
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |"]
    ratios = []
    for seed, sides in curves.items():
        ours, peer = (arrival(sides[side], target) for side in SIDES)
        value, sign = ratio(ours, peer)
        ratios.append(value)
        cells = (str(seed), _shown(ours), _shown(peer), f"{peer.best:.3f}", f"{sign} {value:.2f}")
        lines.append(f"| {' | '.join(cell.strip() for cell in cells)} |")
    middle = statistics.median(ratios)
    lines.append(f"\nMedian ratio (a bound where a side did not arrive): {middle:.2f}")
    return "\n".join(lines) + "\n"


def _shown(found: Arrival) -> str:
    return f"{'' if found.reached else 'not in '}{found.seconds:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is missing and prints the table; returns the exit code."""
    summary = (__doc__ or "").split("\n", maxsplit=1)[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("start", help="run folder or model that both begin with, {seed} in it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--target", type=float, default=0.78, help="exact match to arrive at")
    parser.add_argument("--cap-min", type=float, default=45.0, help="minutes that the peer has")
    parser.add_argument("--every", type=int, default=2, help="updates between evaluations")
    parser.add_argument("--limit", type=int, default=200, help="validation instructions")
    parser.add_argument("--episodes", type=int, default=128, help="episodes of an update")
    parser.add_argument("--most-updates", type=int, default=256, help="updates of the peer")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=1, help="threads of each side")
    parser.add_argument("--in-turn", action="store_true", help="one side after the other")
    parser.add_argument("--python", type=Path, help="interpreter with TRL 1.12")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/learning"))
    given = parser.parse_args(arguments)
    curves = {seed: run_seed(given, seed) for seed in given.seeds}
    if all(len(sides) == len(SIDES) for sides in curves.values()):
        shown = table(curves, given.target)
        (given.out / "learning.md").write_text(shown, encoding="utf-8")
        print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())

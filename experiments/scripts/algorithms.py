"""Compares algorithms at equal rollouts: PPO with three baselines, RAFT, and demonstrations alone.

All start from the same short SFT and are trained on the short closed answers of the recipe of that
name::

    instructrec sft short_answers_sft --seeds 0 1 2
    python experiments/scripts/algorithms.py --seeds 0 1 2

Every arm sees 4096 responses: its own 32 x 128, in the arm ``sft`` as many demonstrations, of
which the best step is kept by validation. Only the baseline differs between ``gae``, ``rloo`` and
``group``; ``raft`` is the recipe ``short_answers_raft``. At the end ``instructrec compare`` says
which policy is better. Seeds that are finished are skipped and others go on, so the same command
continues where it stopped. Settings of ``instructrec train`` may follow and hold for all arms.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from instructrec.experiments.child_runs import Run, run_in_a_process

START = "runs/short-answers-sft-s{seed}"
GROUP = ["--ppo.num_generations", "4"]
ARMS = {
    "gae": ["train", "short_answers"],
    "rloo": ["train", "short_answers", "--ppo.advantage", "rloo", *GROUP],
    "group": ["train", "short_answers", "--ppo.advantage", "group", *GROUP],
    "raft": ["train", "short_answers_raft"],
    "sft": [
        *("sft", "short_answers_sft", "--sft.demonstrations", "4096", "--sft.max_steps", "256"),
        *("--sft.eval_every", "32", "--sft.best_by", "reward", "--eval.validation_limit", "100"),
    ],
}
"""What each arm runs, beside its name, seeds and start."""


def training(arm: str, seeds: Sequence[int], start: str, more: Sequence[str] = ()) -> list[str]:
    """The training of one arm, as arguments of ``instructrec``.

    Args:
        arm: A key of ``ARMS``.
        seeds: Its seeds.
        start: First policy; ``{seed}`` in it is replaced.
        more: Further settings.
    """
    common = ["--variant", f"algorithms-{arm}", "--policy.model", start, "--resume"]
    return [*ARMS[arm], *common, *more, "--seeds", *map(str, seeds)]


def comparison(arms: Sequence[str], seeds: Sequence[int], start: str, folder: Path) -> list[str]:
    """The comparison of all arms and their starts, as arguments of ``instructrec``."""
    runs = {arm: [str(folder / f"algorithms-{arm}-s{seed}") for seed in seeds] for arm in arms}
    runs["start"] = [start.replace("{seed}", str(seed)) for seed in seeds]
    named = [f"{arm}={','.join(paths)}" for arm, paths in runs.items()]
    return ["compare", *named, "--out", str(folder / "compare-algorithms")]


def main(arguments: Sequence[str] | None = None, *, run: Run = run_in_a_process) -> int:
    """Trains what the command line asks for and compares it; returns the first exit code not 0."""
    summary = __doc__.split("\n", maxsplit=1)[0]
    # Without abbreviations: `--seed` is a setting of `instructrec train`.
    parser = argparse.ArgumentParser(description=summary, allow_abbrev=False)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run each")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--start", default=START, help="first policies, with {seed} in it")
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="the run folders")
    given, more = parser.parse_known_args(arguments)
    more += ["--output.dir", str(given.dir)]
    for arm in given.arms:
        if code := run(training(arm, given.seeds, given.start, more)):
            return code
    if len(given.arms) > 1:
        return run(comparison(given.arms, given.seeds, given.start, given.dir))
    return 0


if __name__ == "__main__":
    sys.exit(main())

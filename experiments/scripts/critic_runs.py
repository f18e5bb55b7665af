"""Trains what ``critic_table.py`` compares: PPO with three baselines on two environments, by seed.

Each seed starts from a policy of its own, the short SFT of a quickstart for instance::

    python experiments/scripts/critic_runs.py 'runs/quickstart-s{seed}/sft' --seeds 0 1 2 3 4

The single answers are those of the recipe ``short_answers``, the several tries those of ``refine``.
Every arm plays as many episodes; rloo spends them on groups of answers to one instruction. Settings
of ``instructrec train`` may follow and hold for all runs. A run that has finished is not repeated,
one that was interrupted goes on; so the same command continues where it stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from instructrec.errors import InstructRecError
from instructrec.experiments import telling
from instructrec.experiments.child_runs import Run, is_finished, run_in_a_process

RECIPES = {"instruction": "short_answers", "refine": "refine"}
"""The recipe of each environment."""
GROUP = 4
"""Answers to one instruction that rloo compares."""
ARMS = {"gae": [], "batch_mean": [], "rloo": ["--ppo.num_generations", str(GROUP)]}
"""What a baseline needs beside its name."""


def command(env: str, arm: str, seed: int, start: str, folder: Path) -> list[str]:
    """The training run of one arm and seed, as arguments of ``instructrec``.

    Args:
        env: A key of ``RECIPES``.
        arm: A key of ``ARMS``.
        seed: Seed of the run.
        start: Folder of its first policy; ``{seed}`` in it is replaced.
        folder: Where its run folder goes.
    """
    settings = {
        "--policy.model": start.replace("{seed}", str(seed)),
        "--variant": f"{env}-{arm.replace('_', '-')}",
        "--seed": str(seed),
        "--ppo.advantage": arm,
        "--output.dir": str(folder),
        "--output.export_policy": "false",
    }
    given = [word for pair in settings.items() for word in pair]
    return ["train", RECIPES[env], *given, *ARMS[arm], "--resume"]


def launch(
    start: str,
    seeds: Sequence[int],
    envs: Sequence[str],
    arms: Sequence[str],
    folder: Path,
    more: Sequence[str] = (),
    *,
    run: Run = run_in_a_process,
    say: telling.Say = telling.say,
) -> int:
    """Trains all arms, seed by seed, so that every finished seed can be compared.

    Checkpoints of a finished run are deleted: those of all arms would fill a disk.

    Args:
        start: Folder of the first policies; ``{seed}`` in it is replaced.
        seeds: Seeds.
        envs: Keys of ``RECIPES``.
        arms: Keys of ``ARMS``.
        folder: Where the run folders go.
        more: Further arguments of ``instructrec train``.
        run: Runs a command.
        say: Receives a line for each run.

    Returns:
        Exit code of the first run that failed, which ends it; else 0.
    """
    for seed, env, arm in [(s, e, a) for s in seeds for e in envs for a in arms]:
        path = folder / f"{env}-{arm.replace('_', '-')}-s{seed}"
        if is_finished(path):
            say(f"{path} is there already")
            continue
        say(f"{path} ...")
        if code := run([*command(env, arm, seed, start, folder), *more]):
            return code
        shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return 0


def main(
    arguments: Sequence[str] | None = None,
    *,
    run: Run = run_in_a_process,
    say: telling.Say = telling.say,
) -> int:
    """Trains what the command line asks for; returns the exit code."""
    summary = __doc__.split("\n", maxsplit=1)[0]
    # Without abbreviations: `--seed` is a setting of `instructrec train`.
    parser = argparse.ArgumentParser(description=summary, allow_abbrev=False)
    parser.add_argument("start", help="folder of the first policies, with {seed} in it")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one run of each arm")
    parser.add_argument("--envs", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--dir", type=Path, default=Path("runs/critic"), help="the run folders")
    given, more = parser.parse_known_args(arguments)
    try:
        return launch(
            given.start, given.seeds, given.envs, given.arms, given.dir, more, run=run, say=say
        )
    except InstructRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

"""Adds baselines at PPO's cost to finished quickstarts: SFT as long, RAFT on as many rollouts.

Run it before ``quickstart_seeds.py``, which then shows them beside PPO::

    python experiments/scripts/quickstart_baselines.py runs/quickstart-*

Both get PPO's conditions: ``sft-long`` the same demonstrations and about the time of the short SFT
and PPO together; ``raft`` the same start, number of episodes and learning rate. Their folders lie
beside those of the other stages. A baseline that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from instructrec.errors import InstructRecError
from instructrec.experiments import telling
from instructrec.experiments.child_runs import is_finished
from instructrec.experiments.quickstart_report import BASELINES
from instructrec.experiments.quickstart_stages import Quickstart, open_quickstart, train_stage
from instructrec.experiments.runfolder import RunFolder
from instructrec.rl.config import PPOConfig, SFTConfig, raft_settings

RESPONSES = 4
"""Responses to an instruction of which RAFT imitates the best."""


def add_baseline(run: Quickstart, name: str) -> None:
    """Trains one baseline, unless it has finished before."""
    if is_there(run, name):
        run.say(f"{run.path / name} is there already")
        return
    summaries = {stage: RunFolder.open(run.path / stage).summary() for stage in ("sft", "ppo")}
    section: PPOConfig | SFTConfig
    if name == "raft":
        section, model = raft_settings(run.config.ppo, RESPONSES), str(run.path / "sft")
    else:
        section, model = _long_sft(run.config.sft, summaries), run.config.policy.model
    settings = run.config.stage(name, str(run.path), model, section)
    train_stage(run, name, settings, overwrite=True)  # what is left of one that was interrupted


def is_there(run: Quickstart, name: str) -> bool:
    """Whether a baseline was trained and measured to its end."""
    path = run.path / name
    return is_finished(path) and run.sampled_path(RunFolder.open(path)).exists()


def _long_sft(sft: SFTConfig, summaries: dict[str, dict[str, float]]) -> SFTConfig:
    """About as many steps as fit into the time of the short SFT and PPO.

    The speed is that of the short SFT, its set-up included; the table shows the time it took.
    """
    each = summaries["sft"]["train_s"] / summaries["sft"]["updates"]
    total = summaries["sft"]["train_s"] + summaries["ppo"]["train_s"]
    return replace(sft, max_steps=math.ceil(total / each))


def main(arguments: Sequence[str] | None = None, *, say: telling.Say = telling.say) -> int:
    """Adds baselines to the named folders; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folders", nargs="+", type=Path, help="finished quickstart folders")
    parser.add_argument("--only", choices=sorted(BASELINES), help="this baseline alone")
    given = parser.parse_args(arguments)
    try:
        for path in given.folders:
            run = open_quickstart(path, say)
            for name in [given.only] if given.only else BASELINES:
                say(f"{path}: {BASELINES[name]}")
                add_baseline(run, name)
    except InstructRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

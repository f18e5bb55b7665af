"""Puts PPO beside what the same compute buys otherwise: longer SFT, RAFT, and the best of n.

Give a recipe of PPO and the SFT recipe that makes its start::

    python experiments/scripts/equal_compute.py translation --sft translation_sft --seeds 0 1 2

| arm | what |
| --- | --- |
| ``start`` | where PPO begins: the policy of the SFT recipe, or the model named by ``--start`` |
| ``ppo`` | the recipe |
| ``raft`` | the same rollouts and learning rate; imitates the best answers of each instruction |
| ``sft-long`` | the SFT recipe for about the time that it and PPO took together |
| ``sft-best`` | the same, but the best step is kept by reward on the validation split |
| ``best-of-N`` | the best of N sampled responses of the start, chosen by the reward itself |

At the end ``instructrec compare`` says which is better. What has finished is not run again, so the
same command continues where it stopped. Settings of ``instructrec train`` may follow and hold for
``ppo`` and ``raft``.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from instructrec.errors import InstructRecError
from instructrec.experiments import command_line, telling
from instructrec.experiments.api import as_options
from instructrec.experiments.child_runs import Run, is_finished, run_in_a_process
from instructrec.experiments.cli import command_parser
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.evaluation import load_evaluation
from instructrec.experiments.jsonl import Row, dump_line, write_atomic, write_json
from instructrec.experiments.runfolder import RunFolder
from instructrec.rl.config import raft_settings

RESPONSES = 4
"""Responses to an instruction of which RAFT imitates the best, where the recipe has one alone."""
CHECKS = 16
"""How often ``sft-best`` looks at the validation split at most."""
_SFT_ARMS = ("sft-best", "sft-long")


@dataclass(frozen=True)
class Study:
    """What is compared, and where."""

    recipe: str
    """The recipe of PPO."""
    sft: str | None
    """The SFT recipe; None leaves the arms of SFT out."""
    model: str | None
    """Where PPO begins; None: the policy that the SFT recipe trains."""
    folder: Path
    """Where the run folders go."""
    best_of: int
    """Responses of the start to choose from."""
    more: Sequence[str] = ()
    """Further settings of PPO and RAFT."""

    @property
    def name(self) -> str:
        """What the folders are called after."""
        return Path(self.recipe).stem

    @property
    def arms(self) -> list[str]:
        """Names of the arms, PPO first."""
        sft = _SFT_ARMS if self.sft else ()
        return ["ppo", "start", "raft", *sft, f"best-of-{self.best_of}"]

    def path(self, arm: str, seed: int) -> Path:
        """Run folder of an arm."""
        return self.folder / f"{self.name}-{arm}-s{seed}"

    def start(self, seed: int) -> str:
        """Where PPO begins."""
        return self.model or str(self.path("sft", seed))

    def config(self) -> TrainConfig:
        """The recipe with the further settings."""
        given = command_line.recipes_to_config([self.recipe, *self.more])
        values = command_line.parse(command_parser("train"), given)
        made: TrainConfig = command_line.as_dataclass(TrainConfig, values)
        return made


def trained(study: Study, kind: str, recipe: str, arm: str, seed: int) -> list[str]:
    """What all trainings have in common, as arguments of ``instructrec``."""
    common = {
        "seed": seed,
        "variant": f"{study.name}-{arm}",
        "output.dir": str(study.folder),
    }
    return [kind, recipe, *as_options(common)]


def ppo_command(study: Study, arm: str, seed: int) -> list[str]:
    """PPO, or RAFT with as many rollouts."""
    changed: dict[str, Any] = {"policy.model": study.start(seed)}
    if arm == "raft":
        ppo = study.config().ppo
        groups = ppo.num_generations if ppo.num_generations > 1 else RESPONSES
        raft = raft_settings(ppo, groups)
        pairs = [(f.name, getattr(raft, f.name)) for f in fields(raft)]
        differing = {f"ppo.{k}": v for k, v in pairs if v != getattr(ppo, k)}
        changed |= {"algorithm": "raft"} | differing
    command = trained(study, "train", study.recipe, arm, seed)
    return [*command, *study.more, *as_options(changed), "--resume"]


def sft_command(study: Study, arm: str, seed: int) -> list[str]:
    """The SFT recipe as it is, for as long as PPO, or with the best step kept."""
    assert study.sft is not None
    changed: dict[str, Any] = {}
    if arm in _SFT_ARMS:
        changed["sft.max_steps"] = steps = _steps_for_as_long(study, seed)
        if arm == "sft-best":
            changed |= {
                "sft.eval_every": math.ceil(steps / CHECKS),
                "sft.best_by": "reward",
                "eval.validation_limit": study.config().eval.validation_limit,
            }
    # What SFT left unfinished begins anew: its folder may hold other settings by now.
    return [*trained(study, "sft", study.sft, arm, seed), *as_options(changed), "--overwrite"]


def _steps_for_as_long(study: Study, seed: int) -> int:
    """About as many steps as fit into the time of the short SFT and PPO together."""
    sft, ppo = (RunFolder.open(study.path(arm, seed)).summary() for arm in ("sft", "ppo"))
    before = 0.0 if study.model else sft["train_s"]
    return math.ceil((before + ppo["train_s"]) * sft["updates"] / sft["train_s"])


def evaluation_command(study: Study, arm: str, seed: int, settings: Path) -> list[str]:
    """The start by what PPO is measured by: one greedy response, or several."""
    words = ["evaluate", study.start(seed), "--config", str(settings), "--seed", str(seed)]
    words += ["--name", study.path(arm, seed).name, "--output.dir", str(study.folder)]
    if arm.startswith("best-of-"):
        words += ["--samples", str(study.best_of), "--temperature", "1"]
    return words


def evaluation_settings(config: TrainConfig) -> dict[str, Any]:
    """How the recipe measures its policy in the end, as a recipe of ``instructrec evaluate``."""
    task, measured = config.task, config.eval
    chosen: dict[str, Any] = {
        "task": measured.task or task.name,
        "options": measured.options if measured.task else task.options,
        "split": task.test_split,
        "rewards": config.resolved().reward_value(),
        "limit": measured.limit,
        "max_new_tokens": config.eval_sampling.max_new_tokens,
        "corpus_metrics": list(measured.corpus_metrics),
        "corpus_references": measured.corpus_references,
        "system_prompt": config.policy.system_prompt,
        "env": task.env,
    }
    if task.env != "instruction":
        chosen |= {"max_turns": task.max_turns, "env_options": task.env_options}
    return chosen


def keep_best(sampled: Path) -> Path:
    """Writes the best response to each instruction beside the samples; returns the file."""
    evaluation = load_evaluation(sampled)
    best: dict[str, Row] = {}
    for row in evaluation.rows:
        if row["total"] is None:
            continue
        if row["id"] not in best or row["total"] > best[row["id"]]["total"]:
            best[row["id"]] = row
    out = sampled.with_name("best.jsonl")
    write_atomic(out, b"".join(dump_line(row) for row in best.values()).decode())
    write_json(out.with_suffix(".json"), {**evaluation.header, "rows": len(best)})
    return out


def launch(study: Study, seeds: Sequence[int], *, run: Run, say: telling.Say) -> int:
    """Runs the arms one by one, each for all seeds, then compares; returns the first code not 0."""
    study.folder.mkdir(parents=True, exist_ok=True)
    settings = study.folder / f"{study.name}-evaluation.yaml"
    write_atomic(settings, yaml.safe_dump(evaluation_settings(study.config()), sort_keys=False))
    by_seed = [_commands(study, seed, settings) for seed in seeds]
    for of_arm in zip(*by_seed, strict=True):  # what PPO gained is known for all seeds first
        for seed, (arm, command) in zip(seeds, of_arm, strict=True):
            path = study.path(arm, seed)
            if is_finished(path):
                say(f"{path} is there already")
                continue
            say(f"{path} ...")
            if code := run(command()):
                return code
            shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return run(comparison(study, seeds))


def _commands(study: Study, seed: int, settings: Path) -> list[tuple[str, Callable[[], list[str]]]]:
    """What a seed runs, in order; a command is known once those before it have finished."""
    sft = ["sft"] if study.sft else []
    measured = ["start", f"best-of-{study.best_of}"]
    later = _SFT_ARMS if study.sft else ()
    return [
        *((arm, partial(sft_command, study, arm, seed)) for arm in sft),
        *((arm, partial(ppo_command, study, arm, seed)) for arm in ("ppo", "raft")),
        *((arm, partial(sft_command, study, arm, seed)) for arm in later),
        *((arm, partial(evaluation_command, study, arm, seed, settings)) for arm in measured),
    ]


def comparison(study: Study, seeds: Sequence[int]) -> list[str]:
    """The comparison of all arms, as arguments of ``instructrec``."""
    named = []
    for arm in study.arms:
        paths = [study.path(arm, seed) for seed in seeds]
        if arm.startswith("best-of-"):
            files = [RunFolder.open(path).summary()["eval_file"] for path in paths]
            paths = [keep_best(path / file) for path, file in zip(paths, files, strict=True)]
        named.append(f"{arm}={','.join(map(str, paths))}")
    return ["compare", *named, "--out", str(study.folder / f"compare-{study.name}")]


def main(
    arguments: Sequence[str] | None = None,
    *,
    run: Run = run_in_a_process,
    say: telling.Say = telling.say,
) -> int:
    """Runs what the command line asks for; returns the exit code."""
    summary = __doc__.split("\n", maxsplit=1)[0]
    # Without abbreviations: what is not known here is a setting of `instructrec train`.
    parser = argparse.ArgumentParser(description=summary, allow_abbrev=False)
    parser.add_argument("recipe", help="recipe of PPO")
    parser.add_argument("--sft", help="recipe of SFT; without it there are no arms of SFT")
    parser.add_argument("--start", help="where PPO begins, if not at the policy of --sft")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="one run each")
    parser.add_argument("--n", type=int, default=8, help="responses to choose the best of")
    parser.add_argument("--dir", type=Path, default=Path("runs/equal-compute"), help="the runs")
    given, more = parser.parse_known_args(arguments)
    if not (given.sft or given.start):
        parser.error("expected --sft RECIPE, --start MODEL, or both")
    study = Study(given.recipe, given.sft, given.start, given.dir, given.n, more)
    try:
        return launch(study, given.seeds, run=run, say=say)
    except InstructRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())

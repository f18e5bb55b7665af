"""One setting with several seeds: one run after the other, and what they say together."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instructrec import processes
from instructrec.errors import CheckpointError, ConfigError, InstructRecError, RunInterrupted
from instructrec.experiments import telling
from instructrec.experiments.compare_stats import FEWEST_RUNS
from instructrec.experiments.config import TrainConfig, keep_chosen, refuse_changed
from instructrec.experiments.contenders import read_policy
from instructrec.experiments.listing import table
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.stats import Interval, SeedInterval, mean_interval, seeds_interval
from instructrec.experiments.yaml_files import read_config

if TYPE_CHECKING:
    from instructrec.experiments.train import Outcome

Train = Callable[..., "Outcome"]
"""``instructrec.experiments.train.run_training``, or something with its signature."""


@dataclass(frozen=True)
class SeedRun:
    """One seed that was trained and measured."""

    seed: int
    """The seed."""
    folder: RunFolder
    """Its run folder."""
    summary: Mapping[str, Any]
    """Content of its ``summary.json``."""


@dataclass(frozen=True)
class SeedsOutcome:
    """What the seeds of one setting left behind."""

    runs: list[SeedRun]
    """The runs in the order of the seeds given."""
    scores: dict[str, Interval | SeedInterval]
    """Reward -> held-out mean with its interval: from three seeds on that of other seeds on other
    items, else of other items alone; ``total`` comes first."""


def run_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_going: bool = False,
    command: Sequence[str] | None = None,
    train: Train | None = None,
    say: telling.Say = telling.say,
) -> SeedsOutcome:
    """Trains a setting once with each seed; every run is what a single one would be.

    Args:
        config: The setting; its own seed does not count.
        seeds: Different seeds, in the order of the runs.
        resume: Skip seeds that are finished and continue the others.
        overwrite: Delete existing runs of these seeds.
        keep_going: Go on with the next seed when one fails; its error is raised at the end.
        command: The command line after the program's name, for the record of each run.
        train: Trains one run; None takes ``run_training``.
        say: Receives lines for people.

    Raises:
        ConfigError: The seeds cannot be told apart, or several processes were started.
        CheckpointError: A run folder is there already; nothing was trained.
        InstructRecError: What the first seed that failed raised.
    """
    configs = of_seeds(config, seeds)
    processes.refuse_several("training several seeds")
    if not (resume or overwrite):
        _refuse_existing(configs)
    train = train or run_training()
    failed: dict[int, BaseException] = {}
    done: list[TrainConfig] = []
    for each in configs:
        if resume and is_done(each):
            say(f"seed {each.seed}: {each.folder} is finished already")
            done.append(each)
            continue
        say(f"\nseed {each.seed}, number {configs.index(each) + 1} of {len(configs)}")
        record = None if command is None else for_one_seed(command, each.seed)
        try:
            train(each, resume=resume, overwrite=overwrite, command=record, say=say)
        except BaseException as error:
            own = isinstance(error, InstructRecError) and not isinstance(error, RunInterrupted)
            if keep_going and own:
                failed[each.seed] = error
                say(f"seed {each.seed} failed: {error}")
                continue
            _tell_stopped(configs, each, done, say)
            raise
        done.append(each)
    outcome = _outcome(done)
    if done:
        say(report(outcome, failed))
    for cause in failed.values():
        raise cause
    return outcome


def run_training() -> Train:
    """The function of that name (imports torch)."""
    from instructrec.experiments.train import run_training

    return run_training


def of_seeds(config: TrainConfig, seeds: Sequence[int]) -> list[TrainConfig]:
    """The runs of a setting, one for each seed.

    Raises:
        ConfigError: There is no seed, one is given twice, or all would have the same folder.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds = {list(seeds)}: expected different seeds, one at least.")
    if config.name is not None:
        raise ConfigError(
            f"name = {config.name!r} with several seeds: each needs a folder of its own. Give "
            "variant instead; the folders are then <variant>-s<seed>."
        )
    return [dataclasses.replace(config, seed=seed).resolved() for seed in seeds]


def is_done(config: TrainConfig) -> bool:
    """Whether the run was trained and measured to its end, under these settings.

    Raises:
        ConfigError: It was, under other ones.
    """
    folder = config.folder
    if not folder.exists() or RunFolder.open(folder).record()["status"] != "finished":
        return False
    config = keep_chosen(config, folder)
    refuse_changed(config, folder)
    updates = (read_config(folder).get("ppo") or {}).get("num_updates")
    return config.supervised is not None or updates == config.ppo.num_updates


def for_one_seed(command: Sequence[str], seed: int) -> list[str]:
    """The command line that trains one of the seeds: ``--seeds 1 2`` becomes ``--seed 1``."""
    rewritten: list[str] = []
    skipping = False
    for word in command:
        option, is_whole, _ = word.partition("=")
        if option in ("--seeds", "--seed"):  # the latter would win over ours
            skipping = not is_whole
            rewritten += ["--seed", str(seed)] if option == "--seeds" else []
        elif word == "--keep_going" or (skipping and not word.startswith("--")):
            continue
        else:
            skipping = False
            rewritten.append(word)
    return rewritten


def report(outcome: SeedsOutcome, failed: Mapping[int, BaseException] | None = None) -> str:
    """The seeds as a table, their mean, and how to compare them with other policies."""
    parts = list(outcome.scores)
    shown = ["total"] if len(parts) == 2 and "total" in parts else parts  # one reward is the total
    rows = [("seed", *shown, "folder")]
    for run in outcome.runs:
        scores = (_score(run.summary, part) for part in shown)
        rows.append((str(run.seed), *scores, str(run.folder.path)))
    if len(outcome.runs) > 1:
        rows.append(("all", *(_interval(outcome.scores[part]) for part in shown), ""))
    for name, bound in _bounds(outcome).items():
        cells = (f"{bound['mean']:.3f}" if part == "total" else "-" for part in shown)
        rows.append((f"bound {name}", *cells, ""))
    lines = [f"\nheld-out scores, 95 % intervals for {_speaks_of(outcome)}", "", table(rows)]
    lines += [f"seed {seed} failed: {error}" for seed, error in (failed or {}).items()]
    folders = [str(run.folder.path) for run in outcome.runs]
    lines += ["", f"compare  {shlex.join(['instructrec', 'compare', *folders])} OTHER_RUNS..."]
    return "\n".join(lines)


def _bounds(outcome: SeedsOutcome) -> Mapping[str, Any]:
    """What scripted policies got on the same instructions; the same beside every seed."""
    measured = (run.summary.get("bounds") for run in outcome.runs)
    return next((found["totals"] for found in measured if found), {})


def _speaks_of(outcome: SeedsOutcome) -> str:
    """What the intervals are about."""
    if len(outcome.runs) < 2:
        return "other items"
    if len(outcome.runs) < FEWEST_RUNS:
        return f"other items (other seeds: from {FEWEST_RUNS} on)"
    return "other items; of all: other seeds on other items"


def _outcome(configs: Sequence[TrainConfig]) -> SeedsOutcome:
    folders = [RunFolder(config.folder) for config in configs]
    runs = [
        SeedRun(config.seed, folder, folder.summary())
        for config, folder in zip(configs, folders, strict=True)
    ]
    return SeedsOutcome(runs, scores_of([folder.path for folder in folders]) if folders else {})


def scores_of(folders: Sequence[Path]) -> dict[str, Interval | SeedInterval]:
    """Reward -> held-out mean of the runs with its interval, where more than one item has a score.

    Args:
        folders: Run folders of the seeds of one setting.
    """
    policy = read_policy(folders)
    (contender,) = policy.contenders
    found = {}
    for part in policy.parts:
        places = policy.kept(part)
        clusters = policy.clusters(places)
        if len(set(clusters)) > 1:
            scores = contender.scores([policy.ids[i] for i in places], part)
            found[part] = _mean_of(scores, clusters)
    return found


def _mean_of(scores_SN: np.ndarray, clusters: Sequence[str]) -> Interval | SeedInterval:
    """With an interval of other seeds on other items; of these seeds, where they are too few."""
    if len(scores_SN) < FEWEST_RUNS:
        return mean_interval(scores_SN.mean(0), clusters)
    return seeds_interval(scores_SN, clusters)


def _refuse_existing(configs: Sequence[TrainConfig]) -> None:
    """Before anything is trained: a later seed should not fail for this after hours."""
    there = [str(c.folder) for c in configs if c.folder.exists() and any(c.folder.iterdir())]
    if there:
        raise CheckpointError(
            f"{', '.join(there)} exists already: pass --resume to continue what is unfinished and "
            "skip what is finished, --overwrite to delete these runs, or choose another variant."
        )


def _tell_stopped(
    configs: Sequence[TrainConfig],
    at: TrainConfig,
    done: Sequence[TrainConfig],
    say: telling.Say,
) -> None:
    """Says which seeds are done, where it stopped, and how to go on."""
    rest = [config.seed for config in configs[configs.index(at) + 1 :]]
    finished = ", ".join(f"{config.seed} ({config.folder})" for config in done) or "none"
    say(
        f"\nstopped at seed {at.seed}; finished: {finished}; not begun: "
        f"{', '.join(map(str, rest)) or 'none'}. The same command with --resume goes on."
    )


def _score(summary: Mapping[str, Any], part: str) -> str:
    mean, low, high = (summary.get(f"eval/{part}/{key}") for key in ("mean", "ci_low", "ci_high"))
    if mean is None:
        return "-"
    return f"{mean:.3f}" if low is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _interval(found: Interval | SeedInterval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"

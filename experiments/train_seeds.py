"""``instructrec train --seeds``: the seeds of a training run, and their held-out scores."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec.experiments import telling
from instructrec.experiments.child_runs import is_finished
from instructrec.experiments.config import TrainConfig, keep_chosen, refuse_changed
from instructrec.experiments.contenders import read_policy
from instructrec.experiments.seeds import (
    Job,
    Scores,
    SeedRun,
    SeedsOutcome,
    in_a_table,
    mean_of,
    run_each,
    with_interval,
)
from instructrec.experiments.yaml_files import read_config

if TYPE_CHECKING:
    from instructrec.experiments.train import Outcome

Train = Callable[..., "Outcome"]
"""``instructrec.experiments.train.run_training``, or something with its signature."""


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
    """Trains a setting once with each seed; see `seeds.run_each`.

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
    job = Job(train or run_training, is_done, _outcome, report)
    return run_each(
        job,
        config,
        seeds,
        resume=resume,
        overwrite=overwrite,
        keep_going=keep_going,
        command=command,
        say=say,
    )


def run_training(config: TrainConfig, **options: Any) -> Outcome:
    """The function of that name, imported when it is needed: it takes torch along."""
    from instructrec.experiments.train import run_training

    return run_training(config, **options)


def is_done(config: TrainConfig) -> bool:
    """Whether the run was trained and measured to its end, under these settings.

    Raises:
        ConfigError: It was, under other ones.
    """
    folder = config.folder
    if not is_finished(folder):
        return False
    config = keep_chosen(config, folder)
    refuse_changed(config, folder)
    updates = (read_config(folder).get("ppo") or {}).get("num_updates")
    return config.supervised is not None or updates == config.ppo.num_updates


def report(outcome: SeedsOutcome) -> str:
    """The seeds as a table, their mean, and how to compare them with other policies."""
    parts = list(outcome.scores)
    shown = ["total"] if len(parts) == 2 and "total" in parts else parts  # one reward is the total
    bounds = [
        (f"bound {name}", *(f"{bound['mean']:.3f}" if part == "total" else "-" for part in shown))
        for name, bound in _bounds(outcome).items()
    ]
    heads = {part: part for part in shown}
    told = in_a_table(outcome, heads, _score, title="held-out scores", below=bounds)
    folders = [str(run.folder.path) for run in outcome.runs]
    return f"{told}\n\ncompare  {shlex.join(['instructrec', 'compare', *folders])} OTHER_RUNS..."


def _bounds(outcome: SeedsOutcome) -> Mapping[str, Any]:
    """What scripted policies got on the same instructions; the same beside every seed."""
    measured = (run.summary.get("bounds") for run in outcome.runs)
    return next((found["totals"] for found in measured if found), {})


def _outcome(runs: list[SeedRun]) -> SeedsOutcome:
    return SeedsOutcome(runs, scores_of([run.folder.path for run in runs]))


def scores_of(folders: Sequence[Path]) -> Scores:
    """Reward -> held-out mean of the runs with its interval, where more than one item has a score.

    Args:
        folders: Run folders of the seeds of one setting.
    """
    policy = read_policy(folders)
    (contender,) = policy.contenders
    found: Scores = {}
    for part in policy.parts:
        places = policy.kept(part)
        clusters = policy.clusters(places)
        if len(set(clusters)) > 1:
            scores = contender.scores([policy.ids[i] for i in places], part)
            found[part] = mean_of(scores, clusters)
    return found


def _score(run: SeedRun, part: str) -> str:
    return with_interval(
        *(run.summary.get(f"eval/{part}/{key}") for key in ("mean", "ci_low", "ci_high"))
    )

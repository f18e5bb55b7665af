"""One trial of a sweep: the values that it tries, its runs, and what they score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from instructrec.devices import is_out_of_memory
from instructrec.errors import ConfigError, DataError, NumericsError, PolicyError, RewardError
from instructrec.experiments import telling
from instructrec.experiments.api import as_options
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.sweep_spec import Dimension, SweepSpec
from instructrec.experiments.train_seeds import Train, is_done

if TYPE_CHECKING:
    from optuna import Trial
    from optuna.trial import FrozenTrial

CONTINUES = "continues"
"""Attribute of a trial that goes on with the runs of an earlier one: the number of that."""
ERROR = "error"
"""Attribute of a trial that failed: what was wrong."""


def is_of_settings(error: BaseException, *, others_ended: bool) -> bool:
    """Says whether an error may lie in the settings of its trial, so that others may do better.

    Numbers that are not finite, failing rewards, settings that contradict each other and a lack
    of memory do. A model or data that cannot be used are what all trials have in common, until
    one of them has shown that they can. Everything else (a full disk, a folder that another
    process holds, a signal, a fault of the program) meets the next trial as well.

    Args:
        error: What ended the trial.
        others_ended: Whether another trial was trained to its end.
    """
    cause: BaseException | None = error
    while cause is not None:
        if is_out_of_memory(cause):
            return True
        cause = cause.__cause__
    if isinstance(error, PolicyError | DataError):
        return others_ended
    return isinstance(error, ConfigError | NumericsError | RewardError)


def number_of(trial: Trial | FrozenTrial) -> int:
    """The number that its run folders bear: of the first, where trials go on with one another."""
    number: int = trial.user_attrs.get(CONTINUES, trial.number)
    return number


def suggest(spec: SweepSpec, trial: Trial) -> dict[str, Any]:
    """Draws a value of each key; a trial that goes on has those that it had."""
    return {dimension.key: _value(dimension, trial) for dimension in spec.space}


def _value(dimension: Dimension, trial: Trial) -> Any:
    key, values = dimension.key, dimension.values
    if dimension.kind == "choice":
        return trial.suggest_categorical(key, values)
    low, high = values
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if dimension.kind == "integer":
        return trial.suggest_int(key, int(low), int(high))
    return trial.suggest_float(key, low, high, log=dimension.kind == "log_uniform")


def scores_of(
    spec: SweepSpec, folder: Path, trial: Trial, train: Train
) -> tuple[list[float], bool]:
    """Trains the seeds of a trial, as far as they are not trained yet.

    Args:
        spec: The sweep.
        folder: Its folder.
        trial: The trial, at work.
        train: Trains one run.

    Returns:
        The score of each seed, up to the first whose run was pruned, and whether one was.
    """
    scores: list[float] = []
    for config in configs_of(spec, folder, trial):
        if not is_done(config):
            train(
                config,
                resume=config.folder.exists(),
                command=_command(spec, trial, config),
                should_prune=_watch(spec, trial, config, list(scores)),
                say=telling.say_nothing,
            )
        run = RunFolder(config.folder)
        scores.append(score_of(run, spec.metric))
        if run.summary()["stopped"] == "pruned":
            return scores, True
    return scores, False


def _command(spec: SweepSpec, trial: Trial, config: TrainConfig) -> list[str]:
    """The command line that trains the same run by itself."""
    given = {**spec.settings, **trial.params, "variant": config.variant, "seed": config.seed}
    return ["train", *spec.recipe, *as_options({**given, "output.dir": config.output.dir})]


def configs_of(spec: SweepSpec, folder: Path, trial: Trial | FrozenTrial) -> list[TrainConfig]:
    """The runs of a trial, one for each seed.

    Args:
        spec: The sweep.
        folder: Its folder.
        trial: A trial of the study, at work or not.
    """
    config = spec.config(trial.params)
    output = dataclasses.replace(config.output, dir=str(folder / "runs"))
    variant = f"{spec.name}-t{number_of(trial):03d}"
    config = dataclasses.replace(config, variant=variant, output=output)
    return [dataclasses.replace(config, seed=seed).resolved() for seed in spec.seeds]


def _watch(
    spec: SweepSpec, trial: Trial, config: TrainConfig, before: list[float]
) -> Callable[[int, dict[str, float]], bool]:
    """Reports evaluations of a run; its steps come after those of the seeds before it."""
    first = len(before) * config.ppo.num_updates

    def should_prune(update: int, metrics: dict[str, float]) -> bool:
        if spec.metric not in metrics:
            raise _not_measured(spec.metric, metrics)
        trial.report(mean([*before, metrics[spec.metric]]), first + update)
        return trial.should_prune()

    return should_prune


def score_of(run: RunFolder, metric: str) -> float:
    """The metric in the evaluation of the policy that a run kept.

    Raises:
        DataError: That evaluation does not report it.
    """
    best = run.summary()["best_update"]
    rows = [
        row
        for row in read_metrics(run.path)
        if row.get("train/update", row.get("sft/step")) == best
    ]
    for row in rows:
        if row.get(metric) is not None:
            return float(row[metric])
    raise _not_measured(metric, {key: value for row in rows for key, value in row.items()})


def _not_measured(metric: str, metrics: Mapping[str, Any]) -> DataError:
    known = ", ".join(sorted(key for key in metrics if key.startswith("eval/")))
    return DataError(
        f"the evaluations in training do not report {metric!r}, by which the sweep goes. They "
        f"report: {known or 'nothing'}."
    )

"""``instructrec sweep``: a search for better settings, on optuna.

optuna chooses settings, prunes and keeps the record (``study.db``, SQLite); every trial is a run of
``instructrec train``, one for each seed. A sweep that was killed goes on: trials that were at work
are tried again first and continue their runs from the newest checkpoint.
"""

from __future__ import annotations

import gc
import itertools
import shutil
import sys
import time
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import yaml

from instructrec.devices import release_memory
from instructrec.errors import CheckpointError, ConfigError
from instructrec.experiments import sweep_report, telling
from instructrec.experiments.jsonl import write_atomic
from instructrec.experiments.locks import held
from instructrec.experiments.sweep_spec import SweepSpec, check_runs
from instructrec.experiments.sweep_trials import (
    CONTINUES,
    ERROR,
    is_of_settings,
    number_of,
    scores_of,
    suggest,
)
from instructrec.experiments.train_seeds import Train, run_training
from instructrec.experiments.yaml_files import read_yaml

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


def run_sweep(
    spec: SweepSpec,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    train: Train | None = None,
    say: telling.Say = telling.say,
) -> dict[str, Any]:
    """Runs a sweep to its end and writes ``sweep.md``, ``sweep.json`` and ``importance.png``.

    Args:
        spec: What is searched.
        folder: Where the sweep and its runs lie.
        resume: Continue the sweep in the folder; it may have been killed.
        overwrite: Delete the sweep in the folder.
        train: Trains one run; None takes ``run_training``.
        say: Receives lines for people.

    Returns:
        What ``sweep.json`` holds.

    Raises:
        ConfigError: A key or value would be refused, or optuna is not installed; no trial was run.
        CheckpointError: There is such a sweep already, another one, or one at work.
        Exception: A trial failed for a reason that is not in its settings; see `is_of_settings`.
        RunInterrupted: It was stopped behind a checkpoint.
    """
    _require_optuna()
    check_runs(spec)
    train = train or run_training
    _make_folder(spec, folder, resume=resume, overwrite=overwrite)
    with held(folder, "sweep"):
        write_atomic(folder / "sweep.yaml", yaml.safe_dump(spec.to_dict(), sort_keys=False))
        study = open_study(spec, folder)
        requeue(study, say)
        combinations = _combinations(spec)
        for values in combinations:
            study.enqueue_trial(values, skip_if_exists=True)
        wanted = len(combinations) or spec.trials
        while (done := len(finished(study))) < wanted:
            study.sampler = _sampler(spec, done)
            trial = study.ask()
            chosen = suggest(spec, trial).items()
            shown = ", ".join(f"{key} = {sweep_report.short(value)}" for key, value in chosen)
            say(f"\ntrial {done + 1} of {wanted}: {shown}")
            _try(spec, folder, study, trial, train)
            say(sweep_report.one_line(study.trials[trial.number], study))
        results = sweep_report.results_of(spec, folder, study, finished(study))
        sweep_report.write(results, folder)
        say(sweep_report.to_text(results, folder))
    if results["best"] is None:
        errors = "; ".join({t["error"] for t in results["trials"] if t["error"]})
        raise ConfigError(f"no trial came to its end: {errors or 'all were pruned'}.")
    return results


def open_study(spec: SweepSpec, folder: Path) -> Study:
    """Opens the record of a sweep, or begins it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}",
        study_name=spec.name,
        direction=spec.direction,
        pruner=_pruner(spec),
        sampler=_sampler(spec, 0),
        load_if_exists=True,
    )


def requeue(study: Study, say: telling.Say = telling.say) -> None:
    """Puts trials that were at work when the sweep was killed first in the queue."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state != TrialState.RUNNING:
            continue
        first = number_of(trial)
        waiting = any(
            t.state == TrialState.WAITING and t.user_attrs.get(CONTINUES) == first for t in trials
        )
        if not waiting and ERROR not in trial.user_attrs:
            study.enqueue_trial(trial.params, user_attrs={CONTINUES: first})
        study.tell(trial.number, state=TrialState.FAIL)  # last, so that a kill loses nothing
        say(f"trial {first} was at work: it goes on")


def finished(study: Study) -> list[Any]:
    """Trials that came to an end of their own, whatever it was; not those that were tried again."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    return [
        trial
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        or (trial.state == TrialState.FAIL and ERROR in trial.user_attrs)
    ]


def _has_ended(study: Study) -> bool:
    """Whether a trial was trained to its end, or as far as the pruner let it."""
    return any(trial.state.name in ("COMPLETE", "PRUNED") for trial in finished(study))


def _try(spec: SweepSpec, folder: Path, study: Study, trial: Trial, train: Train) -> None:
    """Trains all seeds of a trial and tells the study how it ended."""
    from optuna.trial import TrialState

    start = time.perf_counter()
    _recall(study, trial)
    failed = None
    try:
        scores, pruned = scores_of(spec, folder, trial, train)
    except Exception as error:
        if not is_of_settings(error, others_ended=_has_ended(study)):
            raise
        failed = str(error) or type(error).__name__
    if failed is not None:
        # Outside of the handler: the frames that failed, and the model that they held, are gone.
        gc.collect()
        release_memory()
        trial.set_user_attr(ERROR, failed)
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr("seconds", time.perf_counter() - start)
    trial.set_user_attr("scores", scores)
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, mean(scores))


def _recall(study: Study, trial: Trial) -> None:
    """Reports what the trial that this one goes on with had reported."""
    first = trial.user_attrs.get(CONTINUES)
    if first is None:
        return
    seen: dict[int, float] = {}
    for other in study.get_trials(deepcopy=False):
        if first in (other.number, other.user_attrs.get(CONTINUES)):
            seen |= other.intermediate_values
    for step, value in seen.items():
        trial.report(value, step)


# How settings are chosen, and which are given up ----------------------------------------------


def _sampler(spec: SweepSpec, done: int) -> BaseSampler:
    """The sampler of the next trial.

    Its seed goes by the trials that are done, so that a sweep that was killed does not draw what it
    drew at its start again.
    """
    from optuna.samplers import RandomSampler, TPESampler

    seed = spec.sampler_seed + done
    return TPESampler(seed=seed) if spec.sampler == "tpe" else RandomSampler(seed=seed)


def _combinations(spec: SweepSpec) -> list[dict[str, Any]]:
    """What a grid tries, in order; nothing for the other samplers."""
    if spec.sampler != "grid":
        return []
    keys = [dimension.key for dimension in spec.space]
    products = itertools.product(*(dimension.values for dimension in spec.space))
    return [dict(zip(keys, values, strict=True)) for values in products][: spec.trials]


def _pruner(spec: SweepSpec) -> BasePruner:
    from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner

    if spec.pruner == "none":
        return NopPruner()
    if spec.pruner == "median":
        return MedianPruner(n_startup_trials=spec.pruner_startup)
    first = spec.config({}).ppo.eval_every
    return SuccessiveHalvingPruner(min_resource=first, reduction_factor=2)


# The folder -----------------------------------------------------------------------------------


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "a sweep needs optuna, which is not installed: pip install 'instructrec[sweep]'."
        ) from error


def _make_folder(spec: SweepSpec, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Begins the folder of a sweep, or checks that it holds this one."""
    file = folder / "sweep.yaml"
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: choose one.")
    there = folder.exists() and any(folder.iterdir())
    if there and not file.is_file():
        raise CheckpointError(f"{folder} holds no sweep: expected a new folder. Choose another.")
    if there and overwrite:
        with held(folder, "sweep"):
            shutil.rmtree(folder)
    elif there and not resume:
        raise CheckpointError(
            f"{folder} exists already: pass --resume to continue that sweep, --overwrite to delete "
            "it, or choose another name."
        )
    elif there:
        before = read_yaml(file)
        now = yaml.safe_load(yaml.safe_dump(spec.to_dict()))
        changed = [k for k in now if before.get(k) != now[k] and k != "trials"]
        if changed:
            raise CheckpointError(
                f"{folder} holds a sweep with another {', '.join(changed)}: only trials may change "
                "when it is continued. Choose another name."
            )
    folder.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    from instructrec.experiments.cli import main

    sys.exit(main(["sweep", *sys.argv[1:]]))

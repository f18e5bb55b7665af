"""One setting with several seeds: one run after the other, and what they say together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np

from instructrec import processes
from instructrec.errors import CheckpointError, ConfigError, InstructRecError, RunInterrupted
from instructrec.experiments import telling
from instructrec.experiments.compare_stats import FEWEST_RUNS
from instructrec.experiments.listing import table
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.stats import (
    Difference,
    Interval,
    SeedInterval,
    mean_interval,
    seeds_interval,
)


class Setting(Protocol):
    """A dataclass that describes a run: of training, of a reward model, or a pipeline."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def name(self) -> str | None:
        """Name of the folder, where one was given."""
        ...

    @property
    def seed(self) -> int:
        """Seed of everything that is drawn."""
        ...

    @property
    def folder(self) -> Path:
        """The run folder."""
        ...

    def resolved(self) -> Self:
        """The same run with what follows from the seed written out."""
        ...


S = TypeVar("S", bound=Setting)
Scores = dict[str, Interval | SeedInterval | Difference]
"""Score -> held-out mean of all seeds, with its interval."""


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
    scores: Scores
    """Score -> held-out mean with its interval: from three seeds on that of other seeds on other
    items, else of other items alone. Of a training run ``total`` comes first."""
    note: str = ""
    """Why there are no scores of all seeds together, where that is so."""


@dataclass(frozen=True)
class Job(Generic[S]):
    """What is done once with every seed, and how it is told at the end."""

    run: Callable[..., Any]
    """Makes one run; takes the setting and ``resume``, ``overwrite``, ``command`` and ``say``."""
    is_done: Callable[[S], bool]
    """Whether a run came to its end; raises ConfigError where it did under other settings."""
    outcome: Callable[[list[SeedRun]], SeedsOutcome]
    """What the finished runs say together."""
    report: Callable[[SeedsOutcome], str]
    """The same as a table for people."""
    what: str = "training several seeds"
    """What it is called where it is refused."""


def run_each(
    job: Job[S],
    setting: S,
    seeds: Sequence[int],
    *,
    resume: bool = False,
    overwrite: bool = False,
    keep_going: bool = False,
    command: Sequence[str] | None = None,
    say: telling.Say = telling.say,
) -> SeedsOutcome:
    """Runs a setting once with each seed; every run is what a single one would be.

    Args:
        job: What is done.
        setting: The setting; its own seed does not count.
        seeds: Different seeds, in the order of the runs.
        resume: Skip seeds that are finished and continue the others.
        overwrite: Delete existing runs of these seeds.
        keep_going: Go on with the next seed when one fails; its error is raised at the end.
        command: The command line after the program's name, for the record of each run.
        say: Receives lines for people.

    Raises:
        ConfigError: The seeds cannot be told apart, or several processes were started.
        CheckpointError: A run folder is there already; nothing was run.
        InstructRecError: What the first seed that failed raised.
    """
    settings = of_seeds(setting, seeds)
    processes.refuse_several(job.what)
    if not (resume or overwrite):
        _refuse_existing(settings)
    finished = [each.seed for each in settings if resume and job.is_done(each)]
    failed: dict[int, BaseException] = {}
    done: list[S] = []
    for each in settings:
        if each.seed in finished:
            say(f"seed {each.seed}: {each.folder} is finished already")
            done.append(each)
            continue
        say(f"\nseed {each.seed}, number {settings.index(each) + 1} of {len(settings)}")
        record = None if command is None else for_one_seed(command, each.seed)
        try:
            job.run(each, resume=resume, overwrite=overwrite, command=record, say=say)
        except BaseException as error:
            own = isinstance(error, InstructRecError) and not isinstance(error, RunInterrupted)
            if keep_going and own:
                failed[each.seed] = error
                say(f"seed {each.seed} failed: {error}")
                continue
            _tell_stopped(settings, each, done, say)
            raise
        done.append(each)
    outcome = _outcome(job, done)
    if done:
        told = "\n".join(f"seed {seed} failed: {error}" for seed, error in failed.items())
        say("\n\n".join(filter(None, (job.report(outcome), told))))
    for cause in failed.values():
        raise cause
    return outcome


def of_seeds(setting: S, seeds: Sequence[int]) -> list[S]:
    """The runs of a setting, one for each seed.

    Raises:
        ConfigError: There is no seed, one is given twice, or all would have the same folder.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds = {list(seeds)}: expected different seeds, one at least.")
    if setting.name is not None:
        raise ConfigError(
            f"name = {setting.name!r} with several seeds: each needs a folder of its own. Give "
            "variant instead; the folders are then <variant>-s<seed>."
        )
    return [dataclasses.replace(setting, seed=seed).resolved() for seed in seeds]


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


def mean_of(scores_SN: np.ndarray, clusters: Sequence[str]) -> Interval | SeedInterval:
    """With an interval of other seeds on other items; of these seeds, where they are too few.

    Args:
        scores_SN: One row for each seed, one column for each item.
        clusters: N labels; items of one label belong together.
    """
    if len(scores_SN) < FEWEST_RUNS:
        return mean_interval(scores_SN.mean(0), clusters)
    return seeds_interval(scores_SN, clusters)


def in_a_table(
    outcome: SeedsOutcome,
    heads: Mapping[str, str],
    cell: Callable[[SeedRun, str], str],
    *,
    title: str,
    items: str = "items",
    below: Sequence[tuple[str, ...]] = (),
) -> str:
    """The seeds as a table with their mean, under a line that says what it is of.

    Args:
        outcome: What they left behind.
        heads: Score -> head of its column.
        cell: A score of one seed, as text.
        title: What the scores are.
        items: What was scored.
        below: More rows, of a name and a cell for each score.
    """
    rows = [("seed", *heads.values(), "folder")]
    for run in outcome.runs:
        cells = (cell(run, score) for score in heads)
        rows.append((str(run.seed), *cells, str(run.folder.path)))
    if len(outcome.runs) > 1 and not outcome.note:
        found = (outcome.scores.get(score) for score in heads)
        cells = ("-" if f is None else with_interval(f.mean, f.low, f.high) for f in found)
        rows.append(("all", *cells, ""))
    rows += [(*row, "") for row in below]
    of_what = _speaks_of(len(outcome.runs), items, bool(outcome.note))
    lines = [f"\n{title}, 95 % intervals for {of_what}", "", table(rows)]
    return "\n".join([*lines, "", outcome.note] if outcome.note else lines)


def with_interval(mean: float | None, low: float | None, high: float | None) -> str:
    """A mean and its ends, where they are known."""
    if mean is None:
        return "-"
    return f"{mean:.3f}" if low is None or high is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _speaks_of(runs: int, items: str, is_apart: bool) -> str:
    """What the intervals are about; apart, there is none of all runs."""
    if runs < 2 or is_apart:
        return f"other {items}"
    if runs < FEWEST_RUNS:
        return f"other {items} (other seeds: from {FEWEST_RUNS} on)"
    return f"other {items}; of all: other seeds on other {items}"


def _outcome(job: Job[S], done: Sequence[S]) -> SeedsOutcome:
    folders = [RunFolder(setting.folder) for setting in done]
    runs = [
        SeedRun(setting.seed, folder, folder.summary())
        for setting, folder in zip(done, folders, strict=True)
    ]
    return job.outcome(runs) if runs else SeedsOutcome([], {})


def _refuse_existing(settings: Sequence[Setting]) -> None:
    """Before anything is trained: a later seed should not fail for this after hours."""
    there = [str(s.folder) for s in settings if s.folder.exists() and any(s.folder.iterdir())]
    if there:
        raise CheckpointError(
            f"{', '.join(there)} exists already: pass --resume to continue what is unfinished and "
            "skip what is finished, --overwrite to delete these runs, or choose another variant."
        )


def _tell_stopped(
    settings: Sequence[Setting], at: Setting, done: Sequence[Setting], say: telling.Say
) -> None:
    """Says which seeds are done, where it stopped, and how to go on."""
    rest = [each.seed for each in settings[settings.index(at) + 1 :]]
    finished = ", ".join(f"{each.seed} ({each.folder})" for each in done) or "none"
    say(
        f"\nstopped at seed {at.seed}; finished: {finished}; not begun: "
        f"{', '.join(map(str, rest)) or 'none'}. The same command with --resume goes on."
    )

"""``instructrec train-reward --seeds``: the seeds of a reward model, and their accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructrec.experiments import reward_report
from instructrec.experiments.child_runs import is_finished
from instructrec.experiments.jsonl import Row, read_rows
from instructrec.experiments.preference_data import canonical
from instructrec.experiments.preference_stats import won
from instructrec.experiments.report_reading import read_learned
from instructrec.experiments.reward_model_config import RewardModelConfig, refuse_changed
from instructrec.experiments.reward_run import run_reward_training
from instructrec.experiments.seeds import (
    Job,
    Scores,
    SeedRun,
    SeedsOutcome,
    in_a_table,
    mean_of,
    with_interval,
)

_HEADS = {"accuracy": "accuracy", "recall_at_1": "recall at 1"}
"""Score -> its head in the table; the names are those of ``reward_report.json``."""
_PAIR = ("id", "prompt", "chosen", "rejected", "output")
"""What a pair is, in the rows of a ``scores_file``, whoever scored it."""


def is_done(config: RewardModelConfig) -> bool:
    """Whether the reward model was trained and measured to its end, under these settings.

    Raises:
        ConfigError: It was, under other ones.
    """
    if not is_finished(config.folder):
        return False
    refuse_changed(config, config.folder)
    return True


def outcome_of(runs: list[SeedRun]) -> SeedsOutcome:
    """Accuracy over all seeds on the held-out pairs, and recall at 1 of an alignment model.

    There is none of seeds that were trained or measured on different rows: the note says so.
    """
    rows = [read_rows(run.folder.path / run.summary["scores_file"]) for run in runs]
    if note := _differ(runs, rows):
        return SeedsOutcome(runs, {}, note)
    clusters = [canonical(row["prompt"]) for row in rows[0]]
    found: Scores = {}
    for name in _HEADS:
        scores_SN = np.array([_scores(each, name) for each in rows])
        known = np.isfinite(scores_SN).all(0)
        of_known = [c for c, is_known in zip(clusters, known, strict=True) if is_known]
        if len(set(of_known)) > 1:
            found[name] = mean_of(scores_SN[:, known], of_known)
    return SeedsOutcome(runs, found)


def report(outcome: SeedsOutcome) -> str:
    """The seeds as a table, their mean, and which pairs that is of."""
    learned = [read_learned(run.folder.path) for run in outcome.runs]
    of_run = dict(zip((run.seed for run in outcome.runs), learned, strict=True))

    def cell(run: SeedRun, name: str) -> str:
        found = of_run[run.seed].get(name, {})
        return with_interval(*(found.get(key) for key in ("mean", "low", "high")))

    heads = {name: head for name, head in _HEADS.items() if any(name in each for each in learned)}
    told = in_a_table(outcome, heads, cell, title="accuracy on held-out pairs", items="pairs")
    places = dict.fromkeys(reward_report.measured_on(each) for each in learned if each)
    return f"{told}\n\nmeasured on {', or on '.join(places)}"


JOB = Job(run_reward_training, is_done, outcome_of, report)
"""What `seeds.run_each` does with each seed."""


def _scores(rows: Sequence[Row], name: str) -> np.ndarray:
    """Score of each row by the model; NaN where it has none.

    Of a preference 1 where the preferred response scores more, 0.5 where both score the same, else
    0; of an output the share of mismatched ones that it is above, or whether it is above all.
    """
    if "rejected" not in rows[0]:
        key = {"accuracy": "above_others", "recall_at_1": "is_best"}[name]
        return np.array([row.get(key) for row in rows], dtype=np.float64)
    if name != "accuracy":
        return np.full(len(rows), np.nan)
    return won(np.array([row["chosen_score"] - row["rejected_score"] for row in rows]))


def _differ(runs: Sequence[SeedRun], rows: Sequence[Sequence[Row]]) -> str:
    """Says that seeds have different rows; nothing where all have the same."""
    trained = [run.folder.record().get("data", {}).get("train") for run in runs]
    measured = [[[row.get(key) for key in _PAIR] for row in each] for each in rows]
    odd = [
        (runs[i].folder.path, "measured" if measured[i] != measured[0] else "trained")
        for i in range(1, len(runs))
        if (measured[i], trained[i]) != (measured[0], trained[0])
    ]
    if not odd:
        return ""
    named = ", ".join(f"{path} was {what} on others" for path, what in odd)
    return (
        f"no mean of all seeds: not all have the same pairs as {runs[0].folder.path} ({named}). "
        "Train them anew with --overwrite, or give what was trained on other data a variant of "
        "its own."
    )

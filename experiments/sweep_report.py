"""What came out of a sweep: a table, its JSON, and which settings mattered."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from instructrec.experiments import plots
from instructrec.experiments.api import as_options
from instructrec.experiments.jsonl import write_atomic, write_json
from instructrec.experiments.listing import table
from instructrec.experiments.runfolder import RunFolder
from instructrec.experiments.sweep_spec import SweepSpec
from instructrec.experiments.sweep_trials import ERROR, configs_of, number_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

FEWEST_FOR_IMPORTANCE = 10
"""Finished trials from which it is said which settings mattered; of fewer it is a guess."""


def results_of(
    spec: SweepSpec, folder: Path, study: Study, trials: Sequence[FrozenTrial]
) -> dict[str, Any]:
    """All that a sweep found, JSON-able; trials from best to worst.

    Args:
        spec: The sweep.
        folder: Its folder.
        study: Its record.
        trials: Those that came to an end of their own.
    """
    rows = [_row(spec, folder, trial) for trial in trials]
    sign = -1 if spec.direction == "maximize" else 1
    rows.sort(key=lambda row: (row["value"] is None, sign * (row["value"] or 0), row["trial"]))
    done = [row for row in rows if row["value"] is not None]
    return {
        "name": spec.name,
        "metric": spec.metric,
        "direction": spec.direction,
        "spec": spec.to_dict(),
        "best": done[0] if done else None,
        "trials": rows,
        "importance": _importance(spec, study) if len(done) >= FEWEST_FOR_IMPORTANCE else {},
    }


def _row(spec: SweepSpec, folder: Path, trial: FrozenTrial) -> dict[str, Any]:
    completed = trial.state.name == "COMPLETE"
    row = {
        "trial": number_of(trial),
        "state": "failed" if ERROR in trial.user_attrs else trial.state.name.lower(),
        "value": trial.value if completed else None,
        "params": trial.params,
        "scores": trial.user_attrs.get("scores", []),
        "seconds": trial.user_attrs.get("seconds"),
        "error": trial.user_attrs.get(ERROR),
        "test": None,
        "runs": [],
    }
    if completed:
        folders = [config.folder for config in configs_of(spec, folder, trial)]
        summaries = [RunFolder(path).summary() for path in folders]
        row["runs"] = [str(path) for path in folders]
        if all(spec.metric in summary for summary in summaries):
            row["test"] = mean(summary[spec.metric] for summary in summaries)
    return row


def _importance(spec: SweepSpec, study: Study) -> dict[str, float]:
    """Share of each key in what tells good trials from the others (PED-ANOVA); they sum to 1.

    Source: Watanabe et al. 2023, https://arxiv.org/abs/2304.10255.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    values = [trial.value for trial in study.trials if trial.state.name == "COMPLETE"]
    if len(spec.space) < 2 or len(set(values)) < 2:
        return {}
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {key: float(share) for key, share in found.items()}


def write(results: Mapping[str, Any], folder: Path) -> None:
    """Writes ``sweep.json``, ``sweep.md`` and, where it is known what mattered, a picture of it."""
    write_json(folder / "sweep.json", results)
    write_atomic(folder / "sweep.md", to_markdown(results))
    if results["importance"]:
        title = f"{results['name']}: what decides {results['metric']}"
        plots.shares(results["importance"], folder / "importance.png", title=title)


def one_line(trial: FrozenTrial, study: Study) -> str:
    """How a trial ended, and which one is the best so far."""
    ended = trial.user_attrs.get(ERROR) or trial.state.name.lower()
    done = [t for t in study.trials if t.state.name == "COMPLETE"]
    said = ended if trial.value is None else f"{trial.value:.4f}"
    return said + (f" (best so far: {study.best_value:.4f})" if done else "")


def cells(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table of the trials with its header, as text."""
    keys = list(results["spec"]["space"])
    rows = [("trial", "state", results["metric"], "on the test split", *keys, "seconds")]
    for row in results["trials"]:
        numbers = (_number(row["value"]), _number(row["test"]))
        values = (short(row["params"].get(key, "")) for key in keys)
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        rows.append((f"t{row['trial']:03d}", row["state"], *numbers, *values, seconds))
    return rows


def to_text(results: Mapping[str, Any], folder: Path) -> str:
    """What is said at the end."""
    lines = ["", table(cells(results)), ""]
    if results["importance"]:
        shares = (f"{key} {share:.0%}" for key, share in results["importance"].items())
        lines.append(f"mattered  {', '.join(shares)}")
    if results["best"] is not None:
        lines += [f"best      {_best(results)}", f"as        {_again(results)}"]
    lines.append(f"written   {folder / 'sweep.md'}, {folder / 'sweep.json'}")
    return "\n".join(lines)


def to_markdown(results: Mapping[str, Any]) -> str:
    """The sweep as a page."""
    header, *rows = cells(results)
    lines = [
        f"# Sweep {results['name']}",
        "",
        f"{len(rows)} settings of {', '.join(results['spec']['recipe'])}, by `{results['metric']}` "
        f"({results['direction']}) on the validation split; the test split had no say.",
        "",
        f"| {' | '.join(header)} |",
        "| --- " * len(header) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    if results["best"] is not None:
        lines += [f"Best: {_best(results)}. The same settings for other runs:", ""]
        lines += [f"    {_again(results)}", ""]
    if results["importance"]:
        lines += ["| key | share of the importance |", "| --- | --- |"]
        lines += [f"| {key} | {share:.2f} |" for key, share in results["importance"].items()]
        lines += ["", "![What mattered](importance.png)", ""]
    errors = [row for row in results["trials"] if row["error"]]
    lines += [f"- t{row['trial']:03d} failed: {row['error']}" for row in errors]
    return "\n".join(lines).rstrip() + "\n"


def _best(results: Mapping[str, Any]) -> str:
    best = results["best"]
    return f"t{best['trial']:03d}, {results['metric']} = {best['value']:.4f}"


def _again(results: Mapping[str, Any]) -> str:
    spec, best = results["spec"], results["best"]
    options = as_options({**spec["settings"], **best["params"]})
    return shlex.join(["instructrec", "train", *spec["recipe"], *options])


def short(value: Any) -> str:
    """A setting in few digits."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "null" if value is None else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

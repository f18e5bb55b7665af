"""The page of a comparison."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from instructrec.envs.tasks.base import render_prompt
from instructrec.experiments.compare_charts import curves, distribution
from instructrec.experiments.compare_text import between, shown_parts, task_rows, wins
from instructrec.experiments.contenders import Comparison, Member
from instructrec.experiments.drawing import bars, key
from instructrec.experiments.page import (
    bullets,
    document,
    filters,
    long,
    marked,
    section,
    table,
    text,
)

SAMPLES = 200
"""Most instructions whose responses are shown, those first on which policies differ most."""

_INTERVALS = (
    "Intervals are of 95 %: that beside a number speaks of these very runs on other instructions, "
    "that of other runs, from three runs on, of other seeds as well. A difference is decided where "
    "p and both intervals say so; with fewer than three runs of either, for these runs alone."
)
_ENDS = ("low", "high")
_OF_RUNS = {
    "of other runs": "95 % interval of other runs on other instructions, from three runs on",
    "by seed": "the mean of each run, in the order of the table of runs",
    "IQM of tasks": "mean of the middle half of the means of all runs on all tasks",
}
_TITLES = {
    "share of wins": "wins among the instructions that differ, with its 95 % interval by item",
    "wins of a run": "probability that a run of the first beats one of the second on a task, "
    "ties counting half",
}


def page(results: dict[str, Any], comparison: Comparison) -> str:
    """The page as HTML.

    Args:
        results: What ``compare.json`` holds.
        comparison: The policies.
    """
    title = " against ".join(results["policies"])
    body = [
        f"<h1>{text(title)}</h1>",
        f"<p>{results['instructions']} instructions of {text(results['task'])} "
        f"({text(results['split'])}), by {text(results['metric'])}.</p>",
        bullets(results["verdicts"], "verdicts"),
        f"<p>{text(_INTERVALS)}</p>",
        section("Notes", bullets(results["warnings"], "notes")),
        section("Means", _means(results)),
        section("Differences", _pairs(results)),
        section("By task", _tasks(results)),
        section("Learning curves", curves(comparison, results["metric"])),
        section("Scores by instruction", distribution(results, comparison)),
        section("Responses", _samples(results, comparison)),
        section("Runs", _runs(results)),
    ]
    return document(title, body)


def _means(results: dict[str, Any]) -> str:
    """A bar with its interval for each policy, and the numbers of all rewards."""
    metric = results["metric"]
    main = results["parts"][metric]["policies"]
    others = [part for part in shown_parts(results) if part != metric]
    rows = []
    for i, (name, about) in enumerate(results["policies"].items()):
        found, length = main[name], about["response_len"]
        seeds = ", ".join(f"{mean:.3f}" for mean in found["seed_means"])
        rows.append(
            [
                key(i) + text(name),
                _interval(found),
                "-" if found["runs"] is None else between(*found["runs"]),
                f"<div class=seeds>{seeds}</div>",
                f"{found['iqm']:.3f}",
                "-" if length is None else f"{length:.1f}",
                str(len(about["runs"])),
                *(_with_other_runs(results["parts"][part]["policies"][name]) for part in others),
            ]
        )
    drawn = [(name, found["mean"], found["low"], found["high"]) for name, found in main.items()]
    head = ["policy", metric, *_OF_RUNS, "tokens", "runs", *others]
    return bars(drawn, "means with 95 % intervals") + table(head, rows, titles=_OF_RUNS)


def _interval(found: dict[str, Any], form: str = ".3f", gap: str = " ") -> str:
    """A number and its interval.

    Args:
        found: mean, low and high.
        form: How numbers are written.
        gap: What stands between; with a line break, tables of many policies stay narrow.
    """
    ends = between(found["low"], found["high"], form)
    return f"{found['mean']:{form}}{gap}<small>{ends}</small>"


def _with_other_runs(found: dict[str, Any]) -> str:
    return _interval(found) + _of_other_runs(found["runs"], ".3f")


def _of_other_runs(ends: Sequence[float | None] | None, form: str) -> str:
    if ends is None or None in ends:
        return ""
    low, high = ends
    return f"<br><small>other runs {between(low, high, form)}</small>"


def _pairs(results: dict[str, Any]) -> str:
    rows = [
        [
            f"{text(pair['a'])} - {text(pair['b'])}",
            text(part),
            _interval(pair, "+.3f") + _of_other_runs((pair["runs_low"], pair["runs_high"]), "+.3f"),
            f"{pair['p_holm']:.3g}",
            pair["decided"],
            str(pair["wins"]),
            str(pair["ties"]),
            str(pair["losses"]),
            wins(pair["win_share"]),
            f"{pair['improvement']:.2f}",
        ]
        for part in shown_parts(results)
        for pair in results["parts"][part]["pairs"]
    ]
    head = ["pair", "reward", "difference", "p (Holm)", "decided", "better", "equal", "worse"]
    return table([*head, *_TITLES], rows, titles=_TITLES)


def _tasks(results: dict[str, Any]) -> str:
    """For each task a bar of every policy, and the numbers."""
    tasks = results["parts"][results["metric"]]["tasks"]
    if not tasks:
        return ""
    of_all = [of for found in tasks.values() for of in found["policies"].values()]
    reach = [of[end] for of in of_all for end in ("mean", *_ENDS) if of[end] is not None]
    figures = []
    for label, found in tasks.items():
        drawn = [
            (name, of["mean"], *(math.nan if of[end] is None else of[end] for end in _ENDS))
            for name, of in found["policies"].items()
        ]
        chart = bars(drawn, f"means of {label} with 95 % intervals", reach=reach)
        figures.append(f"<div><h3>{text(label)} ({found['n']} instructions)</h3>{chart}</div>")
    numbers = table(
        task_rows(results)[0],
        [
            [
                text(label),
                str(found["n"]),
                *(_interval(of, gap=" <br>") for of in found["policies"].values()),
                *(_interval(of, "+.3f", " <br>") for of in found["differences"].values()),
            ]
            for label, found in tasks.items()
        ],
    )
    told = "<p>Intervals of a task are of these runs, not corrected for the number of tasks.</p>"
    return f"<div class=grid>{''.join(figures)}</div>{numbers}{told}"


def _samples(results: dict[str, Any], comparison: Comparison) -> str:
    """Responses side by side; those on which the means over runs differ most come first."""
    metric = results["metric"]
    places = comparison.kept(metric)
    ids, labels = [comparison.ids[i] for i in places], comparison.labels(places)
    means_CN = np.array([c.scores(ids, metric).mean(0) for c in comparison.contenders])
    order = np.argsort(-np.ptp(means_CN, axis=0), kind="stable")[:SAMPLES]
    members = [contender.members[0] for contender in comparison.contenders]
    lines = []
    for place in order:
        row = members[0].by_instruction[ids[place]][0]
        first = str(row["response"])
        cells = [
            _response(member, ids[place], metric, first if i else None)
            for i, member in enumerate(members)
        ]
        asked = [long(render_prompt(row["prompt"])), long(row.get("reference") or "")]
        lines.append([_difference(means_CN[:, place]), *asked, *cells])
        if len(set(labels)) > 1:
            lines[-1].append(text(labels[place]))
    head = ["difference", "instruction", "reference", *(c.name for c in comparison.contenders)]
    menus = filters({len(head): ("task", list(dict.fromkeys(labels)))})
    head += ["task"] if len(set(labels)) > 1 else []
    shown = f"{len(lines)} of {len(comparison.ids)} instructions, the largest differences first"
    several = any(len(c.members) > 1 for c in comparison.contenders)
    seeds = "; differences are of the means over runs, responses those of the first run"
    return f"<p>{text(shown + (seeds if several else ''))}.</p>{menus}" + table(
        head, lines, "samples", titles={"difference": _difference_title(comparison)}
    )


def _difference(means_C: np.ndarray) -> str:
    """Of two policies the first less the second, of more the largest less the smallest."""
    if len(means_C) == 2:
        return f"{means_C[0] - means_C[1]:+.3f}"
    return f"{np.ptp(means_C):.3f}"


def _difference_title(comparison: Comparison) -> str:
    names = [contender.name for contender in comparison.contenders]
    return f"{names[0]} less {names[1]}" if len(names) == 2 else "the best less the worst policy"


def _response(member: Member, instruction: str, metric: str, against: str | None) -> str:
    """A response below its own score; words that another one lacks are marked."""
    response = str(member.by_instruction[instruction][0]["response"])
    shown = text(response) if against is None else marked(against, response)
    scores = member.scores(instruction, metric)
    own = "no score" if scores[0] is None else f"{scores[0]:.3f}"
    if len(scores) > 1:
        own += f"; mean of {len(scores)}: {member.score(instruction, metric):.3f}"
    return f"<div class=long><small>{own}</small><br>{shown}</div>"


def _runs(results: dict[str, Any]) -> str:
    rows = [
        [
            text(name),
            text(about["algorithm"] or "-"),
            "<br>".join(text(run["path"]) for run in about["runs"]),
        ]
        for name, about in results["policies"].items()
    ]
    return table(["policy", "algorithm", "runs"], rows, "paths")

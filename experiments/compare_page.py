"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructrec.envs.tasks.base import render_prompt
from instructrec.experiments.compare_charts import curves, distribution
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
    "p and both intervals say so; with fewer than three runs of both, for these runs alone."
)


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
        section("Learning curves", curves(comparison)),
        section("Scores by instruction", distribution(results, comparison)),
        section("Responses", _samples(results, comparison)),
        section("Runs", _runs(results)),
    ]
    return document(title, body)


def _means(results: dict[str, Any]) -> str:
    """A bar with its interval for each policy, and the numbers of all rewards."""
    main = results["parts"][results["metric"]]["policies"]
    parts = list(results["parts"])
    rows = [
        [
            key(i) + text(name),
            *(_interval(results["parts"][part]["policies"][name]) for part in parts),
            "-" if about["response_len"] is None else f"{about['response_len']:.1f}",
            str(len(about["runs"])),
        ]
        for i, (name, about) in enumerate(results["policies"].items())
    ]
    drawn = [(name, found["mean"], found["low"], found["high"]) for name, found in main.items()]
    return bars(drawn, "means with 95 % intervals") + table(
        ["policy", *parts, "tokens", "runs"], rows
    )


def _interval(found: dict[str, Any]) -> str:
    low, high = found["low"], found["high"]
    others = _of_other_runs(found["runs"], ".3f")
    return f"{found['mean']:.3f} <small>{low:.3f} to {high:.3f}</small>{others}"


def _of_other_runs(ends: Sequence[float | None] | None, form: str) -> str:
    if ends is None or None in ends:
        return ""
    low, high = ends
    return f"<br><small>other runs {low:{form}} to {high:{form}}</small>"


def _pairs(results: dict[str, Any]) -> str:
    rows = [
        [
            f"{text(pair['a'])} - {text(pair['b'])}",
            text(part),
            f"{pair['mean']:+.3f} <small>{pair['low']:+.3f} to {pair['high']:+.3f}</small>"
            + _of_other_runs((pair["runs_low"], pair["runs_high"]), "+.3f"),
            f"{pair['p_holm']:.3g}",
            pair["decided"],
            str(pair["wins"]),
            str(pair["ties"]),
            str(pair["losses"]),
            _wins(pair["win_share"]),
            f"{pair['improvement']:.2f}",
        ]
        for part, found in results["parts"].items()
        for pair in found["pairs"]
    ]
    head = ["pair", "reward", "difference", "p (Holm)", "decided", "better", "equal", "worse"]
    return table([*head, "share of wins", "wins of a run"], rows)


def _wins(share: dict[str, Any] | None) -> str:
    if share is None:
        return "-"
    return f"{share['mean']:.2f} <small>{share['low']:.2f} to {share['high']:.2f}</small>"


def _tasks(results: dict[str, Any]) -> str:
    tasks = results["parts"][results["metric"]]["tasks"]
    if not tasks:
        return ""
    names = list(results["policies"])
    rows = [
        [text(label), *(f"{means[name]:.3f}" for name in names)] for label, means in tasks.items()
    ]
    return table(["task", *names], rows)


def _samples(results: dict[str, Any], comparison: Comparison) -> str:
    """Responses side by side; those on which the policies differ most come first."""
    metric = results["metric"]
    members = [contender.members[0] for contender in comparison.contenders]
    rows = comparison.rows
    spread = []
    for place in comparison.kept(metric):
        found = [member.score(comparison.ids[place], metric) for member in members]
        spread.append((max(found) - min(found), place))
    chosen = [place for _, place in sorted(spread, key=lambda item: (-item[0], item[1]))[:SAMPLES]]
    lines = []
    for place in chosen:
        row, instruction = rows[place], comparison.ids[place]
        first = str(members[0].by_instruction[instruction][0]["response"])
        cells = [
            _response(member, instruction, metric, first if i else None)
            for i, member in enumerate(members)
        ]
        prompt, label = render_prompt(row["prompt"]), comparison.labels([place])[0]
        lines.append([long(prompt), long(row.get("reference") or ""), *cells, text(label)])
    head = ["instruction", "reference", *(c.name for c in comparison.contenders), "task"]
    shown = f"{len(lines)} of {len(comparison.ids)} instructions, the largest differences first"
    seeds = (
        "; of several runs those of the first"
        if any(len(c.members) > 1 for c in comparison.contenders)
        else ""
    )
    tasks = list(dict.fromkeys(comparison.labels(chosen)))
    menus = filters({len(head) - 1: ("task", tasks)})
    return f"<p>{text(shown + seeds)}.</p>{menus}" + table(head, lines, "samples")


def _response(member: Member, instruction: str, metric: str, against: str | None) -> str:
    """A response with its score; words that another one lacks are marked."""
    response = str(member.by_instruction[instruction][0]["response"])
    shown = text(response) if against is None else marked(against, response)
    return f"<div class=long>{shown} <small>{member.score(instruction, metric):.3f}</small></div>"


def _runs(results: dict[str, Any]) -> str:
    rows = [
        [
            text(name),
            text(about["algorithm"] or "-"),
            "<br>".join(text(run["path"]) for run in about["runs"]),
        ]
        for name, about in results["policies"].items()
    ]
    return table(["policy", "algorithm", "runs"], rows)

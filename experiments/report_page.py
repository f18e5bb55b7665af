"""The page of a report on one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from instructrec.envs.tasks.base import render_prompt
from instructrec.experiments import report_text, reward_report
from instructrec.experiments.classes import class_rows
from instructrec.experiments.contenders import Member
from instructrec.experiments.drawing import bars, shares
from instructrec.experiments.jsonl import Row
from instructrec.experiments.page import (
    bullets,
    document,
    facts,
    filters,
    long,
    marked,
    section,
    table,
    text,
)
from instructrec.experiments.report_curves import curves
from instructrec.experiments.report_reading import Reading

SAMPLES = 200
"""Most held-out instructions whose responses are shown, the largest changes first."""
STAGE = 60
"""Most responses of the rollouts shown of each stage of the training."""
_STAGES = ("early", "middle", "late")


def page(results: dict[str, Any], reading: Reading) -> str:
    """The page as HTML.

    Args:
        results: What ``report.json`` holds.
        reading: The run.
    """
    trained = results["job_type"] != "eval"
    scores, families = report_text.score_rows(results), report_text.family_rows(results)
    levels, faults = report_text.level_rows(results), report_text.fault_rows(results)
    classes = class_rows(results["classes"]) if results["classes"] else []
    body = [
        f"<h1>{text(results['name'])}</h1>",
        f"<p>{text(report_text.headline(results).removeprefix(results['name'] + ': '))}.</p>",
        bullets(results["verdicts"], "verdicts"),
        section("Warnings", bullets(results["warnings"], "notes")),
        section("Monitors", _monitors(results)),
        section("Faults", _plain_table(faults) if results["faults"] else ""),
        section("Result on held-out instructions", _result(results, scores)),
        section("What it has learned", _learned(results)),
        section("By class", _plain_table(classes) if classes else ""),
        section("By family", _plain_table(families) if results["families"] else ""),
        section("By level", _plain_table(levels) if results["levels"] else ""),
        section("Learning curves", curves(reading.updates, reading.unit)),
        section("Time", _time(results)),
        section("Responses to held-out instructions", _answers(reading)),
        section("Scores of held-out rows", _scored(reading)),
        section("Responses during training", _rollouts(reading)),
        section(
            "What was trained" if trained else "What was measured",
            facts(report_text.fact_rows(results)),
        ),
        section("Again", _again(results, reading)),
    ]
    return document(results["name"], body)


def _plain_table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *lines = rows
    return table(head, [[text(cell) for cell in line] for line in lines])


def _monitors(results: dict[str, Any]) -> str:
    """What monitors saw and did, and the responses that show it."""
    if not results["monitors"]:
        return ""
    lines = [
        [
            text(report_text.shown_by(alarm)),
            long(render_prompt(row.get("prompt", ""))),
            long(row.get("response", "")),
            _score(row.get("total")),
            _parts(row),
        ]
        for alarm in results["monitors"]
        for row in alarm.get("samples", ())
    ]
    columns = ["shows", "instruction", "response", "score", "parts"]
    shown = "<h3>Responses that show it</h3>" + table(columns, lines, "samples") if lines else ""
    head, *rung = report_text.monitor_rows(results)
    return table(head, [[*map(text, row[:-1]), long(row[-1])] for row in rung]) + shown


def _parts(row: Row) -> str:
    return text(", ".join(f"{k} {_score(v)}" for k, v in row.get("parts", {}).items()))


def _result(results: dict[str, Any], scores: Sequence[tuple[str, ...]]) -> str:
    if not results["scores"]:
        return ""
    nan = float("nan")
    drawn = [
        (name, found["mean"], *(nan if found[e] is None else found[e] for e in ("low", "high")))
        for name, found in report_text.shown_scores(results).items()
    ]
    return bars(drawn, "scores with 95 % intervals") + _plain_table(scores)


def _learned(results: dict[str, Any]) -> str:
    """The tables of a reward model."""
    tables = report_text.learned_tables(results)
    shown = [
        f"<h3>{text(t.title)}</h3>{_plain_table(t.rows)}"
        if t.title
        else facts([(name, value) for name, value in t.rows])
        for t in tables
    ]
    note = reward_report.of_the_choice(results["learned"])
    return "".join(shown) + (f"<p>{text(note)}</p>" if note else "")


def _scored(reading: Reading) -> str:
    """Pairs, or instructions with outputs, and their scores; the worst come first."""
    rows = reading.scored
    if not rows:
        return ""
    if "rejected" in rows[0]:
        rows = sorted(rows, key=_ahead)[:SAMPLES]
        head = ["ahead by", "instruction", "chosen", "rejected", "score", "the other's"]
        lines = [
            [
                *(f"{_ahead(row):+.3f}", _asked(row), long(row["chosen"]), long(row["rejected"])),
                *(_score(row["chosen_score"]), _score(row["rejected_score"])),
            ]
            for row in rows
        ]
    else:
        rows = sorted(rows, key=_beaten)[:SAMPLES]
        head = ["above others", "score", "instruction", "output", "cosine"]
        lines = [
            [
                *(_score(row.get("above_others")), _score(row["score"]), _asked(row)),
                *(long(row["output"]), _score(row["cosine"])),
            ]
            for row in rows
        ]
    told = f"<p>{len(lines)} of {len(reading.scored)} rows, what it got most wrong first.</p>"
    return told + filters() + table(head, lines, "samples")


def _asked(row: Row) -> str:
    return long(render_prompt(row["prompt"]))


def _ahead(row: Row) -> float:
    """How far the preferred response is ahead of the other one."""
    return float(row["chosen_score"] - row["rejected_score"])


def _beaten(row: Row) -> tuple[float, float]:
    """Share of mismatched outputs that the own one is above, where it is known; then its score."""
    above = row.get("above_others")
    return (1.0 if above is None else float(above)), float(row["score"])


def _time(results: dict[str, Any]) -> str:
    lines = bullets(report_text.time_lines(results), "notes")
    return shares(list(results["phases"].items()), "shares of a median update") + lines


def _answers(reading: Reading) -> str:
    """Held-out responses, beside those before where there are some."""
    if reading.evaluation is None:
        return ""
    after = Member(reading.path, reading.evaluation)
    before = None if reading.before is None else Member(reading.path, reading.before)
    ids = list(after.by_instruction)
    if before is not None:
        ids = [key for key in ids if key in before.by_instruction]
        gain = {key: after.score(key, "total") - before.score(key, "total") for key in ids}
        ids.sort(key=lambda key: -abs(gain[key]) if gain[key] == gain[key] else 1.0)
    labels = {key: _label(after.by_instruction[key][0]) for key in ids[:SAMPLES]}
    families = list(dict.fromkeys(labels.values()))
    lines: list[list[str]] = []
    for key, label in labels.items():
        row = after.by_instruction[key][0]
        asked = [long(render_prompt(row["prompt"])), long(row.get("reference") or "")]
        scores, answers = [_score(after.score(key, "total"))], [_answer(after, key, None)]
        if before is not None:
            first = str(before.by_instruction[key][0]["response"])
            scores.append(_score(before.score(key, "total")))
            answers = [_answer(before, key, None), _answer(after, key, first)]
        lines.append([*scores, *asked, *answers] + ([text(label)] if len(families) > 1 else []))
    head = ["score", "instruction", "reference", "response"]
    if before is not None:
        head = ["score", "score before", "instruction", "reference", "before", "after"]
    order = "" if before is None else ", the largest changes first"
    told = f"<p>{len(lines)} of {len(after.by_instruction)} instructions{order}.</p>"
    menus = filters({len(head): ("family", families)})
    return told + menus + table(head + ["family"] * (len(families) > 1), lines, "samples")


def _label(row: Row) -> str:
    return str(row.get("task") or row.get("family") or "")


def _answer(member: Member, instruction: str, against: str | None) -> str:
    """A response; one of several samples with its own score, as the column has their mean."""
    response = str(member.by_instruction[instruction][0]["response"])
    shown = text(response) if against is None else marked(against, response)
    scores = member.scores(instruction, "total")
    if len(scores) > 1:
        own = f"this one {_score(scores[0])}; the score is the mean of {len(scores)}"
        shown = f"<small>{own}</small><br>{shown}"
    return f"<div class=long>{shown}</div>"


def _score(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _rollouts(reading: Reading) -> str:
    """Responses of the first, the middle and the last updates of which some were kept."""
    rows = reading.samples
    if not rows:
        return ""
    size = min(STAGE, max(1, len(rows) // 3))
    middle = (len(rows) - size) // 2
    chosen = dict(
        zip(_STAGES, (rows[:size], rows[middle : middle + size], rows[-size:]), strict=True)
    )
    if len(rows) < 3:
        chosen = {"early": rows}
    lines = [
        [
            stage,
            text(row.get("update", "-")),
            long(render_prompt(row.get("prompt", ""))),
            long(row.get("response", "")),
            _score(row.get("total")),
            _parts(row),
            text(row.get("stop_reason") or "-"),
        ]
        for stage, found in chosen.items()
        for row in found
    ]
    reasons = list(
        dict.fromkeys(str(r.get("stop_reason") or "-") for f in chosen.values() for r in f)
    )
    head = ["stage", reading.unit, "instruction", "response", "score", "parts", "ended by"]
    menus = filters({0: ("stage", list(chosen)), len(head) - 1: ("ended by", reasons)})
    return f"<p>{len(lines)} of {len(rows)} kept.</p>{menus}" + table(head, lines, "samples")


def _again(results: dict[str, Any], reading: Reading) -> str:
    """The command, what it ran on, and all settings."""
    command = report_text.command_of(results)
    settings = yaml.safe_dump(reading.config, sort_keys=False, allow_unicode=True)
    return (
        (f"<pre>{text(command)}</pre>" if command else "")
        + facts(report_text.machine_rows(results))
        + f"<details><summary>All settings</summary><pre>{text(settings)}</pre></details>"
    )

"""A report in words and tables: for a terminal, and as Markdown."""

from __future__ import annotations

import shlex
from typing import Any

from instructrec.envs.tasks.base import render_prompt
from instructrec.experiments import classes, reward_report, speeds
from instructrec.experiments.before_after import verdict_head
from instructrec.experiments.jsonl import Row
from instructrec.experiments.listing import inert, markdown_table, table
from instructrec.experiments.progress import format_duration
from instructrec.metrics import lookup

_LABELS = {
    "reward/total/mean": "training reward",
    "eval/total/mean": "validation score",
    "ppo/kl_ref": "KL from the reference",
    "ppo/entropy": "entropy",
    "ppo/clip_frac": "clipped tokens",
    "rollout/response_len": "response length",
    "rollout/truncated_frac": "responses cut short",
    "sft/loss": "loss",
    "sft/val_loss": "validation loss",
    "dpo/loss": "loss",
    "dpo/val_loss": "validation loss",
    "dpo/accuracy": "preferences told apart",
    "dpo/val_accuracy": "validation preferences told apart",
    "dpo/margin": "implicit reward, chosen less rejected",
    "dpo/val_margin": "the same on validation pairs",
    "sft/accuracy": "labels right",
    "sft/val_accuracy": "validation labels right",
    "raft/loss": "loss",
    "rm/loss": "loss",
    "rm/val_loss": "validation loss",
    "rm/accuracy": "accuracy",
    "rm/val_accuracy": "validation accuracy",
    "rm/margin": "score of chosen less rejected",
}


_SHOWN = 300
"""Characters of a response in a table of Markdown."""


def to_text(results: dict[str, Any]) -> str:
    """The report for a terminal."""
    blocks = [
        headline(results),
        "\n".join(results["verdicts"]),
        table(score_rows(results)) if results["scores"] else "",
        table(classes.class_rows(results["classes"])) if results["classes"] else "",
        *(t.title + "\n" * bool(t.title) + table(t.rows) for t in learned_tables(results)),
        table(course_rows(results)) if results["course"] else "",
        "\n".join(time_lines(results)),
        "\n".join(f"warning: {text}" for text in results["warnings"]),
        table(monitor_rows(results)) if results["monitors"] else "",
        table(fault_rows(results)) if results["faults"] else "",
        f"again  {command_of(results)}" if results["command"] else "",
    ]
    return "\n\n".join(block for block in blocks if block)


def to_markdown(results: dict[str, Any]) -> str:
    """The report as Markdown."""
    blocks = [
        f"# {results['name']}",
        headline(results) + ".",
        "\n".join(f"- {text}" for text in results["verdicts"]),
        "## What was trained" if results["job_type"] != "eval" else "## What was measured",
        markdown_table([("", ""), *fact_rows(results)]),
    ]
    if results["scores"]:
        blocks += ["## Result on held-out instructions", markdown_table(score_rows(results))]
    if results["learned"]:
        blocks += ["## What it has learned", reward_report.in_markdown(results["learned"])]
    if results["classes"]:
        blocks += ["## By class", markdown_table(classes.class_rows(results["classes"]))]
    if results["families"]:
        blocks.append(markdown_table(family_rows(results)))
    if results["levels"]:
        blocks.append(markdown_table(level_rows(results)))
    if results["course"]:
        blocks += ["## How it went", markdown_table(course_rows(results))]
    blocks.append("\n".join(f"- {line}" for line in time_lines(results)))
    if results["warnings"]:
        blocks += ["## Warnings", "\n".join(f"- {inert(text)}" for text in results["warnings"])]
    if results["monitors"]:
        blocks += ["## Monitors", *_monitors_in_markdown(results)]
    if results["faults"]:
        blocks += [
            "## Faults",
            markdown_table([tuple(map(inert, row)) for row in fault_rows(results)]),
        ]
    blocks += (
        ["## Again", f"```console\n$ {command_of(results)}\n```"] if results["command"] else []
    )
    blocks.append("\n".join(f"- {name}: {value}" for name, value in machine_rows(results)))
    return "\n\n".join(block for block in [*blocks, ""] if block) + "\n"


def headline(results: dict[str, Any]) -> str:
    """What kind of run it is, on what, how far it came, and in what time."""
    task, model = results["task"], results["base_model"]
    if results["job_type"] == "eval":
        return f"{results['name']}: an evaluation of {model} on {task}, {results['status']}"
    unit = f"{results['unit']}s"
    planned = results["planned"]
    of = f" of {planned}" if planned and planned != results["done"] else ""
    took = results["seconds"]
    time = f" in {format_duration(took)}" if took is not None else ""
    return (
        f"{results['name']}: {results['algorithm']} from {model} on {task}, "
        f"{results['status']} after {results['done']}{of} {unit}{time}"
    )


def fact_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What was trained, on what and how: names and values."""
    settings = dict(results["settings"])
    rewards = ", ".join(f"{weight} × {name}" for name, weight in settings.pop("rewards").items())
    names = {"base_model": "model", "parent": "parent run", "task": "task", "seed": "seed"}
    rows = [(label, str(results[key])) for key, label in names.items() if results[key] is not None]
    rows += [("rewards", rewards)] if rewards else []
    if results["job_type"] != "eval":
        rows.insert(0, ("algorithm", str(results["algorithm"])))
    rows += [(key, str(value)) for key, value in settings.items()]
    kept = results["best_update"]
    if kept is not None and kept != results["done"]:
        what = "model" if results["job_type"] == "reward-model" else "policy"
        rows.append(("kept", f"the {what} of number {kept}, the best on the validation split"))
    return rows


def learned_tables(results: dict[str, Any]) -> list[reward_report.Table]:
    """What a reward model has learned; nothing for other runs, and before its end."""
    return reward_report.tables(results["learned"]) if results["learned"] else []


def shown_scores(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Scores to show: of a single reward and a total that is the same only the reward."""
    scores: dict[str, dict[str, Any]] = results["scores"]
    rewards = [name for name in scores if not name.startswith("corpus ")]
    if len(rewards) == 2 and "total" in rewards and scores[rewards[0]] == scores[rewards[1]]:
        return {name: found for name, found in scores.items() if name != "total"}
    return scores


def score_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The final evaluation, beside the start where one was found."""
    by_part = {change["part"]: change for change in results["changes"]}
    head: tuple[str, ...] = ("held-out", "score", "95 % interval")
    verdict = verdict_head(change["judged"] for change in results["changes"])
    rows = [(*head, "before", "difference", "95 % interval", verdict) if by_part else head]
    for name, found in shown_scores(results).items():
        row: tuple[str, ...] = (name, _number(found["mean"]), _between(found["low"], found["high"]))
        if by_part and (change := by_part.get(name)):
            row += (
                _number(change["before"]),
                f"{change['after'] - change['before']:+.3f}",
                _between(change["low"], change["high"], "+.3f"),
                change["verdict"],
            )
        elif by_part:
            row += ("-",) * 4
        rows.append(row)
    for name, found in results["bounds"]["totals"].items():
        ends = _between(found["low"], found["high"])
        blank = ("-",) * (len(rows[0]) - 3)
        rows.append((f"bound {name}", _number(found["mean"]), ends, *blank))
    return rows


def family_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The total by family of instructions."""
    return _group_rows("family", results["families"])


def level_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The total by level of difficulty."""
    return _group_rows("level", results["levels"])


def _group_rows(name: str, groups: dict[str, Any]) -> list[tuple[str, ...]]:
    before = any("before" in found for found in groups.values())
    head = ("before",) if before else ()
    rows: list[tuple[str, ...]] = [(name, "instructions", *head, "score", "95 % interval")]
    for group, found in groups.items():
        start = (_number(found.get("before")),) if before else ()
        ends = _between(found["low"], found["high"])
        rows.append((group, str(found["n"]), *start, _number(found["after"]), ends))
    return rows


def course_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """First and last value of what a reader follows during training."""
    rows: list[tuple[str, ...]] = [("during training", "first", "last", "unit")]
    for key, found in results["course"].items():
        label = _LABELS.get(key) or f"reward {key.removeprefix('reward/').removesuffix('/mean')}"
        unit = lookup(key).unit
        rows.append((label, f"{found['first']:.3f}", f"{found['last']:.3f}", unit))
    return rows


def fault_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """What went wrong, how often, and in which updates."""
    rows: list[tuple[str, ...]] = [("fault", "of", "count", "updates", "first time")]
    for fault in results["faults"]:
        first, last = fault["first"], fault["last"]
        when = str(first) if first == last else f"{first} to {last}"
        kind = f"{fault['boundary']}: {fault['kind']}"
        rows.append((kind, str(fault["name"]), str(fault["count"]), when, fault["message"]))
    return rows


def monitor_rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """What monitors saw, when, and what they did about it."""
    rows: list[tuple[str, ...]] = [("monitor", "update", "action", "what it saw")]
    for alarm in results["monitors"]:
        done = ": ".join(filter(None, (alarm["action"], alarm["effect"])))
        rows.append((alarm["monitor"], str(alarm.get("update", "?")), done, alarm["message"]))
    return rows


def shown_by(alarm: Row) -> str:
    """Says which alarm some responses belong to."""
    return f"{alarm['monitor']}, update {alarm.get('update', '?')}"


def _monitors_in_markdown(results: dict[str, Any]) -> list[str]:
    """The alarms, and behind them the responses that show each."""
    blocks = [markdown_table([tuple(map(inert, row)) for row in monitor_rows(results)])]
    for alarm in results["monitors"]:
        if alarm.get("samples"):
            rows = [("instruction", "response", "score"), *map(_sample_cells, alarm["samples"])]
            cells = [tuple(inert(cell) for cell in row) for row in rows]
            blocks += [f"Responses that show it ({shown_by(alarm)}):", markdown_table(cells)]
    return blocks


def _sample_cells(row: Row) -> tuple[str, str, str]:
    response = " ".join(str(row.get("response", "")).split())
    if len(response) > _SHOWN:
        response = response[: _SHOWN - 1] + "…"
    prompt = " ".join(render_prompt(row.get("prompt", "")).split())
    return prompt, response, _number(row.get("total"))


def time_lines(results: dict[str, Any]) -> list[str]:
    """Where the time went, how fast it was, and how much of the machine was used."""
    lines, phases = [], results["phases"]
    total = sum(phases.values())
    if total:
        cut = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in phases.items())
        lines.append(f"median update {total:.1f} s: {cut}")
    if speed := speeds.in_words(results["speed"]):
        lines.append(speed)
    used = results["critic_updates"]
    if used is not None:
        lines.append(f"the critic was the baseline in {used} of {results['done']} updates")
    return lines


def machine_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What it ran on and with."""
    machine, rows = results["machine"] or {}, []
    if machine:
        memory = machine.get("memory_bytes")
        amount = f", {memory / 2**30:.0f} GiB" if memory else ""
        gpus = ", ".join(machine.get("gpus") or [])
        cores = f"{machine.get('cores')} cores, {machine.get('cpu')}{amount}"
        rows.append(("machine", cores + (f", {gpus}" if gpus else "")))
    if (results["processes"] or 1) > 1:
        rows.append(("processes", str(results["processes"])))
    if results["git_commit"]:
        rows.append(("commit", str(results["git_commit"])))
    versions = ", ".join(f"{name} {v}" for name, v in (results["versions"] or {}).items())
    return [*rows, ("versions", versions)] if versions else rows


def command_of(results: dict[str, Any]) -> str:
    """The command line that made the run, without flags that only continue one."""
    words = [word for word in results["command"] if word not in ("--resume", "--overwrite")]
    return shlex.join(words)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _between(low: float | None, high: float | None, form: str = ".3f") -> str:
    if low is None or high is None or low != low or high != high:
        return "-"
    return f"{low:{form}} to {high:{form}}"

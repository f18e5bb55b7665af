"""``instructrec report RUN``: what one run was, how it went and what came of it.

Reads run folders alone, those of unfinished and failed runs too. It writes ``report.json``,
``report.md`` and a page for the browser.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from instructrec.errors import ConfigError
from instructrec.experiments import report_page, reward_report, telling
from instructrec.experiments.before_after import kept_in_words
from instructrec.experiments.bounds import read_bounds
from instructrec.experiments.env_commands import shown
from instructrec.experiments.fault_log import summed
from instructrec.experiments.groups import by_family, by_level, totals_of
from instructrec.experiments.jsonl import Row, write_atomic, write_json
from instructrec.experiments.report_reading import Reading, read_run
from instructrec.experiments.report_text import to_markdown, to_text

PHASES = {"rollout": "rollout", "score": "scoring", "advantage": "advantages", "update": "update"}
"""Part of the key ``time/<part>_s`` -> what the phase is called."""


@dataclass(frozen=True)
class ReportConfig:
    """What a report says, and where it goes (``instructrec report``)."""

    before: str | None = None
    """Evaluation of the start: a run folder or .jsonl; None looks for one of the same kind."""
    out: str | None = None
    """Folder of the report; None takes report/ in the run folder."""


def report(
    run: str, config: ReportConfig | None = None, *, say: telling.Say = telling.say
) -> dict[str, Any]:
    """Reports on a run and writes the result.

    Args:
        run: Its folder.
        config: See `ReportConfig`.
        say: Receives the report.

    Returns:
        What ``report.json`` holds.

    Raises:
        CheckpointError: It is no run folder, or a file of it cannot be read.
        ConfigError: It is a quickstart or a comparison, or ``out`` holds something else.
        DataError: The evaluation of the start is of another kind.
    """
    config = config or ReportConfig()
    reading = read_run(Path(run), config.before)
    out = Path(config.out) if config.out else reading.path / "report"
    if out.exists() and any(out.iterdir()) and not (out / "report.json").exists():
        raise ConfigError(
            f"{out} is not empty and holds no report: expected a new folder, or one of an earlier "
            "report. Choose another one with --out."
        )
    results = results_of(reading)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "report.json", results)
    write_atomic(out / "report.md", to_markdown(results))
    write_atomic(out / "report.html", report_page.page(results, reading))
    say(shown(to_text(results)))  # names and messages come from files of whoever ran it
    say(f"\nwritten  {out / 'report.md'}, {out / 'report.json'}, {out / 'report.html'}")
    return results


# Numbers ------------------------------------------------------------------------------------------


def results_of(reading: Reading) -> dict[str, Any]:
    """All that a report says, JSON-able."""
    record = reading.record
    return {
        "run": str(reading.path),
        "name": reading.config.get("name") or reading.path.name,
        **{key: record.get(key) for key in ("job_type", "algorithm", "variant", "seed")},
        **{key: record.get(key) for key in ("base_model", "parent", "task", "status", "error")},
        "unit": reading.unit,
        "seconds": _seconds(record),
        "done": reading.done,
        "planned": _planned(reading),
        "stopped": reading.summary.get("stopped"),
        "best_update": reading.summary.get("best_update"),
        "settings": _settings(reading),
        "scores": _scores(reading),
        "changes": [{**asdict(c), "verdict": c.verdict} for c in reading.changes],
        "before": None if reading.before is None else str(reading.before.path),
        "bounds": read_bounds(None if reading.evaluation is None else reading.evaluation.path),
        "families": totals_of(reading.evaluation, reading.before, "family", by_family),
        "levels": totals_of(reading.evaluation, reading.before, "level", by_level),
        "learned": reading.learned,
        "classes": reading.summary.get("classes"),
        "course": _course(reading),
        "phases": _phases(reading),
        "speed": {key: value for key, value in reading.summary.items() if key.startswith("speed/")},
        "critic_updates": reading.summary.get("critic_updates"),
        "verdicts": _verdicts(reading),
        "monitors": [row for row in reading.warnings if "monitor" in row],
        "warnings": [_warned(r, reading.unit) for r in reading.warnings if "monitor" not in r],
        "faults": summed(reading.faults),
        "command": record.get("command", []),
        **{key: record.get(key) for key in ("git_commit", "machine", "versions", "processes")},
    }


def _warned(row: Row, unit: str) -> str:
    return f"{unit} {row.get('update', '?')}: {row.get('message', '')}"


def _seconds(record: Row) -> float | None:
    """Wall time from the start to the end, pauses of a continued run included."""
    try:
        ends = [datetime.fromisoformat(record[key]) for key in ("started", "finished")]
    except (KeyError, TypeError, ValueError):
        return None
    return (ends[1] - ends[0]).total_seconds()


def _planned(reading: Reading) -> int | None:
    settings = reading.config.get(reading.section)
    key = "max_steps" if reading.unit == "step" else "num_updates"
    return settings.get(key) if isinstance(settings, dict) else None


def _settings(reading: Reading) -> dict[str, Any]:
    """The settings that decide most, by dotted key."""
    wanted = {
        "policy": ("train", "num_layers", "dtype", "quantization", "system_prompt"),
        "task": ("options", "env", "validation", "test", "limit"),
        "ppo": ("episodes_per_update", "num_generations", "num_ppo_epochs", "num_mini_batches",
                "learning_rate", "advantage", "critic", "kl_coef", "kl_penalty", "cliprange",
                "response_length", "temperature", "prompt_filter"),
        "sft": ("head", "demonstrations", "batch_size", "learning_rate", "eval_every", "best_by"),
        "dpo": ("pairs", "batch_size", "learning_rate", "beta", "eval_every", "best_by"),
        "fit": ("batch_size", "learning_rate", "max_length", "eval_every", "best_by"),
        "preference": ("margins", "margin_scale", "center_coef"),
        "alignment": ("scale", "bias", "learning_rate"),
    }  # fmt: skip
    found: dict[str, Any] = {"rewards": _weights(reading.config.get("rewards"))}
    for section, keys in wanted.items():
        values = reading.config.get(section)
        if isinstance(values, dict):
            found |= {f"{section}.{key}": values[key] for key in keys if values.get(key)}
    if found.get("policy.train") not in ("last_layers", "lora"):
        found.pop("policy.num_layers", None)
    for key, needed in (
        ("fit.best_by", "fit.eval_every"),
        ("preference.margin_scale", "preference.margins"),
    ):
        if needed not in found:  # then it had no effect
            found.pop(key, None)
    return found


def _weights(rewards: Any) -> dict[str, Any]:
    """Name -> weight, or what makes it; an evaluation of a task may have a plain name."""
    if not isinstance(rewards, dict):
        return {} if rewards is None else {str(rewards): 1.0}
    return {
        name: spec.get("weight", 1.0) if isinstance(spec, dict) else spec
        for name, spec in rewards.items()
    }


def _scores(reading: Reading) -> dict[str, dict[str, float | None]]:
    """Name -> mean and interval of the final evaluation: rewards, the total, corpus metrics."""
    if reading.learned:  # the tables of a reward model say more
        return {}
    summary, found = reading.summary, {}
    for key, value in summary.items():
        name, _, last = key.removeprefix("eval/").rpartition("/")
        inner = name.removeprefix("corpus/")
        is_score = key.startswith("eval/") and last in ("mean", "score") and "/" not in inner
        if is_score and value is not None:
            ends = {e: summary.get(f"eval/{name}/ci_{e}") for e in ("low", "high")}
            found[name.replace("/", " ")] = {"mean": value, **ends}
    return found


_COURSE = (
    *("reward/total/mean", "ppo/kl_ref", "ppo/entropy", "rollout/response_len"),
    *("rollout/truncated_frac", "ppo/clip_frac", "sft/loss", "dpo/loss", "raft/loss", "rm/loss"),
    *("sft/accuracy", "dpo/accuracy", "dpo/margin", "rm/accuracy", "rm/margin"),
    *("eval/total/mean", "sft/val_loss", "dpo/val_loss", "rm/val_loss"),
    *("sft/val_accuracy", "dpo/val_accuracy", "dpo/val_margin", "rm/val_accuracy"),
)


def _course(reading: Reading) -> dict[str, dict[str, float]]:
    """Key -> its first and its last value, and those of its evaluations during training."""
    keys = [*_COURSE]
    keys += [f"reward/{name}/mean" for name in _weights(reading.config.get("rewards"))]
    found = {}
    for key in keys:
        values = [row[key] for row in reading.updates if row.get(key) is not None]
        if values:
            found[key] = {"first": values[0], "last": values[-1]}
    return found


def _phases(reading: Reading) -> dict[str, float]:
    """Phase -> its seconds in a median update; `other` is what no phase accounts for."""
    rows = [row for row in reading.updates if row.get("time/total_s")]
    if not rows:
        return {}
    found = {
        name: median(row.get(f"time/{part}_s") or 0.0 for row in rows)
        for part, name in PHASES.items()
    }
    other = median(row["time/total_s"] for row in rows) - sum(found.values())
    return found | {"other": max(other, 0.0)}


def _verdicts(reading: Reading) -> list[str]:
    """How it ended and whether it helped, in sentences."""
    record, found = reading.record, []
    if record.get("status") == "failed":
        error = str(record.get("error", "no reason was recorded"))
        found.append(f"failed: {' '.join(error.split())}")  # an item of a list is one line
    elif record.get("status") == "interrupted":
        found.append("interrupted; the same command with --resume goes on.")
    elif record.get("status") == "running":
        found.append("not finished: it is still running, or was killed (--resume goes on).")
    if reading.learned:
        found.append(reward_report.verdict(reading.learned))
    if reading.changes:
        found.append(reading.changes[0].in_words())
    elif record["job_type"] != "eval" and reading.evaluation is not None:
        found.append(telling.UNKNOWN_BEFORE)
    kept = reading.summary.get("kept") or {}
    return found + [kept_in_words(name, of_it) for name, of_it in kept.items()]


if __name__ == "__main__":
    from instructrec.experiments.cli import main

    sys.exit(main(["report", *sys.argv[1:]]))

"""``instructrec rewards list | show | check | score``: for people who use or write rewards."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec.errors import RewardError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

CHECKED_ROWS = 32
"""Rows of a data file that a check looks at."""
_SPEC = "A registered name, module:attr or file.py:attr."


def build(parser: ArgumentParser) -> None:
    """Adds the four commands to the parser of ``instructrec rewards``."""
    from instructrec.experiments import command_line
    from instructrec.experiments.score_file import ScoreConfig

    def add(name: str, text: str) -> ArgumentParser:
        made = command_line.make_parser(f"instructrec rewards {name}", text)
        commands.add_subcommand(name, made, help=text)
        return made

    commands = parser.add_subcommands(required=True, dest="action")
    add("list", "List the registered rewards.")
    add("show", "Show what a reward measures, its columns and options.").add_argument(
        "spec", help=_SPEC
    )
    check = add("check", "Look for what goes wrong with rewards, before a run does.")
    check.add_argument("spec", help=_SPEC)
    check.add_argument(
        "--data", type=str, help="JSONL, CSV or Parquet file with prompts and the columns it reads."
    )
    check.add_argument("--options", type=dict[str, Any], default={}, help="Options of the reward.")
    check.add_argument(
        "--format", type=str, help="What it reads: text or chat; not given: what it declares."
    )
    check.add_argument(
        "--timeout", type=float, default=120.0, help="Seconds of one call, then it hangs."
    )
    score = add("score", "Score the responses of a file.")
    score.add_argument("spec", help=f"{_SPEC} Or a YAML file: its `rewards` together.")
    score.add_class_arguments(ScoreConfig)
    score.add_argument(
        "--overwrite", action="store_true", help="Replace an existing file of scores."
    )


def run(values: Namespace, command: list[str]) -> None:
    """Runs one of them.

    Raises:
        RewardError: A check failed.
        InstructRecError: The reward cannot be made or called, or something else is wrong.
    """
    {"list": _list, "show": _show, "check": _check, "score": _score}[values.action](
        values[values.action]
    )


def _list(values: Namespace) -> None:
    from instructrec.experiments.listing import rewards

    print(rewards())


def _show(values: Namespace) -> None:
    from instructrec.experiments.listing import table
    from instructrec.rewards.reference import describe_reward

    entry = describe_reward(values.spec)
    facts = [
        ("range", entry.range or "not declared"),
        ("columns", ", ".join(entry.columns) or "none"),
        ("reads", "chat messages" if entry.format == "chat" else "text"),
        ("defined in", entry.place),
        *(("option", str(option)) for option in entry.options),
    ]
    print(f"{entry.name}\n\n{table(facts)}\n\n{entry.text}")


def _check(values: Namespace) -> None:
    from instructrec.experiments.row_stream import stream_rows
    from instructrec.rewards.check import check_reward

    rows = None
    if values.data is not None:
        rows = [row.fields for row in islice(stream_rows(Path(values.data)), CHECKED_ROWS)]
    report = check_reward(
        values.spec,
        rows,
        options=values.options,
        format=values.format,
        timeout=values.timeout,
    )
    if report.error is not None:
        kind = type(report.error)
        raise kind(f"{values.spec} cannot be checked: {report.error}") from report.error
    print(report)
    failed = [point.name for point in report.points if point.verdict == "fail"]
    if failed:
        share = f"{len(failed)} of {len(report.points)}"
        raise RewardError(f"{values.spec} failed {share} points: {', '.join(failed)}.")


def _score(values: Namespace) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.score_file import ScoreConfig, score_file

    config = command_line.as_dataclass(ScoreConfig, values)
    summary = score_file(values.spec, config, overwrite=values.overwrite)
    print(summary)
    if values.out is not None:
        print(f"\nscores    {values.out}")
    if not summary.scored:
        raise RewardError(
            f"none of the {summary.rows} responses got a score: the table says how many failed and "
            "to how many the reward does not apply."
        )

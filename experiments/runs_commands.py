"""``instructrec runs list | rm | sync``: what lies in the folder of the runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from instructrec.errors import ConfigError, unknown_name
from instructrec.experiments import offline_sync, runs_table
from instructrec.experiments.runs_reading import (
    Filters,
    RunLine,
    Skipped,
    is_named,
    read_runs,
)
from instructrec.experiments.runs_removal import chosen_for_space, chosen_runs, remove

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_NAMES = "Runs by name or path; patterns such as 'ppo-*' are understood."


def build(parser: ArgumentParser) -> None:
    """Adds the three commands to the parser of ``instructrec runs``."""
    from instructrec.experiments import command_line

    def add(name: str, text: str, names: str) -> ArgumentParser:
        made = command_line.make_parser(f"instructrec runs {name}", text)
        commands.add_subcommand(name, made, help=text)
        made.add_argument("names", nargs=names, type=str, help=_NAMES)
        made.add_argument("--dir", type=str, default="runs", help="Folder of the run folders.")
        return made

    commands = parser.add_subcommands(required=True, dest="action")
    listing = add("list", "A table of the runs with their final numbers and sizes.", "*")
    listing.add_class_arguments(Filters)
    listing.add_argument("--json", action="store_true", help="Print it as JSON.")
    remove = add("rm", "Delete run folders, or their checkpoints alone.", "*")
    remove.add_class_arguments(Filters)
    remove.add_argument(
        "--checkpoints",
        action="store_true",
        help="Delete only the checkpoints: numbers, responses and policy stay, --resume does not. "
        "Without names, those of all runs that have finished.",
    )
    remove.add_argument("--yes", action="store_true", help="Do not ask.")
    remove.add_argument(
        "--force",
        action="store_true",
        help="Delete runs that say they are running, too: a killed one says so for ever.",
    )
    sync = add("sync", "Send what runs have kept for W&B while they were offline.", "*")
    sync.add_argument("--dry_run", action="store_true", help="Only list it.")
    sync.add_argument(
        "--force",
        action="store_true",
        help="Send runs that say they are running, too: a killed one says so for ever.",
    )


def run(values: Namespace, command: list[str]) -> None:
    """Runs one of them.

    Raises:
        ConfigError: There is no such folder or run.
        CheckpointError: A folder must not be deleted.
        TrackingError: Something could not be sent.
    """
    {"list": _list, "rm": _remove, "sync": _sync}[values.action](values[values.action])


def _list(values: Namespace) -> None:
    from instructrec.experiments import command_line

    filters = command_line.as_dataclass(Filters, values)
    lines, skipped = read_runs(Path(values.dir))
    chosen = [line for line in lines if filters.match(line, values.names)]
    if values.json:
        found = {
            "runs": [runs_table.to_values(line) for line in chosen],
            "skipped": [{"path": str(s.path), "reason": s.reason} for s in skipped],
        }
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print(runs_table.to_text(chosen, skipped))


def _sync(values: Namespace) -> None:
    lines, skipped = read_runs(Path(values.dir))
    compared = {other.path.name: other for other in skipped if other.is_comparison}
    there: dict[str, RunLine | Skipped] = compared | {line.name: line for line in lines}
    chosen = {name: each.path for name, each in there.items()} if not values.names else {}
    for named in values.names:
        found = {name: each.path for name, each in there.items() if is_named(each, named)}
        if not found:
            raise ConfigError(unknown_name("run", named, list(there)))
        chosen |= found
    for line in lines:
        if line.status == "running" and not values.force and line.name in chosen:
            del chosen[line.name]
            print(
                f"{line.name!r} says that it is running: left out. What it has kept so far is "
                "sent with --force, also where the run was killed."
            )
    offline_sync.sync(offline_sync.find_offline(chosen), dry_run=values.dry_run)


def _remove(values: Namespace) -> None:
    from instructrec.experiments import command_line

    root, filters = Path(values.dir), command_line.as_dataclass(Filters, values)
    if values.checkpoints:
        lines = chosen_for_space(root, values.names, filters, force=values.force)
    else:
        lines = chosen_runs(root, values.names, filters, force=values.force)
    if not lines:
        print("nothing to delete.")
        return
    remove(lines, checkpoints=values.checkpoints, ask=None if values.yes else _ask)


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(
            "nobody can be asked here, because standard input is no terminal: expected --yes, "
            "which deletes without asking."
        )
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False

"""``instructrec runs list | rm | sync``: what lies in the folder of the runs."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from instructrec.errors import CheckpointError, ConfigError, unknown_name
from instructrec.experiments import offline_sync, runs_table
from instructrec.experiments.runs_reading import (
    Filters,
    RunLine,
    Skipped,
    is_named,
    read_run,
    read_runs,
    size_of,
)
from instructrec.experiments.runs_table import human_bytes

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
    remove = add("rm", "Delete run folders, or their checkpoints alone.", "+")
    remove.add_argument(
        "--checkpoints",
        action="store_true",
        help="Delete only the checkpoints: numbers, responses and policy stay, --resume does not.",
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
    root = Path(values.dir)
    lines = chosen_runs(root, values.names, force=values.force)
    remove(lines, checkpoints=values.checkpoints, ask=None if values.yes else _ask)


def chosen_runs(root: Path, names: Sequence[str], *, force: bool = False) -> list[RunLine]:
    """Finds the runs that are to be deleted.

    Args:
        root: Folder of the run folders.
        names: Names, paths or patterns.
        force: Take runs that say they are running, too.

    Returns:
        Each of them once.

    Raises:
        ConfigError: A name means no run, or something outside of the folder.
        CheckpointError: What a name means is no run folder of ours, a link, or still running.
    """
    known, _ = read_runs(root)
    chosen: dict[Path, RunLine] = {}
    for name in names:
        found = [line for line in known if name.rstrip("/") in (line.name, str(line.path))]
        # Only then those deeper down that happen to be called the same.
        found = found or [line for line in known if is_named(line, name)]
        for line in found or [_by_path(root, name, known)]:
            if line.status == "running" and not force:
                raise CheckpointError(
                    f"{line.path} says that it is running: expected a run that has ended. Stop it "
                    "first; a killed one says so for ever, and --force deletes it."
                )
            chosen[line.path.resolve()] = line
    return list(chosen.values())


def _by_path(root: Path, name: str, known: Sequence[RunLine]) -> RunLine:
    """The run that a path means, which the table does not show; or why it must stay."""
    path = next((p for p in (root / name, Path(name)) if p.is_symlink() or p.exists()), None)
    if path is None:
        raise ConfigError(unknown_name("run", name, [line.name for line in known]))
    if path.is_symlink():
        raise CheckpointError(f"{path} is a link: expected a run folder itself. It stays.")
    if root.resolve() not in (path.resolve(), *path.resolve().parents):
        raise ConfigError(
            f"{path} lies outside of {root}: expected a run in there. Name the folder of the run "
            "folders with --dir."
        )
    return read_run(root / path.resolve().relative_to(root.resolve()), root)


def remove(
    lines: Sequence[RunLine],
    *,
    checkpoints: bool = False,
    ask: Callable[[str], bool] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Deletes run folders.

    Args:
        lines: The runs.
        checkpoints: Delete only their checkpoints.
        ask: Asked whether to go on; None goes on.
        say: Receives lines for people.
    """
    targets = [line.path / "checkpoints" if checkpoints else line.path for line in lines]
    sizes = [size_of(target) for target in targets]
    for line, size in zip(lines, sizes, strict=True):
        say(f"{line.name}  {line.status}  {human_bytes(size)}")
    if not checkpoints:
        for note in _losses(lines):
            say(f"note: {note}")
    what = "the checkpoints of " if checkpoints else ""
    many = "run folder" if len(lines) == 1 else f"{len(lines)} run folders"
    which = f"this {many}" if len(lines) == 1 else f"these {many}"
    if ask is not None and not ask(f"delete {what}{which} ({human_bytes(sum(sizes))})? [y/N] "):
        say("nothing was deleted.")
        return
    for target in targets:
        if target.is_symlink():  # a checkpoints/ that lies elsewhere is somebody's decision
            raise CheckpointError(f"{target} is a link: it stays. Delete it yourself.")
        if target.exists():
            shutil.rmtree(target)
    say(f"deleted: {human_bytes(sum(sizes))}.")


def _losses(lines: Sequence[RunLine]) -> list[str]:
    """What would be lost that is not in the table."""
    found = offline_sync.find_offline({line.name: line.path for line in lines})
    unsent = {files.run for files in found if not files.is_sent}
    return [
        f"what {name} has kept for W&B was not sent; `instructrec runs sync` sends it."
        for name in sorted(unsent)
    ]


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

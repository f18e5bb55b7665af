"""What ``instructrec runs rm`` deletes: run folders, or their checkpoints alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from instructrec.errors import CheckpointError, ConfigError, unknown_name
from instructrec.experiments.locks import held
from instructrec.experiments.offline_sync import find_offline
from instructrec.experiments.runs_reading import (
    ALL,
    Filters,
    RunLine,
    is_named,
    read_run,
    read_runs,
    size_of,
)
from instructrec.experiments.runs_table import human_bytes


def chosen_runs(
    root: Path, names: Sequence[str], filters: Filters = ALL, *, force: bool = False
) -> list[RunLine]:
    """Finds the runs that are to be deleted.

    Args:
        root: Folder of the run folders.
        names: Names, paths or patterns; none means all that the filters let pass.
        filters: Which of those.
        force: Take runs that say they are running, too.

    Returns:
        Each of them once.

    Raises:
        ConfigError: A name means no run, or something outside of the folder; or there is neither
            a name nor a filter.
        CheckpointError: What a name means is no run folder of ours, a link, or still running.
    """
    if not names and filters == ALL:
        raise ConfigError(
            "nothing says which runs to delete: expected names, or filters such as --status "
            "failed. All of them are '*'."
        )
    known, _ = read_runs(root)
    chosen = [line for name in names or ["*"] for line in _meant(root, name, known)]
    chosen = [line for line in chosen if filters.match(line)]
    _refuse_running(chosen, force)
    return _each_once(chosen)


def chosen_for_space(
    root: Path,
    names: Sequence[str],
    filters: Filters = ALL,
    *,
    force: bool = False,
    say: Callable[[str], None] = print,
) -> list[RunLine]:
    """Finds the runs whose checkpoints are to be deleted: those that do not need them any more.

    Patterns and filters leave out, with a line, what has not finished or has left no policy; a
    run's own name takes it all the same.

    Args:
        root: Folder of the run folders.
        names: Names, paths or patterns; none means all that the filters let pass.
        filters: Which of those.
        force: Take a run that says it is running, where it is named.
        say: Receives lines for people.

    Returns:
        Each of them once; of those that are not named, only such as have checkpoints.

    Raises:
        ConfigError, CheckpointError: See ``chosen_runs``.
    """
    known, _ = read_runs(root)
    chosen: list[RunLine] = []
    for name in names or ["*"]:
        found = [line for line in _meant(root, name, known) if filters.match(line)]
        if not set(name) & set("*?["):
            _refuse_running(found, force)
            chosen += found
            continue
        for line in found:
            if not line.checkpoint_bytes:
                continue
            if reason := _needs_checkpoints(line):
                say(f"left out: {line.name} {reason}; its own name deletes them all the same.")
            else:
                chosen.append(line)
    return _each_once(chosen)


def _needs_checkpoints(line: RunLine) -> str:
    """What a run's checkpoints are still there for; empty where its policy says all."""
    if line.status != "finished":
        return f"({line.status}) goes on from its checkpoints"
    if not (line.path / "policy").is_dir():
        return "has left no policy, so its checkpoints alone hold what was trained"
    return ""


def _meant(root: Path, name: str, known: Sequence[RunLine]) -> list[RunLine]:
    """The runs that a name, path or pattern means; none only for ``*`` where there are none."""
    found = [line for line in known if name.rstrip("/") in (line.name, str(line.path))]
    # Only then those deeper down that happen to be called the same.
    found = found or [line for line in known if is_named(line, name)]
    return found if found or name == "*" else [_by_path(root, name, known)]


def _each_once(lines: Sequence[RunLine]) -> list[RunLine]:
    return list({line.path.resolve(): line for line in lines}.values())


def _refuse_running(lines: Sequence[RunLine], force: bool) -> None:
    for line in lines:
        if line.status == "running" and not force:
            raise CheckpointError(
                f"{line.path} says that it is running: expected a run that has ended. Stop it "
                "first; a killed one says so for ever, and --force deletes it."
            )


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

    Raises:
        CheckpointError: One of them is a link, or a process is at work in it. It stays, and so do
            those behind it.
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
    for line, target in zip(lines, targets, strict=True):
        if target.is_symlink():  # a checkpoints/ that lies elsewhere is somebody's decision
            raise CheckpointError(f"{target} is a link: it stays. Delete it yourself.")
        with held(line.path, "runs rm"):  # also of one that is at work, whatever its record says
            if target.exists():
                shutil.rmtree(target)
    say(f"deleted: {human_bytes(sum(sizes))}.")


def _losses(lines: Sequence[RunLine]) -> list[str]:
    """What would be lost that is not in the table."""
    found = find_offline({line.name: line.path for line in lines})
    unsent = {files.run for files in found if not files.is_sent}
    return [
        f"what {name} has kept for W&B was not sent; `instructrec runs sync` sends it."
        for name in sorted(unsent)
    ]

"""``--seeds`` and ``--keep_going`` of the commands that train: added, checked, handed on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from instructrec.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add(parser: ArgumentParser) -> None:
    """Adds them to the arguments of a command."""
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        help="Train once with each of these seeds, one run after the other (instead of --seed); "
        "--resume skips those that are finished.",
    )
    parser.add_argument(
        "--keep_going",
        action="store_true",
        help="With --seeds: go on with the next seed when one fails.",
    )


def check(values: Namespace, command: list[str]) -> None:
    """Refuses what goes with one run only, and what goes with several only.

    A seed of the recipe gives way to ``--seeds``; one of the command line contradicts them.

    Args:
        values: The parsed arguments.
        command: The command line after the program's name.

    Raises:
        ConfigError: Flags contradict each other.
    """
    if not values.seeds:
        if values.keep_going:
            raise ConfigError("--keep_going is about several seeds: give --seeds, or leave it out.")
        return
    if values.resume and values.overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: choose one.")
    if values.get("allow_change"):
        raise ConfigError("--allow_change is about one run: give --seed instead of --seeds.")
    is_given = any(word.partition("=")[0] == "--seed" for word in command)
    if is_given and values.seed not in values.seeds:
        seeds = " ".join(map(str, values.seeds))
        raise ConfigError(
            f"--seed {values.seed} with --seeds {seeds}: --seeds names every seed that is trained. "
            f"Add {values.seed} to it, or leave --seed out."
        )


def options(values: Namespace, command: list[str]) -> dict[str, Any]:
    """What `seeds.run_each` takes of the command line."""
    return {
        "resume": values.resume,
        "overwrite": values.overwrite,
        "keep_going": values.keep_going,
        "command": command,
    }

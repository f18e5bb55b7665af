"""The ``instructrec`` console command.

Each command builds its parser from frozen dataclasses and imports torch and TRL only when it
runs, so that help, completion and mistakes answer at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import instructrec
from instructrec import processes
from instructrec.errors import ConfigError, InstructRecError, RunInterrupted, unknown_name
from instructrec.redaction import redacted

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Build = Callable[["ArgumentParser"], None]
Run = Callable[["Namespace", list[str]], None]
_DEBUG_HELP = "Show the full traceback of an error (also INSTRUCTREC_DEBUG=1)."


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    help: str
    """One line for the overview."""
    build: Build
    """Adds the arguments."""
    run: Run
    """Runs with the parsed arguments and the command line as it was given."""
    takes_recipe: bool = False
    """Whether leading arguments are recipes."""
    shared: bool = False
    """Whether a launcher may start it in several processes."""


def _in(module: str, name: str = "") -> tuple[Build, Run]:
    """The functions ``build`` and ``run`` of a module here, imported when they are needed.

    Args:
        module: Name of the module in this package.
        name: Takes ``build_<name>`` and ``run_<name>`` instead.
    """
    suffix = f"_{name}" if name else ""

    def of(function: str) -> Any:
        found = importlib.import_module(f"instructrec.experiments.{module}")
        return getattr(found, function + suffix)

    def build(parser: ArgumentParser) -> None:
        of("build")(parser)

    def run(values: Namespace, command: list[str]) -> None:
        of("run")(values, command)

    return build, run


COMMANDS = {
    "train": Command(
        "Train a policy, with PPO by default.",
        *_in("run_commands", "train"),
        takes_recipe=True,
        shared=True,
    ),
    "sft": Command(
        "Train on demonstrations (warm start).", *_in("run_commands", "sft"), takes_recipe=True
    ),
    "dpo": Command(
        "Train on preferences: pairs of a better and a worse response.",
        *_in("run_commands", "dpo"),
        takes_recipe=True,
    ),
    "evaluate": Command(
        "Measure a policy on held-out instructions.", *_in("run_commands", "evaluate"), shared=True
    ),
    "train-reward": Command(
        "Train a reward model from preferences, or an alignment model.",
        *_in("reward_run"),
        takes_recipe=True,
    ),
    "pairs": Command(
        "Make preference pairs of a policy's samples, ranked by a reward.", *_in("pairs_command")
    ),
    "pipeline": Command(
        "SFT, preferences, a reward model, PPO against it, and what all that was worth.",
        *_in("pipeline"),
        takes_recipe=True,
    ),
    "compare": Command(
        "Which policy is better, by how much, and how sure is that?",
        *_in("run_commands", "compare"),
    ),
    "report": Command(
        "What was one run, how did it go, and is it better than before?",
        *_in("people_commands", "report"),
    ),
    "chat": Command("Talk to a policy, or to two.", *_in("people_commands", "chat")),
    "explain": Command(
        "One response, token by token: why it was written, and what it was credited with.",
        *_in("people_commands", "explain"),
    ),
    "export": Command(
        "Write a policy as a plain Hugging Face folder.", *_in("people_commands", "export")
    ),
    "doctor": Command("Is everything here that a run needs?", *_in("people_commands", "doctor")),
    "label": Command(
        "Judge responses: which one is better, or how good is it?", *_in("label_commands")
    ),
    "sweep": Command("Search for better settings of a recipe.", *_in("sweep_commands")),
    "probe": Command(
        "Before training: is there anything to learn, and what will it cost?",
        *_in("run_commands", "probe"),
        takes_recipe=True,
    ),
    "quickstart": Command(
        "Show on the embedded model that PPO improves it; compare with SFT.",
        *_in("run_commands", "quickstart"),
        takes_recipe=True,
    ),
    "runs": Command(
        "List the runs, delete some, or send their offline W&B files.", *_in("runs_commands")
    ),
    "dashboard": Command("Save a view of a W&B project for comparisons.", *_in("dashboard")),
    "rewards": Command("List, show, check and score rewards.", *_in("reward_commands")),
    "data": Command("Check a data set, or show what is in it.", *_in("data_commands")),
    "tasks": Command("List the built-in tasks.", *_in("run_commands", "tasks")),
    "envs": Command("List environments, show one, or play in it.", *_in("env_commands")),
    "schema": Command(
        "Print the JSON schema of recipes, for editors.", *_in("editor_commands", "schema")
    ),
    "completion": Command(
        "Print what makes a shell complete commands.", *_in("editor_commands", "completion")
    ),
}


def command_parser(name: str) -> ArgumentParser:
    """Makes the parser of one command."""
    return _with_arguments(COMMANDS[name], _empty_parser(name))


def _empty_parser(name: str) -> ArgumentParser:
    from instructrec.experiments import command_line

    return command_line.make_parser(f"instructrec {name}", COMMANDS[name].help)


def _with_arguments(command: Command, parser: ArgumentParser) -> ArgumentParser:
    command.build(parser)
    parser.add_argument("--debug", action="store_true", help=_DEBUG_HELP)
    return parser


def full_parser() -> ArgumentParser:
    """Makes the parser with all commands, which shell completion reads."""
    from instructrec.experiments import command_line

    parser = command_line.make_parser("instructrec", instructrec.__doc__ or "")
    parser.add_argument(
        "--version", action="version", version=f"instructrec {instructrec.__version__}"
    )
    commands = parser.add_subcommands(required=False)
    for name, command in COMMANDS.items():
        # First the command, then the commands that it may have itself.
        inner = _empty_parser(name)
        commands.add_subcommand(name, inner, help=command.help)
        _with_arguments(command, inner)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The command line without the program; None takes ``sys.argv``.

    Returns:
        The exit code: 0, an error's ``exit_code`` (2 for wrong arguments), or 130 after an
        interruption before anything was saved.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    rest, debug = wants_debug(given)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a locale cannot show is written as its number
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = _show_traceback
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _dispatch(rest)
    except InstructRecError as error:
        if debug:
            _show_traceback(*sys.exc_info())
        kind = "interrupted" if isinstance(error, RunInterrupted) else "error"
        print(f"instructrec: {kind}: {_for_people(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("instructrec: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        return 141
    except OSError as error:  # a full disk, a folder without permission
        if debug:
            _show_traceback(*sys.exc_info())
        print(f"instructrec: error: {_of_the_system(error)}", file=sys.stderr)
        return 1
    return 0


def _of_the_system(error: OSError) -> str:
    """What the operating system refused, and what to do about it."""
    advice = "--debug shows where"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space; `--resume` continues a training run from its newest checkpoint"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "check the permissions; --output.dir puts runs elsewhere"
    return _for_people(f"{error}: {advice}.")


def _for_people(message: object) -> str:
    """A message without keys, in which nothing steers the terminal: it may quote a response."""
    from instructrec.envs.tasks.rows import visible

    return "\n".join(map(visible, redacted(str(message)).split("\n")))


def _show_traceback(
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Prints a traceback without keys: messages of other libraries may hold them."""
    lines = traceback.format_exception(kind, error, trace)
    print(_for_people("".join(lines)), end="", file=sys.stderr)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints a warning as one line; where in the code it arose helps nobody at a terminal."""
    print(f"instructrec: warning: {_for_people(message)}", file=file or sys.stderr)


def wants_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Takes ``--debug`` out of the arguments.

    Returns:
        The other arguments, and whether errors shall show their traceback.
    """
    rest = [argument for argument in arguments if argument != "--debug"]
    from_environment = os.environ.get("INSTRUCTREC_DEBUG", "") not in ("", "0")
    return rest, len(rest) < len(arguments) or from_environment


def overview() -> str:
    """The help of the program: its commands, one line each."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: instructrec COMMAND ...",
            "",
            instructrec.__doc__ or "",
            "",
            "commands:",
            *(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()),
            "",
            "`instructrec COMMAND --help` lists the options of a command, `--print_config` prints",
            "its settings as YAML, and `instructrec --version` the version.",
        ]
    )


def _dispatch(arguments: list[str]) -> None:
    if arguments in ([], ["-h"], ["--help"]):
        print(overview())
        return
    if arguments == ["--version"]:
        print(f"instructrec {instructrec.__version__}")
        return
    if arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
        raise ConfigError(unknown_name("command", arguments[0], COMMANDS))
    from instructrec.experiments import command_line

    if arguments[0].startswith("-"):
        command_line.parse(full_parser(), arguments)
    else:
        command, rest = COMMANDS[arguments[0]], arguments[1:]
        if not command.shared:
            processes.refuse_several(f"instructrec {arguments[0]}")
        if command.takes_recipe:
            rest = command_line.recipes_to_config(rest)
        command.run(command_line.parse(command_parser(arguments[0]), rest), arguments)


if __name__ == "__main__":
    sys.exit(main())

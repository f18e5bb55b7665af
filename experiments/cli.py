"""The ``instructrec`` console command.

Each command builds its parser from frozen dataclasses and imports torch and TRL only when it
runs, so that help, completion and mistakes answer at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import instructrec
from instructrec import processes
from instructrec.errors import ConfigError, InstructRecError, RunInterrupted, unknown_name

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_DEBUG_HELP = "Show the full traceback of an error (also INSTRUCTREC_DEBUG=1)."


@dataclass(frozen=True)
class Command:
    """One subcommand."""

    help: str
    """One line for the overview."""
    build: Callable[[ArgumentParser], None]
    """Adds the arguments."""
    run: Callable[[Namespace, list[str]], None]
    """Runs with the parsed arguments and the command line as it was given."""
    takes_recipe: bool = False
    """Whether leading arguments are recipes."""
    shared: bool = False
    """Whether a launcher may start it in several processes."""


def _add_folder_flags(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Continue the run folder's newest checkpoint; a finished run goes on to a larger "
        "ppo.num_updates.",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Delete an existing run folder of this name."
    )


def _build_train(parser: ArgumentParser) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.config import TrainConfig

    command_line.add_config_file(parser)
    parser.add_class_arguments(TrainConfig)
    _add_folder_flags(parser)
    parser.add_argument(
        "--sanity",
        action="store_true",
        help="Train nothing for good: overfit 8 instructions in about a minute, or say why not.",
    )


def _build_sft(parser: ArgumentParser) -> None:
    _build_train(parser)
    parser.set_defaults({"algorithm": "sft"})


def _run_train(values: Namespace, command: list[str]) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.config import TrainConfig

    config = command_line.as_dataclass(TrainConfig, values)
    if command[:1] == ["sft"] and config.algorithm != "sft":
        raise ConfigError(
            f"algorithm = {config.algorithm!r}: `instructrec sft` trains with algorithm sft; "
            "use `instructrec train` for this recipe."
        )
    if values.sanity:
        from instructrec.experiments.sanity import run_sanity

        processes.refuse_several("train --sanity")
        if values.resume or values.overwrite:
            raise ConfigError("--sanity writes no run folder: leave --resume and --overwrite out.")
        run_sanity(config)
        return
    from instructrec.experiments.train import run_training

    run_training(config, resume=values.resume, overwrite=values.overwrite, command=command)


def _build_evaluate(parser: ArgumentParser) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.config import EvaluateConfig

    command_line.add_config_file(parser)
    parser.add_argument(
        "policy",
        help="A run folder, a Hugging Face folder or hub id, a model name (smollm2-135m, tiny), "
        "oracle, random or empty, or the .jsonl of an earlier evaluation to score it anew.",
    )
    parser.add_class_arguments(EvaluateConfig)
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="Measure the policy on the same instructions in other words, too: typos, casing, "
        "paraphrase, distractor, conflict, vague.",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Delete an existing run folder of this name."
    )


def _run_evaluate(values: Namespace, command: list[str]) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.config import EvaluateConfig
    from instructrec.experiments.evaluate_policy import run_evaluation

    config = command_line.as_dataclass(EvaluateConfig, values)
    run_evaluation(
        values.policy,
        config,
        robust=values.robustness,
        overwrite=values.overwrite,
        command=command,
    )


def _build_compare(parser: ArgumentParser) -> None:
    from instructrec.experiments.compare import CompareConfig

    parser.add_argument(
        "policies",
        nargs="+",
        help="Run folders (those of one variant are the seeds of one policy), .jsonl files of "
        "responses, or NAME=PATH,PATH.",
    )
    parser.add_class_arguments(CompareConfig)


def _run_compare(values: Namespace, command: list[str]) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.compare import CompareConfig, compare

    compare(values.policies, command_line.as_dataclass(CompareConfig, values))


def _build_probe(parser: ArgumentParser) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.config import TrainConfig
    from instructrec.experiments.probe import ProbeConfig

    command_line.add_config_file(parser)
    parser.add_class_arguments(TrainConfig)
    parser.add_class_arguments(ProbeConfig, "probe")


def _run_probe(values: Namespace, command: list[str]) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.config import TrainConfig
    from instructrec.experiments.probe import run_probe

    run_probe(command_line.as_dataclass(TrainConfig, values), values.probe)


def _build_quickstart(parser: ArgumentParser) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.quickstart_config import QuickstartConfig

    command_line.add_config_file(parser)
    parser.add_class_arguments(QuickstartConfig)


def _run_quickstart(values: Namespace, command: list[str]) -> None:
    from instructrec.experiments import command_line
    from instructrec.experiments.quickstart import run_quickstart
    from instructrec.experiments.quickstart_config import QuickstartConfig

    run_quickstart(command_line.as_dataclass(QuickstartConfig, values), command=command)


def _build_list(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=["list"], help="list: print the names.")


def _build_rewards(parser: ArgumentParser) -> None:
    from instructrec.experiments import reward_commands

    reward_commands.build(parser)


def _run_rewards(values: Namespace, command: list[str]) -> None:
    from instructrec.experiments import reward_commands

    reward_commands.run(values, command)


def _build_data(parser: ArgumentParser) -> None:
    from instructrec.experiments import data_commands

    data_commands.build(parser)


def _run_data(values: Namespace, command: list[str]) -> None:
    from instructrec.experiments import data_commands

    data_commands.run(values, command)


def _list_tasks(values: Namespace, command: list[str]) -> None:
    from instructrec.experiments.listing import tasks

    print(tasks())


def _build_envs(parser: ArgumentParser) -> None:
    from instructrec.experiments import env_commands

    env_commands.build(parser)


def _run_envs(values: Namespace, command: list[str]) -> None:
    from instructrec.experiments import env_commands

    env_commands.run(values, command)


COMMANDS = {
    "train": Command(
        "Train a policy, with PPO by default.", _build_train, _run_train, True, shared=True
    ),
    "sft": Command("Train on demonstrations (warm start).", _build_sft, _run_train, True),
    "evaluate": Command(
        "Measure a policy on held-out instructions.", _build_evaluate, _run_evaluate, shared=True
    ),
    "compare": Command(
        "Which policy is better, by how much, and how sure is that?", _build_compare, _run_compare
    ),
    "probe": Command(
        "Before training: is there anything to learn, and what will it cost?",
        _build_probe,
        _run_probe,
        True,
    ),
    "quickstart": Command(
        "Show on the embedded model that PPO improves it; compare with SFT.",
        _build_quickstart,
        _run_quickstart,
        True,
    ),
    "rewards": Command("List, show, check and score rewards.", _build_rewards, _run_rewards),
    "data": Command("Check a data set, or show what is in it.", _build_data, _run_data),
    "tasks": Command("List the built-in tasks.", _build_list, _list_tasks),
    "envs": Command("List environments, show one, or play in it.", _build_envs, _run_envs),
}


def command_parser(name: str) -> ArgumentParser:
    """Makes the parser of one command."""
    from instructrec.experiments import command_line

    command = COMMANDS[name]
    parser = command_line.make_parser(f"instructrec {name}", command.help)
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
        commands.add_subcommand(name, command_parser(name), help=command.help)
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
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _dispatch(rest)
    except InstructRecError as error:
        if debug:
            traceback.print_exc()
        kind = "interrupted" if isinstance(error, RunInterrupted) else "error"
        print(f"instructrec: {kind}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("instructrec: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        return 141
    except OSError as error:  # a full disk, a folder without permission
        if debug:
            traceback.print_exc()
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
    return f"{error}: {advice}."


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Prints a warning as one line; where in the code it arose helps nobody at a terminal."""
    print(f"instructrec: warning: {message}", file=file or sys.stderr)


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

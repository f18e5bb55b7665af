"""What editors and shells need to help while a recipe or a command is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instructrec.experiments import command_line
from instructrec.experiments.config import TrainConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

SHELLS = ("bash", "zsh", "tcsh")


def recipe_schema() -> str:
    """The JSON schema of a recipe, with the help texts as descriptions."""
    parser = command_line.make_parser("recipe", "A recipe of instructrec: one training run.")
    parser.add_class_arguments(TrainConfig)
    return parser.get_completion_script("jsonschema")


def build_schema(parser: ArgumentParser) -> None:
    """Arguments of ``schema``: none."""


def run_schema(values: Namespace, command: list[str]) -> None:
    """Prints the schema."""
    print(recipe_schema())


def build_completion(parser: ArgumentParser) -> None:
    """Arguments of ``completion``."""
    parser.add_argument("shell", choices=SHELLS, help="The shell to complete commands in.")


def run_completion(values: Namespace, command: list[str]) -> None:
    """Prints the script."""
    from instructrec.experiments.cli import full_parser

    print(full_parser().get_completion_script(f"shtab-{values.shell}"))

"""What editors and shells need to help while a recipe or a command is typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instructrec.experiments import command_line
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.pipeline_config import PipelineConfig
from instructrec.experiments.reward_model_config import RewardModelConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

SHELLS = ("bash", "zsh", "tcsh")
CONFIGS = {"train": TrainConfig, "train-reward": RewardModelConfig, "pipeline": PipelineConfig}
"""Command -> what its recipes hold."""


def recipe_schema(command: str = "train") -> str:
    """The JSON schema of a recipe, with the help texts as descriptions.

    Args:
        command: What takes the recipe: ``train`` (or sft), ``train-reward`` or ``pipeline``.
    """
    parser = command_line.make_parser("recipe", "A recipe of instructrec: one training run.")
    parser.add_class_arguments(CONFIGS[command])
    return parser.get_completion_script("jsonschema")


def build_schema(parser: ArgumentParser) -> None:
    """Arguments of ``schema``."""
    parser.add_argument(
        "of",
        nargs="?",
        default="train",
        choices=list(CONFIGS),
        help="The command that takes the recipe.",
    )


def run_schema(values: Namespace, command: list[str]) -> None:
    """Prints the schema."""
    print(recipe_schema(values.of))


def build_completion(parser: ArgumentParser) -> None:
    """Arguments of ``completion``."""
    parser.add_argument("shell", choices=SHELLS, help="The shell to complete commands in.")


def run_completion(values: Namespace, command: list[str]) -> None:
    """Prints the script."""
    from instructrec.experiments.cli import full_parser

    print(full_parser().get_completion_script(f"shtab-{values.shell}"))

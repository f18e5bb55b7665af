"""Training, evaluating and comparing from Python, with the settings of the command line.

The same recipes, keys, checks and messages; ``from instructrec import train, evaluate, compare``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from instructrec.experiments import command_line, telling
from instructrec.experiments.cli import command_parser
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.decoding_words import evaluate_config

if TYPE_CHECKING:
    from instructrec.experiments.compare import CompareConfig
    from instructrec.experiments.evaluation import Evaluation
    from instructrec.experiments.seeds import SeedsOutcome
    from instructrec.experiments.train import Outcome


@overload
def train(
    *recipes: str | Path,
    settings: Mapping[str, Any] | None = None,
    seeds: None = None,
    resume: bool = False,
    overwrite: bool = False,
    say: telling.Say = telling.say,
) -> Outcome: ...


@overload
def train(
    *recipes: str | Path,
    settings: Mapping[str, Any] | None = None,
    seeds: Sequence[int],
    resume: bool = False,
    overwrite: bool = False,
    say: telling.Say = telling.say,
) -> SeedsOutcome: ...


def train(
    *recipes: str | Path,
    settings: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    say: telling.Say = telling.say,
) -> Outcome | SeedsOutcome:
    """Trains a policy, as ``instructrec train`` does.

    Example:
        One run of a shipped recipe, and three seeds of it::

            outcome = train("short_answers", settings={"seed": 7, "ppo.num_updates": 8})
            print(outcome.folder.path, outcome.summary["eval/exact_match/mean"])
            print(train("short_answers", seeds=[0, 1, 2]).scores["total"])

    Args:
        recipes: Names of shipped recipes or paths of YAML files; later ones win.
        settings: Dotted keys and their values, over the recipes.
        seeds: Train once with each of them, one run after the other.
        resume: Continue the folder's newest checkpoint; of several seeds, skip finished ones.
        overwrite: Delete an existing run of this name.
        say: Receives lines for people.

    Returns:
        The run with its policy; of several seeds their folders and scores, but no policies.

    Raises:
        InstructRecError: As for the command, with its message; so where neither recipes nor
            settings say what to train.
    """
    command_line.refuse_bare("train", [*map(str, recipes), *as_options(settings)])
    config = train_config(*recipes, settings=settings)
    if seeds is not None:
        from instructrec.experiments.train_seeds import run_seeds

        given = ["--seeds", *map(str, seeds)]
        command = [*_as_command("train", recipes, settings), *given]
        return run_seeds(
            config, seeds, resume=resume, overwrite=overwrite, command=command, say=say
        )
    from instructrec.experiments.train import run_training

    command = _as_command("train", recipes, settings)
    return run_training(config, resume=resume, overwrite=overwrite, command=command, say=say)


def train_config(*recipes: str | Path, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """The run that recipes and settings describe; nothing is trained.

    Args:
        recipes: Names of shipped recipes or paths of YAML files; later ones win.
        settings: Dotted keys and their values, over the recipes.

    Raises:
        ConfigError: A key or a value is of no use.
    """
    arguments = command_line.recipes_to_config([str(recipe) for recipe in recipes])
    values = command_line.parse(command_parser("train"), [*arguments, *as_options(settings)])
    config: TrainConfig = command_line.as_dataclass(TrainConfig, values)
    return config


def evaluate(
    policy: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    robust: bool = False,
    overwrite: bool = False,
    say: telling.Say = telling.say,
) -> Evaluation:
    """Measures a policy on held-out instructions, as ``instructrec evaluate`` does.

    Args:
        policy: A run folder, a model, or the ``.jsonl`` of an earlier evaluation.
        settings: Dotted keys and their values, e.g. ``{"task": "parity", "limit": 100}``.
        robust: Measure it on the same instructions in other words, too.
        overwrite: Delete an earlier evaluation in the same place.
        say: Receives lines for people.

    Raises:
        InstructRecError: As for the command, with its message.
    """
    from instructrec.experiments.evaluate_policy import run_evaluation

    arguments = [*as_options(settings), str(policy)]
    config = evaluate_config(command_line.parse(command_parser("evaluate"), arguments), arguments)
    command = _as_command("evaluate", [policy], settings)
    return run_evaluation(
        str(policy), config, robust=robust, overwrite=overwrite, command=command, say=say
    )


def compare(
    *policies: str | Path, config: CompareConfig | None = None, say: telling.Say = telling.say
) -> dict[str, Any]:
    """Compares policies, as ``instructrec compare`` does; see `experiments.compare.compare`."""
    from instructrec.experiments.compare import compare as compare_named

    return compare_named([str(policy) for policy in policies], config, say=say)


def as_options(settings: Mapping[str, Any] | None) -> list[str]:
    """Dotted keys and their values as the command line takes them."""
    return [f"--{key}={_written(value)}" for key, value in (settings or {}).items()]


def _written(value: Any) -> str:
    """A value as the command line takes it."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


def _as_command(name: str, given: Any, settings: Mapping[str, Any] | None) -> list[str]:
    """The command line that does the same, for the record of the run."""
    return [name, *map(str, given), *as_options(settings)]

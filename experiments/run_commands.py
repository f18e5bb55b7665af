"""The commands that train and measure: ``train``, ``sft``, ``evaluate``, ``compare`` and others.

``build_<command>`` adds the arguments and ``run_<command>`` runs it; torch and TRL are imported
only there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from instructrec import processes
from instructrec.errors import ConfigError
from instructrec.experiments import command_line, seed_flags
from instructrec.experiments.config import EvaluateConfig, TrainConfig
from instructrec.experiments.decoding_words import add_decoding, evaluate_config

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


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


def build_train(parser: ArgumentParser) -> None:
    """Arguments of ``train``."""
    command_line.add_config_file(parser)
    parser.add_class_arguments(TrainConfig)
    _add_folder_flags(parser)
    more = "weights (of the start), "
    command_line.add_allow_change(parser, "ppo.learning_rate", "the instructions", more)
    seed_flags.add(parser)
    parser.add_argument(
        "--sanity",
        action="store_true",
        help="Train nothing for good: overfit 8 instructions in about a minute, or say why not.",
    )


def build_sft(parser: ArgumentParser) -> None:
    """Arguments of ``sft``: those of ``train``."""
    build_train(parser)
    parser.set_defaults({"algorithm": "sft"})


def build_dpo(parser: ArgumentParser) -> None:
    """Arguments of ``dpo``: those of ``train``."""
    build_train(parser)
    parser.set_defaults({"algorithm": "dpo"})


def run_train(values: Namespace, command: list[str]) -> None:
    """Trains; ``--sanity`` only overfits a few instructions."""
    command_line.refuse_bare(command[0], command[1:])
    config = command_line.as_dataclass(TrainConfig, values)
    if command[0] in ("sft", "dpo") and config.algorithm != command[0]:
        raise ConfigError(
            f"algorithm = {config.algorithm!r}: `instructrec {command[0]}` trains with algorithm "
            f"{command[0]}; use `instructrec train` for this recipe."
        )
    seed_flags.check(values, command)
    if values.sanity:
        from instructrec.experiments.sanity import run_sanity

        processes.refuse_several("train --sanity")
        if values.resume or values.overwrite or values.seeds:
            raise ConfigError(
                "--sanity overfits once and writes no run folder: leave --resume, --overwrite and "
                "--seeds out."
            )
        run_sanity(config.resolved())
        return
    if values.seeds:
        from instructrec.experiments.train_seeds import run_seeds

        run_seeds(config, values.seeds, **seed_flags.options(values, command))
        return
    from instructrec.experiments.train import run_training

    run_training(
        config,
        resume=values.resume,
        overwrite=values.overwrite,
        allow_change=values.allow_change,
        command=command,
    )


def build_evaluate(parser: ArgumentParser) -> None:
    """Arguments of ``evaluate``."""
    command_line.add_config_file(parser, recipes=False)
    parser.add_argument(
        "policy",
        help="A run folder, a Hugging Face folder or hub id, a model name (smollm2-135m, tiny), "
        "the address of a server with OpenAI's interface (https://host/v1), oracle, random or "
        "empty, or the .jsonl of an earlier evaluation to score it anew.",
    )
    parser.add_class_arguments(EvaluateConfig)
    add_decoding(parser)
    parser.add_argument(
        "--robustness",
        action="store_true",
        help="Measure the policy on the same instructions in other words, too: typos, casing, "
        "paraphrase, distractor, conflict, vague, or robustness_kinds.",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="Delete an existing run folder of this name."
    )


def run_evaluate(values: Namespace, command: list[str]) -> None:
    """Evaluates a policy."""
    from instructrec.experiments.evaluate_policy import run_evaluation

    config = evaluate_config(values, command)
    run_evaluation(
        values.policy,
        config,
        robust=values.robustness,
        overwrite=values.overwrite,
        command=command,
    )


def build_compare(parser: ArgumentParser) -> None:
    """Arguments of ``compare``."""
    from instructrec.experiments.compare import CompareConfig

    parser.add_argument(
        "policies",
        nargs="+",
        help="Run folders (those of one variant are the seeds of one policy), .jsonl files of "
        "responses, or NAME=PATH,PATH.",
    )
    parser.add_class_arguments(CompareConfig)


def run_compare(values: Namespace, command: list[str]) -> None:
    """Compares policies."""
    from instructrec.experiments.compare import CompareConfig, compare

    compare(values.policies, command_line.as_dataclass(CompareConfig, values))


def build_probe(parser: ArgumentParser) -> None:
    """Arguments of ``probe``."""
    from instructrec.experiments.probe import ProbeConfig

    command_line.add_config_file(parser)
    parser.add_class_arguments(TrainConfig)
    parser.add_class_arguments(ProbeConfig, "probe")


def run_probe(values: Namespace, command: list[str]) -> None:
    """Probes whether there is anything to learn."""
    from instructrec.experiments.probe import run_probe

    run_probe(command_line.as_dataclass(TrainConfig, values).resolved(), values.probe)


def build_quickstart(parser: ArgumentParser) -> None:
    """Arguments of ``quickstart``."""
    from instructrec.experiments.quickstart_config import QuickstartConfig

    command_line.add_config_file(parser)
    parser.add_class_arguments(QuickstartConfig)


def run_quickstart(values: Namespace, command: list[str]) -> None:
    """Runs the quickstart."""
    from instructrec.experiments.quickstart import run_quickstart
    from instructrec.experiments.quickstart_config import QuickstartConfig

    run_quickstart(command_line.as_dataclass(QuickstartConfig, values), command=command)


run_sft = run_dpo = run_train


def build_tasks(parser: ArgumentParser) -> None:
    """Arguments of ``tasks``."""
    parser.add_argument("action", choices=["list"], help="list: print the names.")


def run_tasks(values: Namespace, command: list[str]) -> None:
    """Lists the tasks."""
    from instructrec.experiments.listing import tasks

    print(tasks())

"""The part of a training run that learns from given answers: demonstrations, or pairs of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from instructrec.envs.tasks.base import Task
from instructrec.errors import DataError, RunInterrupted
from instructrec.experiments import demonstrations
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.interruption import StopRequest
from instructrec.experiments.recording import Recorder
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.setup_run import Materials
from instructrec.experiments.speeds import median_speeds

if TYPE_CHECKING:
    from instructrec.policies.causal_lm import CausalLMPolicy
    from instructrec.policies.encoder import EncoderPolicy
    from instructrec.policies.model_policy import ModelPolicy
    from instructrec.rl.fitting import FitResult, Surroundings

Triple = tuple[Any, str, str]
"""Prompt, the better response, the other one."""


def prepared(
    config: TrainConfig, materials: Materials, policy: ModelPolicy
) -> tuple[TrainConfig, ModelPolicy]:
    """The same run with the steps that its epochs come to, and the policy with the head it needs.

    Raises:
        DataError: An instruction has no answer, or no pair of answers, to learn from; or the
            answers are no labels.
        PolicyError: The policy answers labels, and is to learn to write.
    """
    from instructrec.policies.labels import writer

    settings, taken = config.supervised, _taken(config, materials.train)
    assert settings is not None, "prepared() is for supervised training"
    if config.algorithm == "dpo":
        rows: Sequence[Any] = pairs(materials.train, taken)
    else:
        rows = demonstrations.examples(materials.train, taken, config.task.episodes)
    if config.has_labels:
        policy = _with_labels(policy, [response for _, response in rows])
    else:
        policy = writer(policy, f"algorithm {config.algorithm}")
    resolved: dict[str, Any] = {config.section: settings.with_steps(len(rows))}
    return dataclasses.replace(config, **resolved), policy


def _with_labels(policy: ModelPolicy, answers: Sequence[str]) -> ModelPolicy:
    """The policy with a head for the answers; one that has a head keeps it."""
    from instructrec.policies.labels import LabelPolicy

    labels = sorted(set(answers))
    if len(labels) < 2 or (len(labels) == len(answers) and len(labels) > 2):
        raise DataError(
            f"{len(answers)} demonstrations have {len(labels)} different answers "
            f"({', '.join(map(repr, labels[:3]))}, ...): expected labels, 2 or more, that come "
            "again. Take more sft.demonstrations, or set sft.head: text."
        )
    if isinstance(policy, LabelPolicy):
        if unknown := sorted(set(labels) - set(policy.labels)):
            raise DataError(
                f"the policy answers {', '.join(map(repr, policy.labels))}, and the demonstrations "
                f"have {', '.join(map(repr, unknown))} as well: expected the labels that it has. "
                "Begin from the model that it was trained from."
            )
        return policy
    return LabelPolicy(cast("CausalLMPolicy | EncoderPolicy", policy), labels)


def train_supervised(
    config: TrainConfig,
    materials: Materials,
    policy: ModelPolicy,
    folder: RunFolder,
    recorder: Recorder,
    evaluate: Callable[[int], dict[str, float]],
    *,
    checkpoint: Path | None,
    stop: StopRequest,
    allow_change: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains on the task's demonstrations or pairs.

    Args:
        config: The run.
        materials: Its tasks.
        policy: What trains, in place; as it was at the start of the run.
        folder: Gets the checkpoints.
        recorder: Receives the steps.
        evaluate: Measures responses on the validation split after a step.
        checkpoint: What to go on from; None begins anew.
        stop: Asked after each step.
        allow_change: What may differ from the checkpoint.

    Returns:
        What the summary says of the training.

    Raises:
        CheckpointError: The checkpoint belongs to another run.
        ConfigError: Dropout is asked of a model that has none.
        DataError: There is nothing to validate on although it was asked for.
        RunInterrupted: It was asked to stop, and has, behind a checkpoint.
    """
    from instructrec.rl.fitting import Surroundings

    learn, taken = _dpo if config.algorithm == "dpo" else _sft, _taken(config, materials.train)
    around = Surroundings(
        on_step=recorder.on_step,
        on_save=recorder.flush_step,
        checkpoint_dir=folder.checkpoints,
        resume_from=checkpoint,
        allow_change=allow_change,
        start=policy.weights_hash(),
        should_stop=lambda: stop.requested,
        attended=stop.attended,
    )
    result = learn(config, materials, policy, taken, around, evaluate)
    recorder.flush_step()
    if stop.requested:
        raise _interrupted(result, config, folder)
    return {
        "updates": result.steps,
        "best_update": result.best_step,
        "best_score": result.best_score,
        "stopped": result.stopped,
        "demonstrations": [materials.train[i].id for i in taken],
        "loss": result.loss,
        **median_speeds(read_metrics(folder.path)),
    }


def _interrupted(result: FitResult, config: TrainConfig, folder: RunFolder) -> RunInterrupted:
    saved = f", which is saved in {folder.checkpoints}" if result.stopped == "interrupted" else ""
    return RunInterrupted(
        f"stopped after step {result.steps} of {config.steps}{saved}. The same command with "
        "--resume goes on."
    )


def pairs(task: Task, indices: list[int]) -> list[Triple]:
    """Reads pairs of responses: the better one is the reference, the other the column `rejected`.

    Raises:
        DataError: An instruction has no pair.
    """
    found = []
    for item in (task[i] for i in indices):
        rejected = item.columns.get("rejected")
        if not isinstance(rejected, str):
            raise DataError(
                f"instruction {item.id!r} has the rejected response {rejected!r}: dpo learns from "
                "rows of prompt, chosen and rejected, such as `instructrec label` writes."
            )
        found.append((item.prompt, demonstrations.answer(item), rejected))
    return found


def _taken(config: TrainConfig, train: Task) -> list[int]:
    number = config.dpo.pairs if config.algorithm == "dpo" else config.sft.demonstrations
    return demonstrations.chosen(train, number, config.seed)


def _dpo(
    config: TrainConfig,
    materials: Materials,
    policy: ModelPolicy,
    taken: list[int],
    around: Surroundings,
    evaluate: Callable[[int], dict[str, float]],
) -> FitResult:
    from instructrec.policies.labels import writer
    from instructrec.rl.dpo import Pair, run_dpo

    watched = config.dpo.validation_pairs if config.dpo.eval_every else 0
    validation = materials.validation
    return run_dpo(
        writer(policy, "dpo"),
        [Pair(*pair) for pair in pairs(materials.train, taken)],
        [Pair(*pair) for pair in pairs(validation, demonstrations.chosen(validation, watched, 0))],
        config.dpo,
        seed=config.seed,
        around=around,
        evaluate=evaluate,
    )


def _sft(
    config: TrainConfig,
    materials: Materials,
    policy: ModelPolicy,
    taken: list[int],
    around: Surroundings,
    evaluate: Callable[[int], dict[str, float]],
) -> FitResult:
    from instructrec.policies.labels import LabelPolicy, writer
    from instructrec.rl.labels import run_labels
    from instructrec.rl.sft import Demonstration, run_sft

    episodes, validation = config.task.episodes, materials.validation
    watched = config.sft.validation_demonstrations if config.sft.eval_every else 0
    chosen = demonstrations.chosen(validation, watched, 0)
    given = [Demonstration(*e) for e in demonstrations.examples(materials.train, taken, episodes)]
    watch = [Demonstration(*e) for e in demonstrations.examples(validation, chosen, episodes)]
    told: dict[str, Any] = {"seed": config.seed, "around": around, "evaluate": evaluate}
    if isinstance(policy, LabelPolicy):
        return run_labels(policy, given, watch, config.sft, **told)
    return run_sft(writer(policy, "sft"), given, watch, config.sft, **told)

"""The part of a training run that learns from given answers: demonstrations, or pairs of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from instructrec.envs.tasks.base import Task
from instructrec.errors import DataError
from instructrec.experiments import demonstrations
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.recording import Recorder
from instructrec.experiments.setup_run import Materials

if TYPE_CHECKING:
    from instructrec.policies.causal_lm import CausalLMPolicy
    from instructrec.rl.supervised import SFTResult

Triple = tuple[Any, str, str]
"""Prompt, the better response, the other one."""


def prepared(config: TrainConfig, materials: Materials) -> TrainConfig:
    """The same run with the steps that its epochs come to, where it has some.

    Raises:
        DataError: An instruction has no answer, or no pair of answers, to learn from.
    """
    settings, taken = config.supervised, _taken(config, materials.train)
    if config.algorithm == "dpo":
        rows = len(pairs(materials.train, taken))
    else:
        rows = len(demonstrations.examples(materials.train, taken, config.task.episodes))
    assert settings is not None, "prepared() is for supervised training"
    resolved: dict[str, Any] = {config.section: settings.with_steps(rows)}
    return dataclasses.replace(config, **resolved)


def train_supervised(
    config: TrainConfig,
    materials: Materials,
    policy: CausalLMPolicy,
    recorder: Recorder,
    evaluate: Callable[[int], dict[str, float]],
) -> dict[str, Any]:
    """Trains on the task's demonstrations or pairs.

    Args:
        config: The run.
        materials: Its tasks.
        policy: What trains, in place.
        recorder: Receives the steps.
        evaluate: Measures responses on the validation split after a step.

    Returns:
        What the summary says of the training.

    Raises:
        ConfigError: Dropout is asked of a model that has none.
        DataError: There is nothing to validate on although it was asked for.
    """
    taken = _taken(config, materials.train)
    learn = _dpo if config.algorithm == "dpo" else _sft
    result = learn(config, materials, policy, taken, recorder, evaluate)
    recorder.flush_step()
    return {
        "updates": result.steps,
        "best_update": result.best_step,
        "best_score": result.best_score,
        "stopped": "finished" if result.steps == config.steps else "early_stopping",
        "demonstrations": [materials.train[i].id for i in taken],
        "loss": result.loss,
    }


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
    policy: CausalLMPolicy,
    taken: list[int],
    recorder: Recorder,
    evaluate: Callable[[int], dict[str, float]],
) -> SFTResult:
    from instructrec.rl.dpo import Pair, run_dpo

    watched = config.dpo.validation_pairs if config.dpo.eval_every else 0
    validation = materials.validation
    return run_dpo(
        policy,
        [Pair(*pair) for pair in pairs(materials.train, taken)],
        [Pair(*pair) for pair in pairs(validation, demonstrations.chosen(validation, watched, 0))],
        config.dpo,
        seed=config.seed,
        on_step=recorder.on_step,
        evaluate=evaluate,
    )


def _sft(
    config: TrainConfig,
    materials: Materials,
    policy: CausalLMPolicy,
    taken: list[int],
    recorder: Recorder,
    evaluate: Callable[[int], dict[str, float]],
) -> SFTResult:
    from instructrec.rl.sft import Demonstration, run_sft

    episodes, validation = config.task.episodes, materials.validation
    watched = config.sft.validation_demonstrations if config.sft.eval_every else 0
    chosen = demonstrations.chosen(validation, watched, 0)
    return run_sft(
        policy,
        [Demonstration(*e) for e in demonstrations.examples(materials.train, taken, episodes)],
        [Demonstration(*e) for e in demonstrations.examples(validation, chosen, episodes)],
        config.sft,
        seed=config.seed,
        on_step=recorder.on_step,
        evaluate=evaluate,
    )

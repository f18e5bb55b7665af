"""What every kind of supervised training shares, with TRL's ``SFTTrainer`` as its shell.

An `Objective` says what a batch costs. The loop around it is that of all fits (`fitting`): order,
schedule, validation, early stopping, checkpoints, and the best weights in the end.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from instructrec.errors import DataError
from instructrec.policies.dropout import dropout
from instructrec.policies.flops import ModelCost
from instructrec.policies.model_policy import ModelPolicy
from instructrec.policies.prefill import shared_columns
from instructrec.policies.quiet import without_wandb_note
from instructrec.policies.trunk import Trunk
from instructrec.rl.fit_speed import FitWork
from instructrec.rl.fitting import Fit, FitResult, Naming, Surroundings
from instructrec.rl.run_state import went_unmeasured
from instructrec.rl.speed import Lengths
from instructrec.rl.supervised_config import SupervisedConfig
from instructrec.rl.trained import trained_of
from instructrec.rl.trl_bridge import quiet_settings, unchanged_forward

with without_wandb_note():
    from trl import SFTConfig as TRLSFTConfig
    from trl import SFTTrainer

IGNORED = -100
"""Label of a token that the loss leaves out."""

Evaluate = Callable[[int], dict[str, float]]
"""Measures the policy's responses after a step; the metrics hold what ``best_by`` goes by."""

TrainingRow = Mapping[str, Any]
"""One example, encoded: what the objective's ``collate`` makes a batch of."""


class Objective(ABC):
    """What training minimises.

    Args:
        name: First part of its metrics: ``<name>/loss``, and ``<name>/val_loss`` in validation.
        policy: Whose weights train.
    """

    notes: ClassVar[tuple[str, ...]] = ()
    """What ``loss`` remembers beside the loss: ``<name>/<note>``."""

    def __init__(self, name: str, policy: ModelPolicy) -> None:
        self.name = name
        self.policy = policy
        self._noted: dict[str, list[float]] = {}

    @abstractmethod
    def collate(self, rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
        """Makes a batch. A tensor ``labels`` lets ``loss`` know how many count in the step."""

    @abstractmethod
    def loss(self, inputs: dict[str, Tensor], count: Tensor | int | None) -> Tensor:
        """The loss of a (micro-)batch.

        Args:
            inputs: What ``collate`` made, on the device.
            count: Labels that are not `IGNORED` in all micro-batches of the step, by which the
                loss is divided; None where ``collate`` gives no labels, and the loss is a mean.
        """

    @abstractmethod
    def lengths(self, rows: Sequence[TrainingRow]) -> Lengths:
        """The texts that a (micro-)batch of these rows reads, in tokens."""

    @property
    @abstractmethod
    def cost(self) -> ModelCost | None:
        """What reads them; None where its work cannot be counted."""

    def note(self, name: str, values: Tensor) -> None:
        """Remembers values of the batch, whose mean is logged with the loss."""
        self._noted.setdefault(name, []).extend(values.detach().float().flatten().tolist())

    def noted(self) -> dict[str, float]:
        """Means of what was remembered since the last call."""
        found = {name: float(np.mean(values)) for name, values in self._noted.items()}
        self._noted = {}
        return found


def response_logprobs(trunk: Trunk, ids_BL: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the labels that are not `IGNORED`; what all rows begin with runs once.

    Args:
        trunk: The model.
        ids_BL: Token ids, padded on the right.
        labels_BL: The same ids, or `IGNORED`.

    Returns:
        The log-probs (N,) in nats, and the row of each (N,).
    """
    row_N, position_N = (labels_BL[:, 1:] != IGNORED).nonzero(as_tuple=True)
    shared = shared_columns(trunk, ids_BL, int(position_N.min()))
    hidden_BSH, _ = trunk.full(ids_BL, shared)
    logprobs_N, _ = trunk.token_logprobs(
        hidden_BSH[row_N, position_N - shared], labels_BL[row_N, position_N + 1], 1.0
    )
    return logprobs_N, row_N


def fit(
    policy: ModelPolicy,
    objective: Objective,
    rows: Sequence[TrainingRow],
    validation: Sequence[TrainingRow],
    config: SupervisedConfig,
    *,
    seed: int,
    around: Surroundings,
    evaluate: Evaluate | None = None,
) -> FitResult:
    """Trains a policy on rows.

    Args:
        policy: The policy; its trained weights change in place. It ends with the weights of the
            best validation when ``config.eval_every`` is above 0, else with the last ones.
        objective: What is minimised.
        rows: What to train on.
        validation: What the loss is watched on; not trained on.
        config: Settings.
        seed: Seed of the order, and of dropout.
        around: Whom to report to; its ``measure`` is set here.
        evaluate: Measures the policy when ``config.best_by`` is not the loss.

    Raises:
        CheckpointError: The checkpoint to go on from belongs to another run.
        ConfigError: Dropout is asked of a model that has none.
        DataError: There are no rows, or none to validate on although it was asked for.
        NumericsError: The loss is not finite.
    """
    config = config.with_steps(len(rows))
    _check_rows(rows, validation, config)
    if config.max_steps == 0:
        return FitResult(0, 0, math.nan, None, "finished")
    model, weights = policy.model, trained_of(policy.model)

    def measure(step: int) -> dict[str, float]:
        return _measure(objective, validation, config, evaluate, step)

    def make_trainer(rows: list[Any], settings: Mapping[str, Any], **kwargs: Any) -> SFTTrainer:
        with quiet_settings():
            arguments = TRLSFTConfig(
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                bf16=False,
                **settings,
            )
        return _Shell(objective, args=arguments, train_dataset=Dataset.from_list(rows), **kwargs)

    around = dataclasses.replace(around, measure=measure if config.eval_every else None)
    with unchanged_forward(model), dropout(model, config.dropout, config.section):
        optimizer = _optimizer(weights.values(), config, policy.device)
        naming = _naming(objective, config)
        work = FitWork(objective.lengths, objective.cost, policy.compute_dtype, policy.device)
        found = Fit(weights, optimizer, config, seed, around, naming, policy, work)
        result = found.run([dict(row) for row in rows], make_trainer)
    model.eval()
    policy.sync()
    return result


class _Shell(SFTTrainer):
    """TRL's trainer with the objective's loss."""

    def __init__(self, objective: Objective, **kwargs: Any) -> None:
        self.objective: Objective = objective
        policy = objective.policy
        super().__init__(
            model=policy.model,
            processing_class=policy.tokenizer,
            data_collator=objective.collate,
            **kwargs,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The objective's loss, in the policy's precision."""
        with self.objective.policy.autocast():
            loss = self.objective.loss(inputs, num_items_in_batch)
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds what the objective remembers of a step to its loss."""
        super().log(logs | (self.objective.noted() if "loss" in logs else {}), start_time)


def _naming(objective: Objective, config: SupervisedConfig) -> Naming:
    name = objective.name
    logged = {"loss": f"{name}/loss", "grad_norm": "sft/grad_norm"}
    logged |= {note: f"{name}/{note}" for note in objective.notes}
    chooses = config.best_metric or f"{name}/val_loss"
    larger = config.best_metric is not None
    return Naming(config.section, "sft/step", "sft/lr", logged, chooses, larger_is_better=larger)


def _optimizer(
    weights: Iterable[nn.Parameter], config: SupervisedConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW; biases and the weights of norms do not decay."""
    weights = list(weights)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


@torch.no_grad()
def _measure(
    objective: Objective,
    rows: Sequence[TrainingRow],
    config: SupervisedConfig,
    evaluate: Evaluate | None,
    step: int,
) -> dict[str, float]:
    """Validates the weights as they are: the loss, and where they decide, the responses."""
    policy, name = objective.policy, objective.name
    training = policy.model.training
    policy.model.eval()
    size, loss, total = config.micro_batch_size or config.batch_size, 0.0, 0
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        batch = {k: v.to(policy.device) for k, v in objective.collate(part).items()}
        count = int((batch["labels"] != IGNORED).sum()) if "labels" in batch else len(part)
        with policy.autocast():
            loss += float(objective.loss(batch, None)) * count
        total += count
    measured = {f"{name}/val_loss": loss / total}
    measured |= {f"{name}/val_{note}": value for note, value in objective.noted().items()}
    if config.best_metric is not None:
        assert evaluate is not None, "best_by a reward needs a way to evaluate"
        policy.sync()
        measured |= evaluate(step)
        absent = config.best_metric not in measured
        if absent and not went_unmeasured(measured, config.best_metric):
            known = [k for k in measured if k.startswith("eval/") and k.endswith("/mean")]
            raise DataError(
                f"{config.section}.best_by = {config.best_by!r}: the evaluation at step {step} "
                f"has no such number; expected one of {', '.join(known) or 'none'}."
            )
    policy.model.train(training)
    return measured


def _check_rows(
    rows: Sequence[TrainingRow], validation: Sequence[TrainingRow], config: SupervisedConfig
) -> None:
    what = "pairs" if config.section == "dpo" else "demonstrations"
    if not rows:
        raise DataError(f"there are no {what}: expected at least one. Check the task.")
    if config.eval_every and not validation:
        raise DataError(
            f"{config.section}.eval_every is set but there are no validation {what}. Add some, or "
            f"set {config.section}.eval_every to 0."
        )
    micro_batch_size = config.micro_batch_size or config.batch_size
    if config.batch_size % micro_batch_size:
        raise DataError(
            f"{config.section}.micro_batch_size = {micro_batch_size}: expected a divisor of "
            f"{config.section}.batch_size = {config.batch_size}."
        )

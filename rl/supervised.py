"""What every kind of supervised training shares: the loop, with TRL's ``SFTTrainer`` as its shell.

An `Objective` says what a batch costs. The loop around it gives order, schedule, accumulation,
validation, early stopping, and the best weights in the end.
"""

from __future__ import annotations

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from instructrec.errors import DataError, NumericsError
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.dropout import dropout
from instructrec.policies.prefill import shared_columns
from instructrec.policies.quiet import without_wandb_note
from instructrec.policies.trunk import Trunk
from instructrec.rl.optim import learning_rate_factor
from instructrec.rl.supervised_config import SupervisedConfig
from instructrec.rl.trl_bridge import quiet_settings, unchanged_forward

with without_wandb_note():
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from trl import SFTConfig as TRLSFTConfig
    from trl import SFTTrainer

IGNORED = -100
"""Label of a token that the loss leaves out."""

OnStep = Callable[[dict[str, float]], None]
"""Receives the metrics of an optimizer step."""

Evaluate = Callable[[int], dict[str, float]]
"""Measures the policy's responses after a step; the metrics hold what ``best_by`` goes by."""

TrainingRow = Mapping[str, Any]
"""One example, encoded: what the objective's ``collate`` makes a batch of."""


@dataclass(frozen=True)
class SFTResult:
    """How supervised training ended."""

    steps: int
    """Optimizer steps that were run."""
    best_step: int
    """Step whose weights the policy now has."""
    loss: float
    """Training loss of the last step, in the unit of the objective."""
    best_score: float | None
    """Best validation: loss or the metric of ``best_by``, None when nothing was validated."""


class Objective(ABC):
    """What training minimises.

    Args:
        name: First part of its metrics: ``<name>/loss``, and ``<name>/val_loss`` in validation.
        policy: Whose weights train.
    """

    def __init__(self, name: str, policy: CausalLMPolicy) -> None:
        self.name = name
        self.policy = policy
        self.trunk = Trunk(policy.model)
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
    policy: CausalLMPolicy,
    objective: Objective,
    rows: Sequence[TrainingRow],
    validation: Sequence[TrainingRow],
    config: SupervisedConfig,
    *,
    seed: int,
    on_step: OnStep,
    evaluate: Evaluate | None = None,
) -> SFTResult:
    """Trains a policy on rows.

    Args:
        policy: The policy; its trained weights change in place. It ends with the weights of the
            best validation when ``config.eval_every`` is above 0, else with the last ones.
        objective: What is minimised.
        rows: What to train on.
        validation: What the loss is watched on; not trained on.
        config: Settings.
        seed: Seed of the order.
        on_step: Called after each optimizer step and each validation.
        evaluate: Measures the policy when ``config.best_by`` is not the loss.

    Raises:
        ConfigError: Dropout is asked of a model that has none.
        DataError: There are no rows, or none to validate on although it was asked for.
        NumericsError: The loss is not finite.
    """
    config = config.with_steps(len(rows))
    _check_rows(rows, validation, config)
    if config.max_steps == 0:
        return SFTResult(0, 0, math.nan, None)
    watch = _Watch(objective, config, on_step, _scored(policy, config, evaluate))
    model = policy.model
    with (
        tempfile.TemporaryDirectory() as unused_dir,
        unchanged_forward(model),
        dropout(model, config.dropout, config.section),
    ):
        order = _order(len(rows), config.max_steps * config.batch_size, seed)
        trainer = _Shell(
            objective,
            config,
            args=_trl_settings(config, policy, seed, unused_dir),
            train_dataset=Dataset.from_list([dict(rows[i]) for i in order]),
            eval_dataset=Dataset.from_list([*map(dict, validation)]) if validation else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(watch)
        trainer.train()
    model.eval()
    steps = int(trainer.state.global_step)
    best_step = watch.best_step if watch.best_weights else steps
    _load(model, watch.best_weights)
    policy.sync()
    return SFTResult(steps, best_step, watch.loss, watch.best_score)


class _Shell(SFTTrainer):
    """TRL's trainer with the objective's loss, our schedule, and no own logging."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, objective: Objective, config: SupervisedConfig, **kwargs: Any) -> None:
        self.objective: Objective = objective
        self.config: SupervisedConfig = config
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

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer,
                lambda step: learning_rate_factor(
                    step, self.config.lr_schedule, self.config.warmup_steps, self.config.max_steps
                ),
            )
        return self.lr_scheduler


class _Watch(TrainerCallback):
    """Reports each step, keeps the best weights, and stops when they stay the best."""

    def __init__(
        self,
        objective: Objective,
        config: SupervisedConfig,
        on_step: OnStep,
        evaluate: Evaluate | None,
    ) -> None:
        self.objective: Objective = objective
        self.config: SupervisedConfig = config
        self.on_step, self.evaluate = on_step, evaluate
        self.loss = math.nan
        self.best_score: float | None = None
        self.best_step = 0
        self.best_weights: dict[str, Tensor] = {}
        self.without_gain = 0

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        step, name = {"sft/step": float(state.global_step)}, self.objective.name
        if "loss" in logs:
            self.loss = logs["loss"]
            if not math.isfinite(self.loss):
                raise NumericsError(
                    f"the loss of step {state.global_step} is {self.loss}: expected a finite "
                    f"number. Lower {self.config.section}.learning_rate."
                )
            self.on_step(
                step
                | {f"{name}/loss": self.loss}
                | {f"{name}/{key}": value for key, value in self.objective.noted().items()}
                | {"sft/lr": logs["learning_rate"], "sft/grad_norm": logs["grad_norm"]}
            )
        elif "eval_loss" in logs:
            measured = {f"{name}/val_loss": logs["eval_loss"]} | {
                f"{name}/val_{key}": value for key, value in self.objective.noted().items()
            }
            if self.evaluate is not None:
                measured |= self.evaluate(state.global_step)
            self._note(state.global_step, measured)
            self.on_step(step | measured)

    def _note(self, step: int, measured: dict[str, float]) -> None:
        by_loss = self.evaluate is None
        key = f"{self.objective.name}/val_loss" if by_loss else self.config.best_metric
        score = measured.get(str(key))
        if score is None:
            known = [k for k in measured if k.startswith("eval/") and k.endswith("/mean")]
            raise DataError(
                f"{self.config.section}.best_by = {self.config.best_by!r}: the evaluation at step "
                f"{step} has no such number; expected one of {', '.join(known) or 'none'}."
            )
        best = self.best_score
        if best is not None and (score >= best if by_loss else score <= best):
            self.without_gain += 1
            return
        self.best_score, self.best_step, self.without_gain = score, step, 0
        self.best_weights = {
            name: p.detach().clone()
            for name, p in self.objective.policy.model.named_parameters()
            if p.requires_grad
        }

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        patience = self.config.early_stopping_patience
        if patience and self.without_gain >= patience:
            control.should_training_stop = True
        return control


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


def _scored(
    policy: CausalLMPolicy, config: SupervisedConfig, evaluate: Evaluate | None
) -> Evaluate | None:
    """The evaluation of the weights as they are at that moment; None where the loss decides."""
    if config.best_metric is None or not config.eval_every:
        return None
    assert evaluate is not None, "best_by a reward needs a way to evaluate"

    def measure(step: int) -> dict[str, float]:
        training = policy.model.training
        policy.sync()
        policy.model.eval()
        metrics = evaluate(step)
        policy.model.train(training)
        return metrics

    return measure


def _trl_settings(
    config: SupervisedConfig, policy: CausalLMPolicy, seed: int, output_dir: str
) -> TRLSFTConfig:
    micro_batch_size = config.micro_batch_size or config.batch_size
    if config.batch_size % micro_batch_size:
        raise DataError(
            f"{config.section}.micro_batch_size = {micro_batch_size}: expected a divisor of "
            f"{config.section}.batch_size = {config.batch_size}."
        )
    with quiet_settings():
        return TRLSFTConfig(
            output_dir=output_dir,
            per_device_train_batch_size=micro_batch_size,
            per_device_eval_batch_size=micro_batch_size,
            gradient_accumulation_steps=config.batch_size // micro_batch_size,
            max_steps=config.max_steps,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=policy.device.type == "cpu",
            seed=seed,
            dataloader_pin_memory=False,
            logging_steps=1,
            logging_nan_inf_filter=False,
            eval_strategy="steps" if config.eval_every else "no",
            eval_steps=config.eval_every or None,
            eval_on_start=bool(config.eval_every),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )


def _order(num_rows: int, length: int, seed: int) -> list[int]:
    """Row of each training example: one fresh permutation after another."""
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < length:
        order.extend(int(i) for i in rng.permutation(num_rows))
    return order[:length]


@torch.no_grad()
def _load(model: nn.Module, weights: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)

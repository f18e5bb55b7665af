"""Supervised fine-tuning on demonstrations, with TRL's ``SFTTrainer``.

The loss is on the responses alone, and so is the output layer. Prompts are encoded by the policy
itself, so that training and generation see the same tokens.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from instructrec.errors import DataError, NumericsError
from instructrec.policies.base import Prompt
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.prefill import SHORTEST_SHARED_PREFIX
from instructrec.policies.quiet import without_wandb_note
from instructrec.policies.trunk import Trunk
from instructrec.rl.config import SFTConfig
from instructrec.rl.optim import learning_rate_factor
from instructrec.rl.trl_bridge import quiet_settings, unchanged_forward

with without_wandb_note():
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from trl import SFTConfig as TRLSFTConfig
    from trl import SFTTrainer

OnStep = Callable[[dict[str, float]], None]
"""Receives the metrics of an optimizer step."""

Evaluate = Callable[[int], dict[str, float]]
"""Measures the policy's responses after a step; the metrics hold ``REWARD_KEY``."""

REWARD_KEY = "eval/total/mean"
"""The metric by which ``best_by = "reward"`` goes (larger is better)."""


@dataclass(frozen=True)
class Demonstration:
    """An instruction and the response that it should get."""

    prompt: Prompt
    """The instruction."""
    response: str
    """What the policy should answer, without special tokens."""


@dataclass(frozen=True)
class SFTResult:
    """How supervised training ended."""

    steps: int
    """Optimizer steps that were run."""
    best_step: int
    """Step whose weights the policy now has."""
    loss: float
    """Training loss of the last step (nats per response token)."""
    best_score: float | None
    """Best validation: loss or mean reward, None when nothing was validated."""


class _ResponseTrainer(SFTTrainer):
    """TRL's trainer with the policy's own precision and pass, our schedule, and no own logging."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, policy: CausalLMPolicy, config: SFTConfig, **kwargs: Any) -> None:
        self.policy = policy
        self.config = config
        self.trunk = Trunk(policy.model)
        super().__init__(model=policy.model, processing_class=policy.tokenizer, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean cross-entropy of the response tokens behind one optimizer step."""
        labels_BL = inputs["labels"]
        row_N, position_N = (labels_BL[:, 1:] != -100).nonzero(as_tuple=True)
        shared = self._shared_columns(inputs["input_ids"], int(position_N.min()))
        with self.policy.autocast():
            hidden_BSH, _ = self.trunk.full(inputs["input_ids"], shared)
            logprobs_N, _ = self.trunk.token_logprobs(
                hidden_BSH[row_N, position_N - shared], labels_BL[row_N, position_N + 1], 1.0
            )
        loss = -logprobs_N.sum() / (num_items_in_batch or len(row_N))
        return (loss, {"loss": loss}) if return_outputs else loss

    def _shared_columns(self, ids_BL: Tensor, most: int) -> int:
        """First columns that are the same in all rows and run once, ``most`` at the most."""
        same_L = (ids_BL[:, :most] == ids_BL[:1, :most]).all(0)
        shared = int(same_L.long().cumprod(0).sum())
        return shared if self.trunk.can_share and shared >= SHORTEST_SHARED_PREFIX else 0

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
        self, model: nn.Module, config: SFTConfig, on_step: OnStep, evaluate: Evaluate | None
    ) -> None:
        self.model, self.config, self.on_step, self.evaluate = model, config, on_step, evaluate
        self.loss = math.nan
        self.best_score: float | None = None
        self.best_step = 0
        self.best_weights: dict[str, Tensor] = {}
        self.without_gain = 0

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs: dict[str, float] = kwargs["logs"]
        step = {"sft/step": float(state.global_step)}
        if "loss" in logs:
            self.loss = logs["loss"]
            if not math.isfinite(self.loss):
                raise NumericsError(
                    f"the loss of step {state.global_step} is {self.loss}: expected a finite "
                    "number. Lower sft.learning_rate."
                )
            self.on_step(
                step
                | {
                    "sft/loss": self.loss,
                    "sft/lr": logs["learning_rate"],
                    "sft/grad_norm": logs["grad_norm"],
                }
            )
        elif "eval_loss" in logs:
            measured = {"sft/val_loss": logs["eval_loss"]}
            if self.evaluate is not None:
                measured |= self.evaluate(state.global_step)
            self._note(state.global_step, measured)
            self.on_step(step | measured)

    def _note(self, step: int, measured: dict[str, float]) -> None:
        by_loss = self.evaluate is None
        score = measured["sft/val_loss" if by_loss else REWARD_KEY]
        best = self.best_score
        if best is not None and (score >= best if by_loss else score <= best):
            self.without_gain += 1
            return
        self.best_score, self.best_step, self.without_gain = score, step, 0
        self.best_weights = {
            name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad
        }

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        patience = self.config.early_stopping_patience
        if patience and self.without_gain >= patience:
            control.should_training_stop = True
        return control


def run_sft(
    policy: CausalLMPolicy,
    demonstrations: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    config: SFTConfig,
    *,
    seed: int,
    on_step: OnStep,
    evaluate: Evaluate | None = None,
) -> SFTResult:
    """Trains a policy on demonstrations.

    Args:
        policy: The policy; its trained weights change in place. It ends with the weights of the
            best validation when ``config.eval_every`` is above 0, else with the last ones.
        demonstrations: What to imitate.
        validation: Demonstrations on which the loss is watched; not trained on.
        config: Settings.
        seed: Seed of the order.
        on_step: Called after each optimizer step and each validation.
        evaluate: Measures the policy when ``config.best_by`` is ``reward``.

    Raises:
        DataError: There are no demonstrations, or none to validate on although it was asked for.
        NumericsError: The loss is not finite.
    """
    if not demonstrations:
        raise DataError("there are no demonstrations: expected at least one. Check the task.")
    if config.eval_every and not validation:
        raise DataError(
            "sft.eval_every is set but there are no validation demonstrations. Add some, or set "
            "sft.eval_every to 0."
        )
    if config.max_steps == 0:
        return SFTResult(0, 0, math.nan, None)
    encoded = _encode(policy, demonstrations)
    order = _order(len(encoded), config.max_steps * config.batch_size, seed)
    scored = None
    if config.best_by == "reward" and config.eval_every:
        assert evaluate is not None, "best_by = 'reward' needs a way to evaluate"
        scored = _synced(policy, evaluate)
    watch = _Watch(policy.model, config, on_step, scored)
    with tempfile.TemporaryDirectory() as unused_dir, unchanged_forward(policy.model):
        trainer = _ResponseTrainer(
            policy,
            config,
            args=_trl_settings(config, policy, seed, unused_dir),
            train_dataset=Dataset.from_list([encoded[i] for i in order]),
            eval_dataset=Dataset.from_list(_encode(policy, validation)) if validation else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(watch)
        trainer.train()
    steps = int(trainer.state.global_step)
    if watch.best_weights:
        _load(policy.model, watch.best_weights)
    policy.sync()
    best_step = watch.best_step if watch.best_weights else steps
    return SFTResult(steps, best_step, watch.loss, watch.best_score)


def _synced(policy: CausalLMPolicy, evaluate: Evaluate) -> Evaluate:
    """The evaluation of the weights as they are at that moment, in the mode of the trainer."""

    def measure(step: int) -> dict[str, float]:
        training = policy.model.training
        policy.sync()
        metrics = evaluate(step)
        policy.model.train(training)
        return metrics

    return measure


def _trl_settings(
    config: SFTConfig, policy: CausalLMPolicy, seed: int, output_dir: str
) -> TRLSFTConfig:
    micro_batch_size = config.micro_batch_size or config.batch_size
    if config.batch_size % micro_batch_size:
        raise DataError(
            f"sft.micro_batch_size = {micro_batch_size}: expected a divisor of sft.batch_size = "
            f"{config.batch_size}."
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


def _encode(
    policy: CausalLMPolicy, demonstrations: Sequence[Demonstration]
) -> list[dict[str, list[int]]]:
    """Token ids and labels; the prompt's labels are -100, the end token is trained."""
    prompts = policy.encode([demonstration.prompt for demonstration in demonstrations])
    rows = []
    for prompt_ids, demonstration in zip(prompts, demonstrations, strict=True):
        response = policy.tokenizer(demonstration.response, add_special_tokens=False)["input_ids"]
        response_ids = [*response, policy.eos_token_ids[0]]
        rows.append(
            {
                "input_ids": prompt_ids + response_ids,
                "labels": [-100] * len(prompt_ids) + response_ids,
            }
        )
    return rows


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

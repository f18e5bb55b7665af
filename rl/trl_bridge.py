"""All contact with TRL: its online-RL trainer as a shell around an update of ours.

TRL gives the loop over updates with accelerate's processes and devices, the order of the data, and
callbacks; one of its training steps is one update. It removed its own PPO trainer and names
subclassing ``GRPOTrainer`` as the supported way to change what it computes. No name of it that is
not public is overridden or read, which a test makes sure of.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn

from instructrec import processes
from instructrec.devices import check_only_gpu
from instructrec.errors import ConfigError
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.quiet import without_wandb_note
from instructrec.policies.trunk import base_causal_lm
from instructrec.rl.config import PPOConfig

with without_wandb_note():
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

INDEX_COLUMN = "prompt"
"""The column that TRL keeps for us; it holds instruction indices, never text."""


def trl_settings(
    config: PPOConfig,
    *,
    seed: int,
    num_updates: int,
    device: torch.device,
    output_dir: Path,
) -> GRPOConfig:
    """Translates our settings to TRL's; everything that we do ourselves is switched off there.

    Args:
        config: Settings of the algorithm.
        seed: Seed that TRL hands to its global generators.
        num_updates: Updates that this call will run.
        device: Where the policy lives.
        output_dir: A folder that TRL may name but does not write to.
    """
    count = processes.world_size()
    _check_processes(count, device)
    with quiet_settings():
        settings = GRPOConfig(
            output_dir=str(output_dir),
            per_device_train_batch_size=config.episodes_per_update // count,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            num_iterations=1,
            num_generations=config.episodes_per_update,
            max_steps=num_updates,
            max_completion_length=config.response_length,
            temperature=config.temperature,
            beta=0.0,
            max_grad_norm=0.0,
            disable_dropout=True,
            shuffle_dataset=False,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=device.type == "cpu",
            seed=seed,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            logging_nan_inf_filter=False,
            logging_strategy="no",
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
    # TRL refuses one response per prompt because its own advantage needs a group. Ours does not,
    # and its sampler repeats each index this many times.
    settings.num_generations = 1
    return settings


def _check_processes(count: int, device: torch.device) -> None:
    """Refuses processes that have not found each other, and one process on several GPUs."""
    if processes.launched() != count:
        raise ConfigError(
            f"WORLD_SIZE = {processes.launched()} but {count} process takes part: expected the "
            "call inside of instructrec.processes.joined(), where the processes find each other."
        )
    if count == 1:
        check_only_gpu(device)


@contextmanager
def quiet_settings() -> Iterator[None]:
    """Hides the deprecation of a default of TRL's own that every construction would report."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        yield


@contextmanager
def unchanged_forward(model: nn.Module) -> Iterator[None]:
    """Puts back the model's own ``forward`` when the block ends.

    TRL's trainers replace it on the instance with one that can fuse the output layer into the
    loss. A policy that goes on to other stages must not carry that along.
    """
    causal = base_causal_lm(model)
    before = causal.__dict__.get("forward")
    try:
        yield
    finally:
        causal.__dict__.pop("forward", None)
        if before is not None:
            causal.forward = before


@contextmanager
def unwrapped(model: nn.Module) -> Iterator[None]:
    """Keeps accelerate from wrapping a model.

    Gradients are summed by us, the critic's included: wrapped for that, the model would only cost
    memory. Accelerate leaves alone what carries its mark.
    """
    model._is_accelerate_prepared = True  # type: ignore[assignment]
    try:
        yield
    finally:
        del model._is_accelerate_prepared


def _no_reward_of_trl(prompts: Sequence[Any], **_: Any) -> list[float | None]:
    raise AssertionError("rewards come from the environment, TRL never scores")


class _NoOptimizer(torch.optim.Optimizer):
    """Takes the step that TRL's loop takes after an update, and does nothing."""

    def __init__(self) -> None:
        super().__init__([nn.Parameter(torch.zeros(()))], {"lr": 0.0})

    def step(self, closure: Any = None) -> Any:
        """Leaves everything as it is: the update has taken its own steps."""


class _UpdateBoundary(TrainerCallback):
    """Calls the algorithm after each update, through TRL's public callbacks."""

    def __init__(self, trainer: RolloutTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.trainer.end_update():
            control.should_training_stop = True
        return control


class RolloutTrainer(GRPOTrainer):
    """TRL's trainer, whose steps are whole updates of ours.

    A subclass says what an update is: ``run_update`` collects a rollout and learns from it,
    ``end_update`` reports.

    Args:
        policy: The policy to train.
        order: Instruction index of every episode that will be played.
        settings: TRL's side of the settings, from ``trl_settings``.
    """

    _tag_names = ["instructrec", "ppo"]  # noqa: RUF012 (TRL reads it as a class attribute)
    _name = "PPO"
    args: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(self, policy: CausalLMPolicy, order: Sequence[int], settings: GRPOConfig) -> None:
        self.policy = policy
        with unchanged_forward(policy.model):
            super().__init__(
                model=policy.model,
                reward_funcs=[_no_reward_of_trl],
                args=settings,
                train_dataset=Dataset.from_dict({INDEX_COLUMN: list(order)}),
                processing_class=policy.tokenizer,
            )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(_UpdateBoundary(self))

    # What a subclass provides -----------------------------------------------------------------

    def run_update(self, indices: list[int]) -> None:
        """Collects a rollout on the given instructions and learns from it."""
        raise AssertionError("a subclass says what an update is")

    def end_update(self) -> bool:
        """Reports a finished update; returns whether to stop."""
        raise AssertionError("a subclass says what the end of an update is")

    # TRL's side ------------------------------------------------------------------------------

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Runs all updates."""
        with unwrapped(self.policy.model):
            return super().train(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Runs an update; TRL calls it with the rows of its dataset whose turn it is."""
        self.run_update([row[INDEX_COLUMN] for row in inputs])
        return torch.zeros((), device=self.policy.device)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """None that could change a weight: an update takes its own steps."""
        if self.optimizer is None:
            self.optimizer = _NoOptimizer()
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """None that could change anything."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer or self.optimizer)
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Drops TRL's own metrics: one dict per update goes to the sink instead."""

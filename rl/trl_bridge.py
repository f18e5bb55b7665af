"""All contact with TRL: its online-RL trainer as a shell around an algorithm of ours.

TRL gives the training loop with accelerate, adapters, gradient accumulation and callbacks. It
removed its own PPO trainer and names subclassing ``GRPOTrainer`` as the supported way to change
what it computes. The names that are not public are listed in ``PRIVATE_NAMES``; a test holds the
list to what this module really uses and says which one an upstream release broke.
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
from instructrec.errors import ConfigError, NumericsError
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.critic import Critic
from instructrec.policies.quiet import without_wandb_note
from instructrec.policies.trunk import base_causal_lm
from instructrec.rl.config import PPOConfig
from instructrec.rl.optim import clip_gradients, make_optimizer, make_scheduler, unwrapped
from instructrec.rl.sharing import sum_gradients

with without_wandb_note():
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

PRIVATE_NAMES = ("_clip_grad_norm", "_compute_loss", "_prepare_inputs")
"""Names of GRPOTrainer and its bases that are overridden although they are not public."""

INDEX_COLUMN = "prompt"
"""The column that TRL keeps for us; it holds instruction indices, never text."""


def trl_settings(
    config: PPOConfig,
    *,
    micro_batch_size: int,
    seed: int,
    num_updates: int,
    device: torch.device,
    output_dir: Path,
) -> GRPOConfig:
    """Translates our settings to TRL's; everything that we do ourselves is switched off there.

    Args:
        config: Settings of the algorithm.
        micro_batch_size: Episodes in one forward/backward of one process.
        seed: Seed that TRL hands to its global generators.
        num_updates: Updates that this call will run.
        device: Where the policy lives.
        output_dir: A folder that TRL may name but does not write to.
    """
    count = processes.world_size()
    if processes.launched() != count:
        raise ConfigError(
            f"WORLD_SIZE = {processes.launched()} but {count} process takes part: expected the "
            "call inside of instructrec.processes.joined(), where the processes find each other."
        )
    with quiet_settings():
        settings = GRPOConfig(
            output_dir=str(output_dir),
            per_device_train_batch_size=micro_batch_size,
            gradient_accumulation_steps=config.mini_batch_size // count // micro_batch_size,
            steps_per_generation=config.episodes_per_update // count // micro_batch_size,
            num_iterations=config.num_ppo_epochs,
            num_generations=config.episodes_per_update,
            max_steps=num_updates * config.steps_per_update,
            max_completion_length=config.response_length,
            temperature=config.temperature,
            beta=0.0,
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_grad_norm,
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


def _no_reward_of_trl(prompts: Sequence[Any], **_: Any) -> list[float | None]:
    raise AssertionError("rewards come from the environment, TRL never scores")


class _UpdateBoundary(TrainerCallback):
    """Calls the algorithm after each optimizer step, through TRL's public callbacks."""

    def __init__(self, trainer: RolloutTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.begin_training()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.critic.zero_grad()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        steps = self.trainer.config.steps_per_update
        if state.global_step % steps == 0 and self.trainer.end_update():
            control.should_training_stop = True
        return control


class RolloutTrainer(GRPOTrainer):
    """TRL's trainer, driven by rollouts of ours.

    A subclass says what an update is: ``begin_update`` collects a rollout and yields its
    micro-batches epoch by epoch, ``micro_batch_loss`` scores one, ``end_update`` reports.

    Args:
        policy: The policy to train.
        critic: Module outside the policy whose weights train as well.
        order: Instruction index of every episode that will be played.
        config: Settings of the algorithm.
        settings: TRL's side of them, from ``trl_settings``.
    """

    _tag_names = ["instructrec", "ppo"]  # noqa: RUF012 (TRL reads it as a class attribute)
    _name = "PPO"
    loss_is_scaled_for_ga = True  # the loop must not divide by the accumulation steps
    args: Any
    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        policy: CausalLMPolicy,
        critic: Critic,
        order: Sequence[int],
        config: PPOConfig,
        settings: GRPOConfig,
    ) -> None:
        self.policy = policy
        self.critic = critic
        self.config = config
        self.grad_norms: list[float] = []
        self._slot = 0
        self._queue: Iterator[Any] = iter(())
        with unchanged_forward(policy.model):
            super().__init__(
                model=policy.model,
                reward_funcs=[_no_reward_of_trl],
                args=settings,
                train_dataset=Dataset.from_dict({INDEX_COLUMN: list(order)}),
                processing_class=policy.tokenizer,
            )
        # Gradients are summed by us, critic included: wrapped for that, the model would only cost
        # memory. Accelerate leaves alone what carries this mark.
        policy.model._is_accelerate_prepared = True
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(_UpdateBoundary(self))

    # What a subclass provides -----------------------------------------------------------------

    def begin_training(self) -> None:
        """Called once the optimizer and the scheduler exist."""

    def begin_update(self, indices: list[int]) -> Iterator[Any]:
        """Collects a rollout and yields the micro-batches of all its epochs."""
        raise AssertionError("a subclass says what an update is")

    def micro_batch_loss(self, micro_batch: Any) -> Tensor:
        """Loss of one micro-batch; losses of a minibatch are summed."""
        raise AssertionError("a subclass says what the loss is")

    def may_step(self) -> bool:
        """Says, once the gradient of a minibatch is complete, whether to step with it."""
        return True

    def end_update(self) -> bool:
        """Reports a finished update; returns whether to stop."""
        raise AssertionError("a subclass says what the end of an update is")

    # TRL's side ------------------------------------------------------------------------------

    @property
    def slots_per_update(self) -> int:
        """Micro-batches in one update, over all epochs."""
        return self.args.steps_per_generation * self.config.num_ppo_epochs

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Hands out the next micro-batch; TRL calls it before each forward/backward."""
        if self._slot == 0:
            self._queue = self.begin_update([row[INDEX_COLUMN] for row in generation_batch])
        self._slot = (self._slot + 1) % self.slots_per_update
        return {"micro_batch": next(self._queue)}

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Our loss: its micro-batches add up to that of the minibatch."""
        return self.micro_batch_loss(inputs["micro_batch"])

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clips policy and critic, summed over the processes; a broken norm stops the run."""
        policy, critic = self.trained_parameters()
        sum_gradients([*policy, *critic])
        joint = self.config.critic == "shared"
        norm = clip_gradients(policy, critic, self.config.max_grad_norm, joint=joint)
        if not torch.isfinite(norm):
            raise NumericsError(
                f"the gradient norm is {float(norm)}: expected a finite number. The weights are "
                "those before this step. Look at the rewards of the last rollout, mend them "
                "and use --resume, or start a new run with a lower learning rate."
            )
        unwrapped(self.optimizer).skip = not self.may_step()
        if not unwrapped(self.optimizer).skip:
            self.grad_norms.append(float(norm))
        return norm

    def trained_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The weights that train: the policy's, and the critic's."""
        policy = [p for p in self.policy.model.parameters() if p.requires_grad]
        return policy, [p for p in self.critic.parameters() if p.requires_grad]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with one group for the policy and one for the critic."""
        if self.optimizer is None:
            self.optimizer = make_optimizer(
                *self.trained_parameters(), self.config, self.policy.device
            )
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Our schedule over the whole run, of which this call may be only a part."""
        if self.lr_scheduler is None:
            self.lr_scheduler = make_scheduler(optimizer or self.optimizer, self.config)
        return self.lr_scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Drops TRL's own metrics: one dict per update goes to the sink instead."""

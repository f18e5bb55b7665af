"""One loop for everything that is fitted to given examples with a trainer of transformers.

Optimizer, schedule, order and checkpoints are ours: a run that was interrupted goes on from its
checkpoint as if nothing had happened, bit for bit on the CPU.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from instructrec.crash_points import crash_point
from instructrec.devices import check_only_gpu
from instructrec.errors import NumericsError
from instructrec.policies.quiet import without_wandb_note
from instructrec.rl.checkpoint import checkpoint_path, is_finite, write_checkpoint
from instructrec.rl.checkpoint_clock import CheckpointClock
from instructrec.rl.checkpoint_keeping import prune_checkpoints
from instructrec.rl.fit_speed import FitSpeedometer, FitWork
from instructrec.rl.fit_state import capture, load, restore
from instructrec.rl.global_generators import set_global_states
from instructrec.rl.guards import enough_memory
from instructrec.rl.optim import learning_rate_factor
from instructrec.rl.reward_config import FitConfig
from instructrec.rl.supervised_config import SupervisedConfig

with without_wandb_note():
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed


@dataclass(frozen=True)
class FitResult:
    """How fitting ended."""

    steps: int
    """Optimizer steps in all."""
    best_step: int
    """Step whose weights are kept."""
    loss: float
    """Training loss of the last step, in the unit of what is fitted; NaN when none was run."""
    best_score: float | None
    """Best validation, by what they go by; None when nothing was validated."""
    stopped: Literal["finished", "early_stopping", "interrupted"]
    """Why it ended."""


@dataclass(frozen=True)
class Surroundings:
    """Whom a fit reports to and asks."""

    on_step: Callable[[dict[str, float]], None]
    """Receives the metrics of a step; those of a validation and of training come apart."""
    on_save: Callable[[], None] = lambda: None
    """Called before a checkpoint is begun: what was reported has to be on the disk by its end."""
    measure: Callable[[int], dict[str, float]] | None = None
    """Validates the weights as they are after a step; the metrics hold what it is chosen by."""
    checkpoint_dir: Path | None = None
    """Where checkpoints go; None writes none."""
    resume_from: Path | None = None
    """Checkpoint to go on from."""
    allow_change: Collection[str] = ()
    """What may differ from the checkpoint's all the same: settings, ``weights``, ``versions``."""
    start: str | None = None
    """Hash of the weights before training (of models that score, of those that stay as they are),
    which a run that goes on has to begin with as well."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after each step whether to stop behind a checkpoint."""
    attended: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered for as long as that is asked."""
    tells_speed: bool = True
    """Whether steps say how fast they were, against what this machine can do at most."""


@dataclass(frozen=True)
class Naming:
    """What a fit calls its numbers, and which of them chooses the best weights."""

    section: str
    """Where its settings stand in a recipe."""
    step: str
    """Metric that counts the steps."""
    rate: str
    """Metric of the learning rate."""
    logged: Mapping[str, str]
    """Metric of each number that the trainer logs."""
    chooses: str
    """Metric by which a validation is the best one."""
    larger_is_better: bool
    """Whether the best one has the largest; else the smallest."""


MakeTrainer = Callable[..., Any]
"""Makes the trainer from the training rows in their order, ``optimizers``, and settings."""


class Draws(Protocol):
    """A policy with a generator of its own, which validations draw from."""

    def generator_state(self) -> Tensor:
        """The state of the generator."""

    def set_generator_state(self, state: Tensor) -> None:
        """Puts it back."""


class Fit(TrainerCallback):
    """The state of a fit: weights, optimizer, schedule, the best weights so far.

    Args:
        weights: The weights that train, by name.
        optimizer: Their optimizer, with the peak learning rates.
        config: Settings.
        seed: Seed of the order, and of what is drawn within a step.
        around: Whom to report to.
        naming: What the numbers are called.
        sampler: Who draws the responses of validations, where there are some.
        work: What its passes read; None tells no speed.

    Raises:
        ConfigError: The weights live on one of several GPUs.
        CheckpointError: The checkpoint belongs to another run.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        config: FitConfig | SupervisedConfig,
        seed: int,
        around: Surroundings,
        naming: Naming,
        sampler: Draws | None = None,
        work: FitWork | None = None,
    ) -> None:
        self.weights, self.config, self.seed, self.around = dict(weights), config, seed, around
        self._device = next(iter(self.weights.values())).device
        check_only_gpu(self._device)
        self.optimizer, self.naming, self.sampler = optimizer, naming, sampler
        self.work = work if around.tells_speed else None
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(
                step, config.lr_schedule, config.warmup_steps, config.max_steps
            ),
        )
        self.first = self.step = 0
        self.loss = math.nan
        self.best_score: float | None = None
        self.best_step = self.without_gain = 0
        self.best_weights: dict[str, Tensor] = {}
        self.interrupted = False
        self._generators: dict[str, Tensor] = {}
        self._speedometer: FitSpeedometer | None = None
        self._stepped, self._rate = 0, 0.0
        self._clock = CheckpointClock(config.save_minutes)
        if around.resume_from is not None:
            self._generators = restore(self, around.resume_from)

    def run(self, rows: Sequence[Any], make_trainer: MakeTrainer) -> FitResult:
        """Fits, and leaves the best weights (where validated) or the last ones.

        Args:
            rows: The training examples.
            make_trainer: Makes the trainer.

        Raises:
            DataError: A validation lacks the number that chooses the best weights.
            NumericsError: The loss is not finite.
        """
        with self.around.attended():
            self._learn(rows, make_trainer)
            if not self.interrupted and self.around.should_stop():  # it came with the last step
                self.interrupted = True
                self._save()
        if self.best_weights and not self.interrupted:
            load(self.weights, self.best_weights)
        best_step = self.best_step if self.best_weights else self.step
        stopped: Any = "finished" if self.step == self.config.max_steps else "early_stopping"
        if self.interrupted:
            stopped = "interrupted"
        return FitResult(self.step, best_step, self.loss, self.best_score, stopped)

    def _learn(self, rows: Sequence[Any], make_trainer: MakeTrainer) -> None:
        remaining = self.config.max_steps - self.step
        if self.step == 0:
            set_seed(self.seed)  # as the trainer does; what validations draw goes by it, too
            if self.around.measure is not None and self.config.eval_every:
                self._validate(self.around.measure)
        if remaining and not self._patience_is_over():
            order = self._order(len(rows), self.config.max_steps * self.config.batch_size)
            left = [rows[i] for i in order[self.step * self.config.batch_size :]]
            if self.work is not None:
                self._speedometer = FitSpeedometer(self.work, left, self.config)
            with tempfile.TemporaryDirectory() as unused_dir:
                trainer = make_trainer(
                    left,
                    optimizers=(self.optimizer, self.scheduler),
                    settings=self._settings(remaining, unused_dir),
                )
                trainer.remove_callback(PrinterCallback)
                trainer.remove_callback(ProgressCallback)
                trainer.add_callback(self)
                with enough_memory(
                    "a training step",
                    f"Lower {self.naming.section}.micro_batch_size (or batch_size), train fewer "
                    "weights (policy.train = 'lora' or 'last_layers')",
                ):
                    trainer.train()

    # What the trainer calls ----------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The time of the first step begins."""
        self._restart_clock()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What a step draws (by dropout) goes by the seed and its number alone."""
        if self._generators:
            set_global_states(self._generators)
            self._generators = {}
        torch.manual_seed(self.seed * 1_000_003 + self.step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts the weights that the optimizer has changed: those with a gradient."""
        self._stepped = sum(p.numel() for p in self.weights.values() if p.grad is not None)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuses a step that would make the weights no numbers; what was learned so far is kept.

        Raises:
            NumericsError: The loss or its gradient is not finite.
        """
        self._rate = float(self.optimizer.param_groups[0]["lr"])  # the schedule goes on behind it
        if _is_sound([p.grad for p in self.weights.values() if p.grad is not None]):
            return
        self.optimizer.zero_grad()
        if self.step > self.first:
            self._save()
        raise NumericsError(
            f"the loss of step {self.step + 1}, or its gradient, is not finite: expected finite "
            f"numbers. The step was not taken. Lower {self.naming.section}.learning_rate, or look "
            "at the data."
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts the step."""
        self.step = self.first + state.global_step
        crash_point("fit.stepped")

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Reports a step, validates, saves and stops, in this order: it comes behind the step."""
        logs: dict[str, float] = kwargs["logs"]
        if "loss" not in logs:  # the trainer's own summary
            return control
        self._report(logs, self._speed())
        config, measure = self.config, self.around.measure
        last = self.step == config.max_steps
        if measure is not None and _is_due(config.eval_every, self.step, last):
            self._validate(measure)
        self.interrupted = self.around.should_stop()
        if self.interrupted or self._patience_is_over():
            control.should_training_stop = True
        ends = last or self._patience_is_over()
        due = _is_due(config.save_every, self.step, False) or self._clock.is_due(ends=ends)
        if self.interrupted or due:
            self._save()
        self._restart_clock()
        return control

    # Helpers -------------------------------------------------------------------------------------

    def _speed(self) -> dict[str, float]:
        """How fast the step was that has just ended."""
        if self._speedometer is None:
            return {}
        return self._speedometer.metrics(self.step - self.first - 1, self._stepped)

    def _restart_clock(self) -> None:
        if self._speedometer is not None:
            self._speedometer.restart()

    def _report(self, logs: Mapping[str, float], speed: Mapping[str, float]) -> None:
        self.loss = logs["loss"]
        if not math.isfinite(self.loss):
            raise NumericsError(
                f"the loss of step {self.step} is {self.loss}: expected a finite number. Lower "
                f"{self.naming.section}.learning_rate."
            )
        logged = self.naming.logged.items()
        named = {ours: float(logs[theirs]) for theirs, ours in logged if theirs in logs}
        self.around.on_step(
            {self.naming.step: float(self.step), self.naming.rate: self._rate, **named, **speed}
        )

    def _validate(self, measure: Callable[[int], dict[str, float]]) -> None:
        measured = measure(self.step)
        self.around.on_step({self.naming.step: float(self.step), **measured})
        score, best = measured.get(self.naming.chooses), self.best_score
        if score is None or not math.isfinite(score):
            return  # it says nothing: rewards failed, or the next step will meet what is wrong
        sign = 1 if self.naming.larger_is_better else -1
        if best is not None and sign * score <= sign * best:
            self.without_gain += 1
            return
        self.best_score, self.best_step, self.without_gain = score, self.step, 0
        self.best_weights = {name: p.detach().clone() for name, p in self.weights.items()}

    def _save(self) -> None:
        if self.around.checkpoint_dir is None:
            return
        self.around.on_save()
        crash_point("fit.reported")
        with self._clock.saving():
            write_checkpoint(checkpoint_path(self.around.checkpoint_dir, self.step), capture(self))
            prune_checkpoints(self.around.checkpoint_dir, self.config.keep_checkpoints)

    def _patience_is_over(self) -> bool:
        patience = self.config.early_stopping_patience
        return bool(patience) and self.without_gain >= patience

    def _order(self, num_rows: int, length: int) -> list[int]:
        """Row of each training example: one fresh permutation after another."""
        rng = np.random.default_rng(self.seed)
        order: list[int] = []
        while len(order) < length:
            order.extend(int(i) for i in rng.permutation(num_rows))
        return order[:length]

    def _settings(self, steps: int, unused_dir: str) -> dict[str, Any]:
        """What every trainer of transformers is told."""
        micro = self.config.micro_batch_size or self.config.batch_size
        return {
            "output_dir": unused_dir,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": self.config.batch_size // micro,
            "max_steps": steps,
            "max_grad_norm": self.config.max_grad_norm,
            "train_sampling_strategy": "sequential",
            "remove_unused_columns": False,
            "gradient_checkpointing": False,
            "use_cpu": self._device.type == "cpu",
            "seed": self.seed,
            "dataloader_pin_memory": False,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }


def _is_sound(gradients: Sequence[Tensor]) -> bool:
    """Whether gradients that were clipped had a finite norm.

    Clipping by a NaN makes all of them NaN, and by an infinite norm all 0 but those at fault: the
    first one tells that all are well, as a rule.
    """
    if not gradients or (is_finite(gradients[0]) and bool(gradients[0].any())):
        return True
    return all(map(is_finite, gradients))


def _is_due(every: int, step: int, last: bool) -> bool:
    """Whether something that happens every so many steps (0: never) happens after this one."""
    return every > 0 and (last or step % every == 0)

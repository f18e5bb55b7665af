"""One loop for everything that is fitted to given examples with a trainer of transformers.

Optimizer, schedule, order and checkpoints are ours: a run that was interrupted goes on from its
checkpoint as if nothing had happened, bit for bit on the CPU.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from instructrec.errors import CheckpointError, NumericsError
from instructrec.policies.quiet import without_wandb_note
from instructrec.rl.checkpoint import (
    Snapshot,
    checkpoint_path,
    read_checkpoint,
    write_checkpoint,
)
from instructrec.rl.checkpoint_keeping import prune_checkpoints
from instructrec.rl.optim import go_to_step, learning_rate_factor
from instructrec.rl.reward_config import MAY_CHANGE, FitConfig

with without_wandb_note():
    from transformers import PrinterCallback, ProgressCallback, TrainerCallback

STEP, LOSS, VAL_LOSS, VAL_ACCURACY = "rm/step", "rm/loss", "rm/val_loss", "rm/val_accuracy"
_LOGGED = {
    "loss": LOSS,
    "grad_norm": "rm/grad_norm",
    "accuracy": "rm/accuracy",
    "margin": "rm/margin",
}


@dataclass(frozen=True)
class FitResult:
    """How fitting ended."""

    steps: int
    """Optimizer steps in all."""
    best_step: int
    """Step whose weights are kept."""
    loss: float
    """Training loss of the last step; NaN when none was run."""
    best_score: float | None
    """Best validation (loss or accuracy); None when nothing was validated."""
    stopped: Literal["finished", "early_stopping", "interrupted"]
    """Why it ended."""


@dataclass(frozen=True)
class Surroundings:
    """Whom a fit reports to and asks."""

    on_step: Callable[[dict[str, float]], None]
    """Receives the metrics of a step; those of a validation and of training come apart."""
    measure: Callable[[], dict[str, float]] | None = None
    """Validates the weights as they are; the metrics hold `VAL_LOSS` and `VAL_ACCURACY`."""
    checkpoint_dir: Path | None = None
    """Where checkpoints go; None writes none."""
    resume_from: Path | None = None
    """Checkpoint to go on from."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after each step whether to stop behind a checkpoint."""


MakeTrainer = Callable[..., Any]
"""Makes the trainer from the training rows in their order, ``optimizers``, and settings."""


class Fit(TrainerCallback):
    """The state of a fit: weights, optimizer, schedule, the best weights so far.

    Args:
        weights: The weights that train, by name.
        groups: Parameter groups of the optimizer, each with its ``lr``.
        config: Settings.
        seed: Seed of the order, and of what is drawn within a step.
        around: Whom to report to.

    Raises:
        CheckpointError: The checkpoint belongs to another run.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        groups: Sequence[dict[str, Any]],
        config: FitConfig,
        seed: int,
        around: Surroundings,
    ) -> None:
        self.weights, self.config, self.seed, self.around = dict(weights), config, seed, around
        self.optimizer = torch.optim.AdamW(list(groups), weight_decay=config.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
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
        if around.resume_from is not None:
            self._restore(read_checkpoint(around.resume_from))

    def run(self, rows: Sequence[Any], make_trainer: MakeTrainer) -> FitResult:
        """Fits, and leaves the best weights (where validated) or the last ones.

        Args:
            rows: The training examples.
            make_trainer: Makes the trainer.

        Raises:
            NumericsError: The loss is not finite.
        """
        remaining = self.config.max_steps - self.step
        if self.around.measure is not None and self.config.eval_every and self.step == 0:
            self._validate()
        if remaining and not self._patience_is_over():
            order = self._order(len(rows), self.config.max_steps * self.config.batch_size)
            left = order[self.step * self.config.batch_size :]
            with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as unused_dir:
                trainer = make_trainer(
                    [rows[i] for i in left],
                    optimizers=(self.optimizer, self.scheduler),
                    settings=self._settings(remaining, unused_dir),
                )
                trainer.remove_callback(PrinterCallback)
                trainer.remove_callback(ProgressCallback)
                trainer.add_callback(self)
                trainer.train()
        if self.best_weights and not self.interrupted:
            _load(self.weights, self.best_weights)
        best_step = self.best_step if self.best_weights else self.step
        done = self.step == self.config.max_steps
        stopped: Any = "interrupted" if self.interrupted else "finished"
        if not done and not self.interrupted:
            stopped = "early_stopping"
        return FitResult(self.step, best_step, self.loss, self.best_score, stopped)

    # What the trainer calls ----------------------------------------------------------------------

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What a step draws (dropout of adapters) goes by the seed and its number alone."""
        torch.manual_seed(self.seed * 1_000_003 + self.step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Validates, saves and stops at the end of a step."""
        self.step = self.first + state.global_step
        config = self.config
        last = self.step == config.max_steps
        due = config.eval_every and (last or self.step % config.eval_every == 0)
        if self.around.measure is not None and due:
            self._validate()
        if self._patience_is_over():
            control.should_training_stop = True
        elif self.around.should_stop() and not last:
            self.interrupted = control.should_training_stop = True
        due = config.save_every and self.step % config.save_every == 0 and not last
        if self.around.checkpoint_dir is not None and (due or self.interrupted):
            write_checkpoint(
                checkpoint_path(self.around.checkpoint_dir, self.step), self._snapshot()
            )
            prune_checkpoints(self.around.checkpoint_dir, config.keep_checkpoints)
        return control

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reports a training step."""
        logs: dict[str, float] = kwargs["logs"]
        if "loss" not in logs:
            return
        self.loss = logs["loss"]
        if not math.isfinite(self.loss):
            raise NumericsError(
                f"the loss of step {self.step} is {self.loss}: expected a finite number. Lower "
                "fit.learning_rate."
            )
        rate = self.optimizer.param_groups[0]["lr"]
        named = {ours: float(logs[theirs]) for theirs, ours in _LOGGED.items() if theirs in logs}
        self.around.on_step({STEP: float(self.step), "rm/lr": float(rate), **named})

    # Helpers -------------------------------------------------------------------------------------

    def _validate(self) -> None:
        assert self.around.measure is not None
        measured = self.around.measure()
        self.around.on_step({STEP: float(self.step), **measured})
        by_loss = self.config.best_by == "loss"
        score = measured[VAL_LOSS if by_loss else VAL_ACCURACY]
        best = self.best_score
        if best is not None and (score >= best if by_loss else score <= best):
            self.without_gain += 1
            return
        self.best_score, self.best_step, self.without_gain = score, self.step, 0
        self.best_weights = {name: p.detach().clone() for name, p in self.weights.items()}

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
        device = next(iter(self.weights.values())).device
        return {
            "output_dir": unused_dir,
            "per_device_train_batch_size": micro,
            "gradient_accumulation_steps": self.config.batch_size // micro,
            "max_steps": steps,
            "max_grad_norm": self.config.max_grad_norm,
            "train_sampling_strategy": "sequential",
            "remove_unused_columns": False,
            "gradient_checkpointing": False,
            "use_cpu": device.type == "cpu",
            "seed": self.seed,
            "dataloader_pin_memory": False,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }

    def _snapshot(self) -> Snapshot:
        tensors: dict[str, Tensor] = {f"weights.{name}": p for name, p in self.weights.items()}
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{n}": torch.as_tensor(v) for n, v in moments.items()}
        state = {
            "step": self.step,
            "seed": self.seed,
            "config": dataclasses.asdict(self.config),
            "best": [self.best_score, self.best_step, self.without_gain],
        }
        return Snapshot(tensors, state)

    def _restore(self, snapshot: Snapshot) -> None:
        state, now = snapshot.state, dataclasses.asdict(self.config)
        before = state.get("config", {})
        changed = [k for k in now if k not in MAY_CHANGE and now[k] != before.get(k)]
        if changed or state.get("seed") != self.seed:
            raise CheckpointError(
                f"the checkpoint {self.around.resume_from} was written with other settings "
                f"({', '.join(f'fit.{k}' for k in changed) or 'seed'}): continue the run as it was "
                "started, or start another one."
            )
        _load(self.weights, _under("weights.", snapshot.tensors))
        self.best_weights = _under("best.", snapshot.tensors)
        moments: dict[int, dict[str, Any]] = {}
        for key, value in _under("optimizer.", snapshot.tensors).items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.first = self.step = int(state["step"])
        go_to_step(self.scheduler, self.step)
        self.best_score, self.best_step, self.without_gain = state["best"]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def _load(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    if weights.keys() != values.keys():
        raise CheckpointError(
            "the checkpoint holds other weights than those that train now: continue the run with "
            "the policy settings that it was started with."
        )
    for name, value in values.items():
        weights[name].copy_(value)

"""Settings of reward models: plain frozen dataclasses, no torch and no TRL.

The string under each field is its help text on the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from instructrec.choices import check_choices
from instructrec.errors import ConfigError

MAY_CHANGE = ("save_every", "save_minutes", "keep_checkpoints")
"""Settings of `FitConfig` that may differ when a run is continued."""


@dataclass(frozen=True)
class FitConfig:
    """How the weights of a reward model are fitted."""

    max_steps: int = 100
    """Optimizer steps."""
    batch_size: int = 16
    """Pairs behind one optimizer step; for alignment also the outputs among which each one is to
    be told from the others."""
    micro_batch_size: int | None = None
    """Pairs in one forward/backward; None takes the whole batch (alignment always does)."""
    learning_rate: float = 2e-5
    """Peak learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 5
    """Optimizer steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradient clipping by L2 norm."""
    max_length: int | None = None
    """Longest text in tokens; None for what the model reads. Longer ones are cut and counted."""
    eval_every: int = 0
    """Steps between two validations; 0 keeps the last weights, else the best ones are kept."""
    best_by: Literal["loss", "accuracy"] = "loss"
    """What validations go by."""
    early_stopping_patience: int = 0
    """Validations without improvement after which training stops; 0 never stops early."""
    eval_batch_size: int = 32
    """Texts in one forward pass of a validation."""
    save_every: int = 0
    """Steps between two checkpoints; 0 goes by save_minutes alone."""
    save_minutes: float = 10.0
    """Minutes after which a step ends with a checkpoint in any case; 0: never by the clock."""
    keep_checkpoints: int = 1
    """Newest checkpoints that are kept; all are deleted when the run has finished."""

    def __post_init__(self) -> None:
        check_choices(self, "fit")
        for name in ("max_steps", "batch_size", "eval_batch_size", "keep_checkpoints"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("warmup_steps", "weight_decay", "eval_every", "save_every", "save_minutes"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            self._require(math.isfinite(value) and value > 0, name, "more than 0")
        micro = self.micro_batch_size
        self._require(
            micro is None or (micro >= 1 and self.batch_size % micro == 0),
            "micro_batch_size",
            f"a divisor of fit.batch_size = {self.batch_size}",
        )
        self._require(
            self.early_stopping_patience == 0 or self.eval_every > 0,
            "early_stopping_patience",
            "0, or fit.eval_every above 0 as well",
        )

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            raise ConfigError(f"fit.{field} = {getattr(self, field)!r}: expected {expected}.")


@dataclass(frozen=True)
class PreferenceConfig:
    """The Bradley-Terry loss: -log σ(score of chosen - score of rejected - margin)."""

    margins: bool = False
    """Ask for a distance of the scores: the pairs' column margin times margin_scale."""
    margin_scale: float = 1.0
    """Factor from the column to the scale of the scores."""
    center_coef: float = 0.0
    """Weight of the square of the two scores' sum, which keeps scores around 0 (0.01 is usual)."""

    def __post_init__(self) -> None:
        if not self.margin_scale > 0:
            raise ConfigError(
                f"preference.margin_scale = {self.margin_scale}: expected more than 0."
            )
        if not self.center_coef >= 0:
            raise ConfigError(f"preference.center_coef = {self.center_coef}: expected 0 or more.")


@dataclass(frozen=True)
class AlignmentConfig:
    """The sigmoid loss over in-batch pairs: -log σ(±(scale · cosine + bias))."""

    scale: float = 10.0
    """Where the factor of the cosine starts; it is learned."""
    bias: float | None = None
    """Where the bias starts; None gives mismatches the odds of a match among a batch, by their
    cosine before training. It is learned."""
    learning_rate: float = 1e-2
    """Peak learning rate of the two."""

    def __post_init__(self) -> None:
        for name in ("scale", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"alignment.{name} = {getattr(self, name)}: expected more than 0."
                )

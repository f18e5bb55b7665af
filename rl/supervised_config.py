"""Settings of supervised training: plain frozen dataclasses, no torch and no TRL.

The string under each field is its help text on the command line.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from instructrec.choices import check_choices
from instructrec.rl.config_rules import require

REWARD_KEY = "eval/total/mean"
"""The metric by which ``best_by = "reward"`` goes (larger is better)."""


@dataclass(frozen=True)
class SupervisedConfig:
    """What every kind of supervised training is told."""

    section: ClassVar[str]
    """Where these settings stand in a recipe."""

    max_steps: int = 20
    """Optimizer steps; 0 trains on nothing and keeps the weights."""
    epochs: float | None = None
    """Passes over the training data; given, they say how many max_steps there are."""
    batch_size: int = 16
    """Demonstrations (pairs with dpo) behind one optimizer step."""
    micro_batch_size: int | None = None
    """Demonstrations (pairs) in one forward/backward; None takes the whole batch."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    max_grad_norm: float = 1.0
    """Gradient clipping by L2 norm."""
    dropout: float = 0.0
    """Dropout of the model's own layers while it trains; adapters have policy.lora.dropout."""
    eval_every: int = 0
    """Steps between two validations; 0 never validates and keeps the last weights."""
    best_by: str = "loss"
    """What validations go by: loss, reward (mean total of responses), or eval/<reward>/mean."""
    early_stopping_patience: int = 0
    """Validations without improvement after which training stops; 0 never stops early."""
    save_every: int = 500
    """Steps between two checkpoints; 0 goes by save_minutes alone."""
    save_minutes: float = 10.0
    """Minutes after which a step ends with a checkpoint in any case; 0: never by the clock."""
    keep_checkpoints: int = 1
    """Newest checkpoints that are kept; all are deleted when the run has finished."""

    def __post_init__(self) -> None:
        check_choices(self, self.section)
        self._require(self.batch_size >= 1, "batch_size", "at least 1")
        self._require(self.max_steps >= 0, "max_steps", "0 or more")
        self._require(self.save_every >= 0, "save_every", "0 or more")
        self._require(self.save_minutes >= 0, "save_minutes", "0 or more")
        self._require(self.keep_checkpoints >= 1, "keep_checkpoints", "at least 1")
        self._require(self.epochs is None or self.epochs > 0, "epochs", "more than 0")
        self._require(self.learning_rate > 0, "learning_rate", "more than 0")
        self._require(0 <= self.dropout < 1, "dropout", "0 or more, and below 1")
        self._require(
            self.best_by in ("loss", "reward")
            or re.fullmatch(r"eval/[a-z0-9_.]+/mean", self.best_by) is not None,
            "best_by",
            "loss, reward, or the mean of a reward such as eval/exact_match/mean",
        )
        self._require(
            self.early_stopping_patience == 0 or self.eval_every > 0,
            "early_stopping_patience",
            f"0, or {self.section}.eval_every above 0 as well",
        )

    def _require(self, condition: bool, name: str, expected: str) -> None:
        require(condition, f"{self.section}.{name}", getattr(self, name), expected)

    @property
    def best_metric(self) -> str | None:
        """The metric of responses that validations go by; None for the validation loss."""
        return {"loss": None, "reward": REWARD_KEY}.get(self.best_by, self.best_by)

    def with_steps(self, rows: int) -> Self:
        """The same settings with the steps that the epochs come to, where there are some.

        Args:
            rows: Examples (pairs) to train on.
        """
        if self.epochs is None:
            return self
        return replace(self, max_steps=math.ceil(self.epochs * rows / self.batch_size))


@dataclass(frozen=True)
class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning on demonstrations (loss on the responses only)."""

    section: ClassVar[str] = "sft"

    demonstrations: int = 50
    """Demonstrations taken from the training split (all of them when there are fewer)."""
    validation_demonstrations: int = 50
    """Demonstrations of the validation split on which the loss is watched."""
    head: Literal["text", "labels"] = "text"
    """What answers: the model writes text, or a new linear head gives one of the labels that the
    demonstrations have."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.demonstrations >= 1, "demonstrations", "at least 1")


@dataclass(frozen=True)
class DPOConfig(SupervisedConfig):
    """Direct preference optimisation on pairs of a chosen and a rejected response."""

    section: ClassVar[str] = "dpo"

    learning_rate: float = 1e-5
    """Peak learning rate."""
    pairs: int = 1000
    """Pairs taken from the training split (all of them when there are fewer)."""
    validation_pairs: int = 200
    """Pairs of the validation split on which loss and accuracy are watched."""
    beta: float = 0.1
    """How much a change of log-probability counts: larger keeps closer to the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(self.pairs >= 1, "pairs", "at least 1")
        self._require(self.beta > 0, "beta", "more than 0")

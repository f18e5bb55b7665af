"""What the numbers of a reward model's fit are called."""

from __future__ import annotations

from instructrec.rl.fitting import Naming
from instructrec.rl.reward_config import FitConfig

VAL_LOSS, VAL_ACCURACY = "rm/val_loss", "rm/val_accuracy"
_LOGGED = {
    "loss": "rm/loss",
    "grad_norm": "rm/grad_norm",
    "accuracy": "rm/accuracy",
    "margin": "rm/margin",
}


def reward_naming(config: FitConfig) -> Naming:
    """The names; validations go by the loss or the accuracy."""
    by_loss = config.best_by == "loss"
    chooses = VAL_LOSS if by_loss else VAL_ACCURACY
    return Naming("fit", "rm/step", "rm/lr", _LOGGED, chooses, larger_is_better=not by_loss)

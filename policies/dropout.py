"""Dropout in training: policies are loaded without, and may get it back for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from instructrec.errors import ConfigError


@contextmanager
def dropout(model: nn.Module, share: float, section: str) -> Iterator[None]:
    """Gives the model's own dropout layers and its attention a share, until the block ends.

    Policies have theirs at 0, so that the trainer's log-probs are the sampler's. Those of adapters
    stay as they are.

    Args:
        model: The model.
        share: Share of the values that are dropped in training mode; 0 changes nothing.
        section: Where the setting stands, for errors.

    Raises:
        ConfigError: The model has no dropout.
    """
    places: list[tuple[Any, str, float]] = []
    for name, module in model.named_modules() if share else ():
        if isinstance(module, nn.modules.dropout._DropoutNd) and "lora_" not in name:
            places.append((module, "p", module.p))
        elif isinstance(getattr(module, "attention_dropout", None), int | float):
            places.append((module, "attention_dropout", 0.0))  # set to 0 when it was loaded
    if share and not places:
        raise ConfigError(
            f"{section}.dropout = {share}: {type(model).__name__} has neither dropout layers nor "
            f"dropout in its attention. Set it to 0; policy.train: lora has policy.lora.dropout."
        )
    for module, attribute, _ in places:
        setattr(module, attribute, share)
    try:
        yield
    finally:
        for module, attribute, before in places:
            setattr(module, attribute, before)

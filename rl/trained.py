"""The weights of a module that train, by name."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from instructrec.errors import CheckpointError


def trained_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained weights of a module, in its order."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def copy_into(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Puts saved weights into the trained ones of a module.

    Raises:
        CheckpointError: They are not those that train.
    """
    trained = trained_of(module)
    if set(trained) != set(saved):
        odd = sorted(set(trained) ^ set(saved))
        raise CheckpointError(
            f"the checkpoint and the run train different weights ({len(odd)} differ, for "
            f"example {odd[0]!r}). Continue with the policy and critic settings of the run."
        )
    for name, parameter in trained.items():
        given, expected = saved[name], parameter
        if given.shape != expected.shape or given.dtype != expected.dtype:
            raise CheckpointError(
                f"the checkpoint has {name!r} as {given.dtype} of shape {tuple(given.shape)}: "
                f"expected {expected.dtype} of shape {tuple(expected.shape)}. Continue with the "
                "model, the vocabulary and the precision of the run."
            )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])

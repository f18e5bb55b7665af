"""A copy of the policy in a cheaper precision, for decoding only.

Weights that train stay in float32, because a small step is lost in bfloat16. Decoding reads all
weights for every token, so it reads a bfloat16 copy that is refreshed after every update.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class DecodeCopy:
    """A frozen copy of a causal language model with its parameters in another dtype.

    Adapters are merged into the copy, so that decoding costs the same with and without them.

    Args:
        model: The policy's model; a PEFT model around one is taken with its adapters.
        dtype: Dtype of the copy's parameters. Buffers keep theirs: rotary frequencies in
            bfloat16 would put tokens at wrong positions.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._source = model
        clone: Any = copy.deepcopy(model)
        if hasattr(model, "peft_config"):
            clone = clone.merge_and_unload()
        self.model: nn.Module = clone.eval().requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        self._targets = dict(self.model.named_parameters())

    @torch.no_grad()
    def sync(self) -> None:
        """Takes over the weights that train. Frozen weights were copied once, at the start."""
        for name, weight in _trained_weights(self._source):
            self._targets[name].copy_(weight)


def _trained_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names (without adapters) and effective values of the weights that train."""
    if not hasattr(model, "peft_config"):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter
        return
    base: Any = model.get_base_model()  # type: ignore[operator]
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "get_base_layer"):
            weight = module.get_base_layer().weight
            for adapter in module.active_adapters:
                weight = weight + module.get_delta_weight(adapter)
            yield f"{name}.weight", weight

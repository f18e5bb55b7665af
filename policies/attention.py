"""Attention on a CPU: in float32, whatever the precision around it.

Under bfloat16 autocast PyTorch's attention runs in bfloat16, which on a CPU takes longer than in
float32: two to three times as long in the backward pass, four to five times for one new token. Its
products are small, and each is converted. The products of the layers stay in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class Float32Attention(TorchFunctionMode):
    """Hands float32 to ``scaled_dot_product_attention``; leaves everything else alone.

    For a CPU, and where autocast is entered further inside; else take `quick_attention`.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(
                *(_float32(value) for value in args),
                **{name: _float32(value) for name, value in kwargs.items()},
            )


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def attention_dtype(device: torch.device) -> torch.dtype | None:
    """Precision of attention in this context; None when it is that of the layers' outputs."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.float32 if device.type == "cpu" else torch.get_autocast_dtype(device.type)


def quick_attention(device: torch.device) -> AbstractContextManager[Any]:
    """Returns the context in which a model runs its passes."""
    return Float32Attention() if attention_dtype(device) == torch.float32 else nullcontext()

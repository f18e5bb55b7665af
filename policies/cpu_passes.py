"""What a model's passes do otherwise on a CPU under bfloat16 autocast.

Attention runs in float32: in bfloat16 it takes two to three times as long in the backward pass and
four to five times for one new token, because its products are small, and each is converted. And
what several linear layers read (the three of attention, two of the feed-forward part) is cast
once for all of them, and their gradients are added up in bfloat16; autocast does so for weights
alone. The products of the layers stay in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class CPUPasses(TorchFunctionMode):
    """Hands float32 to attention, and the same cast to all linear layers that read a tensor.

    For a CPU, and where autocast is entered further inside; else take `quick_passes`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._read: tuple[Tensor, Any, Tensor] | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is linear and args and torch.is_autocast_enabled("cpu"):
            return func(self._cast(args[0]), *args[1:], **kwargs)
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(
                *(_float32(value) for value in args),
                **{name: _float32(value) for name, value in kwargs.items()},
            )

    def _cast(self, value: Tensor) -> Tensor:
        """The value as autocast would hand it on; made once while the same is asked for again."""
        if type(value) is not Tensor or value.dtype != torch.float32 or value.is_inference():
            return value
        state = value._version, torch.is_grad_enabled(), torch.get_autocast_dtype("cpu")
        if self._read is None or self._read[0] is not value or self._read[1] != state:
            self._read = value, state, value.to(state[-1])
        return self._read[2]


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def attention_dtype(device: torch.device) -> torch.dtype | None:
    """Precision of attention in this context; None when it is that of the layers' outputs."""
    if not torch.is_autocast_enabled(device.type):
        return None
    return torch.float32 if device.type == "cpu" else torch.get_autocast_dtype(device.type)


def quick_passes(device: torch.device) -> AbstractContextManager[Any]:
    """Returns the context in which a model runs its passes."""
    return CPUPasses() if attention_dtype(device) == torch.float32 else nullcontext()

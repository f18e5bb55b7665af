"""Linear layers of a policy that decodes on a CPU, with weights in the order of multiplication.

For a few rows, rearranging a weight takes oneDNN longer than multiplying with it, and a plain
linear layer does so at every call. Here it is done once for each version of the weights.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer without gradient that computes in a precision of its own.

    Args:
        linear: The layer whose weights it takes.
        dtype: Precision of weights, inputs and outputs, also under autocast.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = dtype
        self.bias: Tensor | None = None
        self.load(weight=linear.weight, bias=linear.bias)

    @torch.no_grad()
    def load(self, *, weight: Tensor | None = None, bias: Tensor | None = None) -> None:
        """Takes over a weight (out, in), or a bias (out,), of any precision."""
        if weight is not None:
            # Opaque: it can be multiplied with, and nothing else; so it is no buffer.
            self._packed = _reorder(weight.detach().to(self.dtype))
        if bias is not None:
            self.bias = bias.detach().to(self.dtype, copy=True)

    @property
    def nbytes(self) -> int:
        """Bytes of its weights, which no list of parameters names."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return self.in_features * self.out_features * self.dtype.itemsize + bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns ``inputs @ weight.T + bias`` in the layer's precision."""
        return _multiply(inputs.to(self.dtype), self._packed, self.bias)


def _reorder(weight: Tensor) -> Any:
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def _multiply(inputs: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, "none", [], "")
    return result


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch multiplies with packed weights, and rightly.

    The operators are those that TorchInductor emits for frozen models; they have no public name.
    """
    try:
        weight, bias = torch.linspace(-1, 1, 48).view(6, 8).to(dtype), torch.ones(6, dtype=dtype)
        inputs = torch.linspace(-2, 1, 24).view(3, 8).to(dtype)
        found = _multiply(inputs, _reorder(weight), bias)
    except (AttributeError, RuntimeError):  # no such operator, or not on this processor
        return False
    return torch.allclose(found, nn.functional.linear(inputs, weight, bias), atol=1e-2)

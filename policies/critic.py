"""The critic: a value head on the policy's own trunk.

It lives outside the policy module, so that saving, pushing, adapters and weight copies see a
pristine language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """V(s) as a linear function of the trunk's last hidden state, in float32.

    It starts at zero: every value is then 0 instead of noise of the size of the hidden state,
    and explained variance starts at 0 instead of far below.
    """

    def __init__(self, hidden_size: int, *, detach: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.detach = detach
        """Whether the value loss stops at the head."""

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Returns V for each of N hidden states (N, H) as (N,) float32."""
        hidden = hidden_NH.detach() if self.detach else hidden_NH
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float()).squeeze(-1)

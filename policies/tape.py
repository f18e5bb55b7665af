"""Hidden states that decoding computes anyway, kept for the trainer.

A trainer needs, for each token of a rollout, the state that predicted it, and where the lowest
layers are frozen the state that enters the first trained one. The rollout engine has computed both
a moment before. Keeping them spares the trainer a pass over the whole rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class TokenStates:
    """States of all tokens of a prompt and its response but the last, which nothing follows."""

    final_TH: Tensor
    """The last hidden states: position t predicts token t + 1."""
    entering_TH: Tensor | None
    """The states that enter the layer that was asked for; None without one."""


@dataclass
class Tape:
    """The states of one row, piece by piece."""

    final: list[Tensor] = field(default_factory=list)
    entering: list[Tensor] = field(default_factory=list)

    def copy(self) -> Tape:
        """A tape that goes on from the same states."""
        return Tape(list(self.final), list(self.entering))

    def add(self, pass_states: PassStates, row: int, start: int = 0) -> None:
        """Appends the states of a row, from a column of the pass on."""
        self.final.append(pass_states.final_BTH[row, start:])
        if pass_states.entering_BTH is not None:
            self.entering.append(pass_states.entering_BTH[row, start:])

    def states(self) -> TokenStates:
        """Everything that was added, in one piece."""
        return TokenStates(
            torch.cat(self.final), torch.cat(self.entering) if self.entering else None
        )


@dataclass(frozen=True)
class PassStates:
    """The states of one pass over the newest T columns."""

    final_BTH: Tensor
    entering_BTH: Tensor | None


class StateProbe:
    """Listens to a transformer and keeps the states of its newest pass.

    Args:
        base: The transformer under a causal language model.
        layer: Whose input to keep; 0 keeps none.
    """

    def __init__(self, base: Any, layer: int) -> None:
        self._base = base
        self._layer = layer
        self._entering: Tensor | None = None
        self._final: Tensor | None = None

    @contextmanager
    def listening(self) -> Iterator[StateProbe]:
        """Keeps states until the block ends."""
        handles = [self._base.register_forward_hook(self._take_final)]
        if self._layer:
            handles.append(on_input(self._base.layers[self._layer], self._take_entering))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._entering = self._final = None

    def newest(self) -> PassStates:
        """The states of the last pass."""
        assert self._final is not None, "no pass was run"
        return PassStates(self._final, self._entering)

    def _take_final(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._final = output.last_hidden_state

    def _take_entering(self, states: Tensor) -> None:
        self._entering = states


def on_input(layer: nn.Module, take: Callable[[Tensor], None]) -> RemovableHandle:
    """Hands over the hidden states that enter a layer, pass after pass.

    Args:
        layer: A layer of a transformer.
        take: Called with the states before the layer runs.

    Returns:
        What ends it, by ``remove()``.
    """
    return layer.register_forward_pre_hook(
        lambda _module, inputs, options: take(inputs[0] if inputs else options["hidden_states"]),
        with_kwargs=True,
    )

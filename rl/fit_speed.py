"""How fast the optimizer steps of a fit were, and how fast they could have been on this machine.

Counted is what a step has to do, as in `speed`: no padding; tokens that all texts of a pass begin
with once; forward through all layers, backward down to the first trained one, or not at all where
what trains stands on the last layer. The time of a step goes from its data to its loss, which the
trainer reads last, so that a GPU has finished by then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from instructrec.policies.flops import ModelCost
from instructrec.policies.prefill import common_prefix
from instructrec.policies.rates import measure_rates
from instructrec.rl.reward_config import FitConfig
from instructrec.rl.speed import Lengths, Need, adam_bytes
from instructrec.rl.supervised_config import SupervisedConfig


@dataclass(frozen=True)
class FitWork:
    """What the passes of a fit read, and with which model."""

    lengths: Callable[[Sequence[Any]], Lengths]
    """The texts of the training rows that one pass reads together."""
    cost: ModelCost | None
    """The model; None where what it has to do cannot be counted."""
    dtype: torch.dtype
    """Precision of its products."""
    device: torch.device
    """Where it lives."""


def lengths_of_texts(
    texts: Sequence[Sequence[int]], prompts: Sequence[int] | None = None
) -> Lengths:
    """Lengths of the texts that one pass reads.

    Args:
        texts: Token ids of each.
        prompts: Tokens of each before those that are learned; None where no token is to be
            predicted.
    """
    ends = [len(text) for text in texts] if prompts is None else prompts
    responses = tuple(len(text) - end for text, end in zip(texts, ends, strict=True))
    return Lengths(tuple(ends), responses, max(min(common_prefix(texts), min(ends) - 1), 0))


class FitSpeedometer:
    """Says after each step of a fit how fast it was; measures the machine once, when it is made.

    Args:
        work: What there is to do.
        rows: The training rows in the order in which the steps take them.
        config: Says how many a step takes, and a pass.
    """

    def __init__(
        self, work: FitWork, rows: Sequence[Any], config: FitConfig | SupervisedConfig
    ) -> None:
        self._work, self._rows, self._batch_size = work, rows, config.batch_size
        self._pass_size = config.micro_batch_size or config.batch_size
        self._rates = None
        if work.cost is not None:
            first = next(self._passes(0))
            self._rates = measure_rates(
                work.cost.shapes,
                tokens=int(first.trunk[0]),
                dtype=work.dtype,
                device=work.device,
            )
        self.restart()

    def restart(self) -> None:
        """Begins the time of the next step."""
        self._start = time.perf_counter()

    def metrics(self, step: int, stepped: int) -> dict[str, float]:
        """The metrics of a step that has just ended.

        Args:
            step: Steps before it, since this object was made.
            stepped: Weights that the optimizer changed.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        passes = list(self._passes(step))
        tokens = sum(sum(part.prompts) + sum(part.responses) for part in passes)
        found = {"time/update_s": seconds, "speed/tokens_per_s": tokens / seconds}
        if self._rates is None or self._work.cost is None:
            return found
        learning = Need(sum(pass_flops(self._work.cost, part) for part in passes))
        optimizer = Need(0.0, adam_bytes(stepped))
        limit = sum(need.seconds(self._rates) for need in (learning, optimizer))
        return found | {
            "speed/update_flops_per_s": learning.flops / seconds,
            "speed/update_limit_frac": learning.flops / seconds / self._rates.flops_per_s,
            "speed/limit_frac": limit / seconds,
        }

    def _passes(self, step: int) -> Iterator[Lengths]:
        """What each forward and backward pass of a step reads."""
        first = step * self._batch_size
        for start in range(first, first + self._batch_size, self._pass_size):
            yield self._work.lengths(self._rows[start : start + self._pass_size])


def pass_flops(cost: ModelCost, lengths: Lengths) -> float:
    """FLOPs of a forward pass through all layers, and of the backward pass."""
    tokens, pairs = lengths.trunk
    outputs = sum(lengths.responses)
    return cost.forward(tokens, pairs, outputs) + cost.backward(tokens, pairs, outputs)

"""How fast this machine multiplies and copies, measured in a fraction of a second.

The limit that a run's speed is held against has to be measured beside it: it depends on the
device, the number of threads, the precision, and whoever else uses the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_WIDEST = 8192
"""Wider matrices multiply at the same rate per number, so they are cut to this."""
_FLOPS = {"cpu": 2e9}
_FLOPS_GPU = 2e11
"""Most FLOPs of one product that is timed."""
_BYTES = {"cpu": 2**26}
_BYTES_GPU = 2**30
"""Size of the copy that is timed."""
_REPEATS = 3


@dataclass(frozen=True)
class Rates:
    """What the machine can do."""

    flops_per_s: float
    """Multiply-adds of the model's own matrix shapes, times two, per second."""
    bytes_per_s: float
    """Bytes read and written per second by a large copy."""


def measure_rates(
    shapes: Iterable[tuple[int, int, int]],
    *,
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Rates:
    """Measures the machine on the shapes of a model; the random state is left alone.

    The rate is that of training: for each matrix the product of a forward pass and the two of a
    backward pass, each at its best of three, weighted by how often the shape occurs.

    Args:
        shapes: (outputs, inputs, how many) of the model's matrices.
        tokens: Tokens in one pass.
        dtype: Precision of the products.
        device: Where they run.
    """
    flops = seconds = 0.0
    for outputs, inputs, count in shapes:
        # The whole matrix counts, even where a part of it is timed.
        timed_outputs, timed_inputs = min(outputs, _WIDEST), min(inputs, _WIDEST)
        most = _FLOPS.get(device.type, _FLOPS_GPU) / (2 * timed_outputs * timed_inputs)
        rows = max(16, min(tokens, int(most)))
        rate = _product_rate(rows, timed_inputs, timed_outputs, dtype, device)
        flops += count * outputs * inputs
        seconds += count * outputs * inputs / rate
    return Rates(flops / seconds, _copy_rate(device))


def _product_rate(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device
) -> float:
    """FLOPs per second over the three products of one matrix."""
    x = torch.ones(rows, inputs, dtype=dtype, device=device)
    weight = torch.ones(outputs, inputs, dtype=dtype, device=device)
    dy = torch.ones(rows, outputs, dtype=dtype, device=device)
    products: list[Callable[[], Tensor]] = [
        lambda: torch.nn.functional.linear(x, weight),
        lambda: dy @ weight,
        lambda: dy.t() @ x,
    ]
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        seconds = sum(_best_time(product, device) for product in products)
    return 3 * 2 * rows * inputs * outputs / seconds


@cache
def _copy_rate(device: torch.device) -> float:
    """Bytes read and written per second; measured once in a process."""
    size = _BYTES.get(device.type, _BYTES_GPU)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best_time(lambda: target.copy_(source), device)


def _best_time(work: Callable[[], Tensor], device: torch.device) -> float:
    work()
    best = float("inf")
    for _ in range(_REPEATS):
        wait_for(device)
        start = time.perf_counter()
        work()
        wait_for(device)
        best = min(best, time.perf_counter() - start)
    return max(best, 1e-9)


def wait_for(device: torch.device) -> None:
    """Returns once everything that was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

"""The generators that every library shares: Python's, NumPy's and torch's own.

The algorithms here draw from generators of their own. But dropout draws from torch's, and a reward
may draw from any.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

GLOBAL = ("python", "numpy", "torch", "cuda")
"""Their names; ``cuda`` is that of the process's own device, where there is one."""


def global_states() -> dict[str, Tensor]:
    """The states of all, as integers."""
    version, words, spare = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    inner = numpy_state["state"]
    kept = [numpy_state["has_gauss"], *_bits(numpy_state["gauss"])]
    states = {
        "python": torch.tensor([version, *words, spare is not None, *_bits(spare or 0.0)]),
        "numpy": torch.tensor([*inner["key"].tolist(), inner["pos"], *kept]),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_global_states(states: Mapping[str, Tensor]) -> None:
    """Puts back what ``global_states`` returned, or a part of it."""
    if "python" in states:
        version, *words, has_spare, spare = states["python"].tolist()
        random.setstate((version, tuple(words), _float(spare) if has_spare else None))
    if "numpy" in states:
        *key, pos, has_gauss, gauss = states["numpy"].tolist()
        np.random.set_state(("MT19937", np.array(key, np.uint32), pos, has_gauss, _float(gauss)))
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _bits(number: float) -> list[int]:
    """A float as the integer of the same bits."""
    return [int(np.float64(number).view(np.int64))]


def _float(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))

"""The best of several responses, and pass@k: what could be had by knowing the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from instructrec.errors import ConfigError, DataError


def expected_best(scores: Sequence[float], k: int) -> float:
    """Mean of the largest of k scores over all ways to take k of the n given ones.

    ``Σ_{i=k}^{n} C(i-1, k-1) x_(i) / C(n, k)`` with the scores in rising order: x_(i) is the
    largest of k when the others are among the i-1 below it. The maximum itself for k = n, the
    mean for k = 1.

    Args:
        scores: n finite numbers.
        k: From 1 to n.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ConfigError(f"best of {k} of {n} scored responses: expected 1 to {n}.")
    rising = sorted(scores)
    ways = (math.comb(i - 1, k - 1) * rising[i - 1] for i in range(k, n + 1))
    return math.fsum(ways) / math.comb(n, k)


def pass_at_k(correct: ArrayLike, samples: ArrayLike, k: int) -> np.ndarray:
    """Chance that at least one of k responses is correct, for each of I items.

    Unbiased estimate from n >= k sampled responses of which c are correct:
    ``1 - C(n - c, k) / C(n, k)``. Source: Chen et al. 2021, eq. 1,
    https://arxiv.org/abs/2107.03374.

    Args:
        correct: (I,) correct responses c of each item.
        samples: (I,) responses n of each item, or one number for all.
        k: Responses that one may try, at least 1 and at most n.

    Returns:
        (I,) estimates in [0, 1].

    Raises:
        DataError: k is not within 1..n, or c is not within 0..n.
    """
    correct_I = np.asarray(correct)
    samples_I = np.broadcast_to(np.asarray(samples), correct_I.shape)
    if correct_I.size and not 1 <= k <= samples_I.min():
        raise DataError(
            f"pass@{k} of items with {samples_I.min()} samples: expected 1 <= k <= samples."
        )
    if ((correct_I < 0) | (correct_I > samples_I)).any():
        raise DataError("pass@k: an item has fewer than 0 or more correct responses than samples.")
    none_I = stats.hypergeom.pmf(0, samples_I, correct_I, k)
    return np.clip(1.0 - none_I, 0.0, 1.0)


def sizes_up_to(samples: int) -> list[int]:
    """Powers of two from 2 on, and the number of samples itself; none below 2."""
    powers = {2**i for i in range(1, samples.bit_length()) if 2**i <= samples}
    return sorted({*powers, samples}) if samples > 1 else []

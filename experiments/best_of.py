"""The best of several responses: what could be had from them by knowing the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from instructrec.errors import ConfigError


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


def sizes_up_to(samples: int) -> list[int]:
    """Powers of two from 2 on, and the number of samples itself; none below 2."""
    powers = {2**i for i in range(1, samples.bit_length()) if 2**i <= samples}
    return sorted({*powers, samples}) if samples > 1 else []

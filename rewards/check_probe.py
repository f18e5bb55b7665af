"""What ``check_reward`` asks with: a reward, its rows and its patience; and what a point says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from instructrec.errors import ConfigError, RewardError
from instructrec.rewards.base import Status
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.check_samples import Samples
from instructrec.rewards.scoring import PartScores, score_part
from instructrec.rewards.watchdog import DeadlineError, deadline, watching

Verdict = Literal["ok", "warn", "fail", "skip"]
"""What became of one point; only ``fail`` makes a report fail."""

HANG_SECONDS = 30.0
"""Time for one call after which a line says that it hangs."""


@dataclass(frozen=True)
class Point:
    """One thing that was looked at."""

    name: str
    """What."""
    verdict: Verdict
    """How it came out."""
    message: str
    """What was seen and, unless all is well, what to do."""


class Probe:
    """A reward and the rows it is asked about."""

    def __init__(self, reward: BoundReward, samples: Samples, timeout: float = 120.0) -> None:
        if not timeout > 0:
            raise ConfigError(f"timeout = {timeout}: expected a number of seconds above 0.")
        self.reward, self.samples, self.timeout = reward, samples, timeout
        self.base = PartScores(np.empty(0), [], [], 0.0)
        self.deterministic = True
        self.hung = False

    @property
    def scored(self) -> bool:
        """Whether the first call gave any score, without which there is nothing to compare."""
        return Status.SCORED in self.base.status

    def score(
        self,
        rows: Sequence[int] | None = None,
        completions: Sequence[Any] | None = None,
        prompts: Sequence[Any] | None = None,
        reward: BoundReward | None = None,
    ) -> PartScores:
        """Scores rows of the samples, with other responses or prompts where they are given.

        Raises:
            RewardError: It hangs.
        """
        samples = self.samples
        rows = range(len(samples)) if rows is None else rows
        texts = [samples.completions[i] for i in rows] if completions is None else completions
        asked = [samples.prompts[i] for i in rows] if prompts is None else prompts
        columns = {name: [values[i] for i in rows] for name, values in samples.columns.items()}
        with watching(f"the check of {self.reward.describe()}", HANG_SECONDS), self.patience():
            return score_part(
                reward or self.reward, asked, texts, {**columns, **samples.extras(texts)}
            )

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Ends the block after the deadline.

        Raises:
            RewardError: It did not end by itself.
        """
        try:
            with deadline(self.timeout):
                yield
        except DeadlineError:
            self.hung = True
            raise RewardError(
                f"it hangs: no answer within {self.timeout:g} s. Mend it, or run it with "
                "isolation: worker, which ends such a call."
            ) from None

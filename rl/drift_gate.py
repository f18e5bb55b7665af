"""Whether a rollout is learned from, by how far its sampler was from the trainer.

From ``ENOUGH`` tokens on the mean drift itself is held against the limit. A mean of fewer may be
beyond it by chance (one unlikely token, in low precision), so as much as chance explains is taken
off: ``ALLOWANCE`` standard errors. Small rollouts are also added up until they are as many tokens,
so that what lasts is judged by its mean as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from instructrec.rl.drift import Drift

ENOUGH = 30
"""Tokens whose mean is judged as it is. In bfloat16 one in a hundred was off by 0.1 to 0.3 nats or
more; a single one cannot lift a mean of 30 by the default limit unless it is off by 9."""
ALLOWANCE = 2.0
"""Standard errors that a mean of few tokens may be beyond the limit."""


@dataclass
class DriftGate:
    """Judges one update after another.

    Args:
        limit: Largest mean drift (nats per token).
    """

    limit: float
    refused: Drift | None = None
    """The drift of the update at hand, where nothing is learned from it."""
    _own: Drift = field(default_factory=Drift)
    _kept: Drift = field(default_factory=Drift)

    @property
    def diagnosis(self) -> str:
        """What was refused, and what to do."""
        assert self.refused is not None, "nothing was refused"
        return (
            f"sampler and trainer disagree by {self.refused.mean:.3f} nats per token (over "
            f"{self.refused.tokens} tokens), more than ppo.max_drift = {self.limit}: the responses "
            "were not drawn from the policy that is trained (another temperature, other weights). "
            "Nothing was learned from them. A checkpoint was written. Use policy.dtype = 'float32' "
            "to see whether it is the precision, else look at the decoder; raise ppo.max_drift "
            "only if so much drift is meant to be."
        )

    def begin(self) -> None:
        """Begins an update."""
        self.refused, self._own = None, Drift()

    def allows(self, drift: Drift) -> bool:
        """Says whether an update may take a step; asked again in it, the last drift counts.

        Args:
            drift: Of the update, as far as it is known.
        """
        self._own = drift
        for judged in (drift, self._kept + drift):
            if not _least(judged) <= self.limit:
                self.refused = judged
                return False
        return True

    def end(self, drift: Drift) -> None:
        """Ends the update, and keeps what was too little to judge it by.

        Args:
            drift: Of the update, which may have had no step to ask for.
        """
        self.allows(drift)
        together = self._kept + self._own
        judged = self.refused is not None or together.tokens >= ENOUGH
        self._kept = Drift() if judged else together

    def state_dict(self) -> dict[str, Any]:
        """What is added up."""
        return {"mean": self._kept.mean, "std": self._kept.std, "tokens": self._kept.tokens}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restores what ``state_dict`` returned; None, of an older checkpoint, is nothing."""
        self._kept = Drift(**state or {})


def _least(drift: Drift) -> float:
    """The mean, less what chance explains of few tokens."""
    if drift.tokens >= ENOUGH or not math.isfinite(drift.mean):
        return drift.mean
    if drift.tokens < 2:  # one token has no spread to judge chance by
        return 0.0
    return drift.mean - ALLOWANCE * drift.std / math.sqrt(drift.tokens)

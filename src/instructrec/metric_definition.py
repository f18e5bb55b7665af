"""What the definition of a metric key is."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLACEHOLDERS = {
    "<reward>": r"[a-z0-9_]+(\.[a-z0-9_]+)*",
    "<reason>": "(raised|timeout|nonfinite|out_of_range|worker_died)",
    "<metric>": "(bleu|chrf|exact_match|rouge1|rouge2|rougeL|rougeLsum)",
    "<k>": "[1-9][0-9]*",
    "<task>": "[^/]+",
    "<kind>": "[a-z]+",
}


@dataclass(frozen=True)
class Metric:
    """One number that a run logs."""

    key: str
    """Name in ``metrics.jsonl`` and W&B; may hold placeholders, see above."""
    unit: str
    """Unit; ``1`` for a share or another plain number, ``score`` for the scale of the reward."""
    meaning: str
    """What it says, and over what it is taken."""

    def matches(self, key: str) -> bool:
        """Says whether ``key`` is this key, or an instance of this pattern."""
        parts = re.split("(<[a-z]+>)", self.key)
        pattern = "".join(_PLACEHOLDERS.get(part, re.escape(part)) for part in parts)
        return re.fullmatch(pattern, key) is not None

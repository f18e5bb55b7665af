"""Rewards that look at where an episode of several turns stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructrec.errors import DataError
from instructrec.rewards.combinators import Weighted
from instructrec.rewards.scoring import PartScores

_IS_LAST = "is_last"


class LastTurn(Weighted):
    """Rewards that only the last answer of an episode gets; to the others they do not apply.

    What is inside is not called for other answers and costs nothing there, unlike a reward whose
    value is merely not paid out. For environments that tell rewards which answer is the last one.

    Args:
        parts: As in a run's ``rewards``.
        reduce: How they become one score, see `Weighted`.
    """

    __name__ = "last_turn"

    def score_parts(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> PartScores:
        """Scores the last answers among B responses."""
        rows = [i for i, is_last in enumerate(columns[_IS_LAST]) if is_last]
        scored = super().score_parts(
            [prompts[i] for i in rows],
            [completions[i] for i in rows],
            {name: [values[i] for i in rows] for name, values in columns.items()},
        )
        return scored.spread(rows, len(completions))

    @property
    def required_columns(self) -> set[str]:
        """Columns that the parts need, and which answer is the last."""
        return super().required_columns | {_IS_LAST}

    def check_columns(self, available: Mapping[str, Any] | Sequence[str]) -> None:
        """Raises DataError when nobody tells which answer is the last, or a column is missing."""
        if _IS_LAST not in available:
            raise DataError(
                "the reward last_turn was used where nobody says which answer is the last: "
                "expected a chat or tool environment, or data with the column 'is_last'."
            )
        super().check_columns(available)

"""The share of texts that equal one of their references."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instructrec.corpus_metrics import common


class ExactMatch(common.CorpusMetric):
    """Exact match of a corpus."""

    description = "The share of texts that equal one of their references, outer white space apart."
    citation = ""
    options = "ignore_case"

    def tally(  # type: ignore[override]
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        ignore_case: bool = False,
    ) -> dict[str, common.Tally]:
        """See ``CorpusMetric.tally``."""

        def key(text: str) -> str:
            return text.strip().casefold() if ignore_case else text.strip()

        hits = [key(p) in map(key, r) for p, r in zip(predictions, references, strict=True)]
        return {"exact_match": common.Tally(np.array(hits, dtype=np.float64))}

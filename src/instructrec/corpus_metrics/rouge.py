"""ROUGE, computed by rouge-score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer

from instructrec.corpus_metrics import common

_VARIANTS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


class CorpusRouge(common.CorpusMetric):
    """The mean ROUGE F1 of a corpus."""

    description = (
        "ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum: F1 of each text against its nearest reference, "
        "averaged, as rouge-score computes them. Made for English: its words are runs of a-z and "
        "0-9."
    )
    citation = "Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries"
    options = "use_stemmer"

    def tally(  # type: ignore[override]
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        use_stemmer: bool = False,
    ) -> dict[str, common.Tally]:
        """See ``CorpusMetric.tally``."""
        scorer = RougeScorer(_VARIANTS, use_stemmer=use_stemmer)
        scores = [scorer.score_multi(r, p) for p, r in zip(predictions, references, strict=True)]
        return {
            name: common.Tally(np.array([score[name].fmeasure for score in scores]))
            for name in _VARIANTS
        }

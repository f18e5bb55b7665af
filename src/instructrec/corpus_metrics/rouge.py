"""ROUGE, computed by rouge-score."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

_VARIANTS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


class CorpusRouge(evaluate.Metric):
    """The mean ROUGE F1 of a corpus."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum: F1 of each text against its "
            "nearest reference, averaged, as rouge-score computes them. Made for English: its "
            "words are runs of a-z and 0-9.",
            citation="Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries",
            inputs_description="predictions: texts. references: texts or lists of texts. "
            "Options: use_stemmer.",
            features=[
                datasets.Features({"predictions": text, "references": datasets.List(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self, predictions: list[str], references: list[Any], use_stemmer: bool = False
    ) -> dict[str, Any]:
        scorer = RougeScorer(_VARIANTS, use_stemmer=use_stemmer)
        listed = [[r] if isinstance(r, str) else r for r in references]
        scores = [scorer.score_multi(r, p) for p, r in zip(predictions, listed, strict=True)]
        return {
            name: sum(score[name].fmeasure for score in scores) / len(scores) for name in _VARIANTS
        }

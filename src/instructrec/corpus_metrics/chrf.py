"""Corpus chrF, computed by sacrebleu."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import datasets
import evaluate
from sacrebleu.metrics import CHRF


class CorpusChrf(evaluate.Metric):
    """chrF of a corpus against one or several references per text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="chrF2, or chrF2++ with word_order 2, as sacrebleu computes it for a "
            "corpus, divided by 100.",
            citation="Popovic 2015, chrF: character n-gram F-score for automatic MT evaluation",
            inputs_description="predictions: texts. references: texts or lists of texts. "
            "Options: word_order, lowercase.",
            features=[
                datasets.Features({"predictions": text, "references": datasets.List(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[Any],
        word_order: int = 0,
        lowercase: bool = False,
    ) -> dict[str, Any]:
        listed = [[r] if isinstance(r, str) else r for r in references]
        # sacrebleu wants one list per reference; where a text has fewer, None stands.
        columns = [list(column) for column in zip_longest(*listed)]
        metric = CHRF(word_order=word_order, lowercase=lowercase)
        score = metric.corpus_score(predictions, columns)
        return {"chrf": score.score / 100, "signature": str(metric.get_signature())}

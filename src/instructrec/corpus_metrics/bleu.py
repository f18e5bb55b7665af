"""Corpus BLEU, computed by sacrebleu."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import datasets
import evaluate
from sacrebleu.metrics import BLEU


class CorpusBleu(evaluate.Metric):
    """BLEU of a corpus against one or several references per text."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Corpus BLEU (Papineni et al. 2002) as sacrebleu computes it, divided by "
            "100. Counts are summed over the corpus, so it is not the mean of sentence scores.",
            citation="Post 2018, A Call for Clarity in Reporting BLEU Scores (sacrebleu)",
            inputs_description="predictions: texts. references: texts or lists of texts. "
            "Options: tokenize (13a, intl, char, zh, none), lowercase.",
            features=[
                datasets.Features({"predictions": text, "references": datasets.List(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[Any],
        tokenize: str = "13a",
        lowercase: bool = False,
    ) -> dict[str, Any]:
        listed = [[r] if isinstance(r, str) else r for r in references]
        # sacrebleu wants one list per reference; where a text has fewer, None stands.
        columns = [list(column) for column in zip_longest(*listed)]
        metric = BLEU(tokenize=tokenize, lowercase=lowercase)
        score = metric.corpus_score(predictions, columns)
        return {"bleu": score.score / 100, "signature": str(metric.get_signature())}

"""The share of texts that equal one of their references."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate


class ExactMatch(evaluate.Metric):
    """Exact match of a corpus."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="The share of texts that equal one of their references, outer white space "
            "apart.",
            citation="",
            inputs_description="predictions: texts. references: texts or lists of texts. "
            "Options: ignore_case.",
            features=[
                datasets.Features({"predictions": text, "references": datasets.List(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self, predictions: list[str], references: list[Any], ignore_case: bool = False
    ) -> dict[str, Any]:
        def key(text: str) -> str:
            return text.strip().casefold() if ignore_case else text.strip()

        listed = [[r] if isinstance(r, str) else r for r in references]
        hits = [key(p) in map(key, r) for p, r in zip(predictions, listed, strict=True)]
        return {"exact_match": sum(hits) / len(hits)}

"""What the shipped corpus metrics have in common: their features, and values from counts of texts.

The modules import this one and not its classes, because ``evaluate.load`` takes the first class of
``evaluate`` that it finds in a module.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np


@dataclass(frozen=True)
class Tally:
    """What each text adds to the value of a metric, so that the value of any texts can be told."""

    rows: np.ndarray
    """(N,) values of single texts, or (N, K) counts."""
    score: Callable[[np.ndarray], float] | None = None
    """From the sums of the counts, (K,), to the value; None where it is the mean of the values."""
    signature: str = ""
    """How sacrebleu names its settings."""

    @property
    def value(self) -> float:
        """The value of all texts together."""
        return float(self.rows.mean() if self.score is None else self.score(self.rows.sum(0)))


class CorpusMetric(evaluate.Metric, ABC):
    """A metric of a corpus against one or several references per text."""

    description: ClassVar[str]
    """What it computes."""
    citation: ClassVar[str]
    """Where it comes from."""
    options: ClassVar[str]
    """Its settings."""

    @abstractmethod
    def tally(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], **options: Any
    ) -> dict[str, Tally]:
        """Returns what each of N texts adds to each value; every text has a reference."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description="predictions: texts. references: texts or lists of texts. "
            f"Options: {self.options}.",
            features=[
                datasets.Features({"predictions": text, "references": datasets.List(text)}),
                datasets.Features({"predictions": text, "references": text}),
            ],
        )

    def _compute(
        self, predictions: list[str], references: list[Any], **options: Any
    ) -> dict[str, Any]:
        listed = [[r] if isinstance(r, str) else r for r in references]
        tallies = self.tally(predictions, listed, **options)
        values: dict[str, Any] = {name: tally.value for name, tally in tallies.items()}
        signatures = {tally.signature for tally in tallies.values() if tally.signature}
        return values | ({"signature": " ".join(signatures)} if signatures else {})


class SacrebleuMetric(CorpusMetric):
    """A metric that sacrebleu computes from counts that are summed over the corpus."""

    scorer: ClassVar[Callable[..., Any]]
    """Makes sacrebleu's metric from the settings."""
    key: ClassVar[str]
    """What its value is called."""

    def tally(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], **options: Any
    ) -> dict[str, Tally]:
        """See ``CorpusMetric.tally``."""
        metric = type(self).scorer(**options)
        # sacrebleu wants one list per reference; where a text has fewer, None stands.
        columns = [list(column) for column in zip_longest(*references)]
        counts_NK = np.array(metric._extract_corpus_statistics(predictions, columns))

        def score(sums_K: np.ndarray) -> float:
            value: float = metric._compute_score_from_stats(sums_K.tolist()).score
            return min(value / 100, 1.0)  # 100 may be an ulp more

        return {self.key: Tally(counts_NK, score, str(metric.get_signature()))}

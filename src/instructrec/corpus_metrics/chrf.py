"""Corpus chrF, computed by sacrebleu."""

from __future__ import annotations

from sacrebleu.metrics import CHRF

from instructrec.corpus_metrics import common


class CorpusChrf(common.SacrebleuMetric):
    """chrF of a corpus against one or several references per text."""

    scorer = CHRF
    key = "chrf"
    description = "Corpus chrF2, or chrF2++ with word_order 2, as sacrebleu computes it, over 100."
    citation = "Popovic 2015, chrF: character n-gram F-score for automatic MT evaluation"
    options = "word_order, lowercase"

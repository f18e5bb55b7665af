"""Corpus BLEU, computed by sacrebleu."""

from __future__ import annotations

from sacrebleu.metrics import BLEU

from instructrec.corpus_metrics import common


class CorpusBleu(common.SacrebleuMetric):
    """BLEU of a corpus against one or several references per text."""

    scorer = BLEU
    key = "bleu"
    description = (
        "Corpus BLEU (Papineni et al. 2002) as sacrebleu computes it, divided by 100. Counts are "
        "summed over the corpus, so it is not the mean of sentence scores."
    )
    citation = "Post 2018, A Call for Clarity in Reporting BLEU Scores (sacrebleu)"
    options = "tokenize (13a, intl, char, zh, none), lowercase"

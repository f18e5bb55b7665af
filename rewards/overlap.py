"""Rewards for word overlap with expected answers, computed by their reference libraries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from sacrebleu.metrics import BLEU

from instructrec.errors import ConfigError, did_you_mean
from instructrec.rewards.text import completion_text, reference_texts

Tokenizer = Literal["13a", "intl", "char", "zh", "none"]
"""sacrebleu's tokenizers that need neither a download nor another package."""

_TOKENIZERS = ("13a", "intl", "char", "zh", "none")


def bleu(
    completions: Sequence[Any],
    reference: Sequence[str | Sequence[str] | None],
    *,
    tokenize: Tokenizer = "13a",
    lowercase: bool = False,
    **columns: Any,
) -> list[float | None]:
    """Sentence BLEU of each response against its expected answers, on a scale from 0 to 1.

    sacrebleu's sentence score divided by 100, with effective order: n-grams longer than the texts
    are left out, so that a perfect answer of one word scores 1 (plain BLEU gives it 0).

    Args:
        completions: B responses.
        reference: B expected answers, each a string or several acceptable strings. Blank ones are
            left out, because no response can overlap with nothing.
        tokenize: How sacrebleu splits words: ``13a`` (the usual one), ``intl``, ``char`` (for
            languages without spaces), ``zh`` or ``none``.
        lowercase: Whether case is ignored.
        **columns: Not read.

    Returns:
        B scores in [0, 1]; None where the sample has no expected answer that is not blank.

    Raises:
        ConfigError: When ``tokenize`` is not one of these.
        DataError: When a reference is not text.
    """
    if tokenize not in _TOKENIZERS:
        raise ConfigError(
            f"reward 'bleu': tokenize = {tokenize!r}: expected one of {', '.join(_TOKENIZERS)}."
            f"{did_you_mean(str(tokenize), _TOKENIZERS)}"
        )
    metric = _metric(tokenize, lowercase)
    scores: list[float | None] = []
    for i, (completion, expected) in enumerate(zip(completions, reference, strict=True)):
        answers = [a for a in reference_texts(expected, "bleu", i) or () if a.strip()]
        if not answers:
            scores.append(None)
            continue
        score = metric.sentence_score(completion_text(completion), answers).score / 100
        scores.append(min(max(score, 0.0), 1.0))  # rounding reaches 1.0000000000000004
    return scores


@lru_cache(maxsize=16)
def _metric(tokenize: str, lowercase: bool) -> BLEU:
    return BLEU(tokenize=tokenize, lowercase=lowercase, effective_order=True)

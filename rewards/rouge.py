"""ROUGE, computed by rouge-score, with words of any script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from instructrec.rewards.options import check_option
from instructrec.rewards.references import Reference, best_scores

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Variant = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]
"""What two texts share: words, pairs of words, or a longest common subsequence."""
Measure = Literal["fmeasure", "precision", "recall"]
"""What the share is measured against: both texts, the response, or the expected answer."""
Words = Literal["unicode", "characters", "latin"]
"""What a text is cut into; see ``rouge``."""

_WORD = {"unicode": r"[\p{L}\p{M}\p{N}]+", "characters": r"[\p{L}\p{N}]\p{M}*"}


def rouge(
    completions: Sequence[Any],
    reference: Reference,
    *,
    variant: Variant = "rougeL",
    measure: Measure = "fmeasure",
    tokenize: Words = "unicode",
    stemmer: bool = False,
    **columns: Any,
) -> list[float | None]:
    """ROUGE (Lin 2004) of each response against its expected answers, from 0 to 1.

    Args:
        completions: B responses.
        reference: B expected answers, each a string or several acceptable strings. Blank ones are
            left out.
        variant: ``rouge1``, ``rouge2``, ``rougeL`` over the whole text, or ``rougeLsum`` over its
            lines, each of which should hold one sentence.
        measure: ``fmeasure``, ``precision`` or ``recall``.
        tokenize: ``unicode`` takes runs of letters, marks and digits of any script, ``characters``
            each one by itself (for languages without spaces), ``latin`` is rouge-score's own: the
            same as ``unicode`` for ASCII text, and all other letters are dropped, which makes the
            score of Greek or Chinese text 0.
        stemmer: Whether English words of more than three letters are reduced to their Porter stem.
        **columns: Not read.

    Returns:
        B scores in [0, 1]; None where the sample has no expected answer that is not blank.

    Raises:
        ConfigError: When an option is not one of its choices.
        DataError: When a reference is not text.
    """
    check_option("rouge", "variant", variant, Variant)
    check_option("rouge", "measure", measure, Measure)
    check_option("rouge", "tokenize", tokenize, Words)
    scorer = _scorer(variant, tokenize, stemmer)

    def score(response: str, answer: str) -> float:
        return float(getattr(scorer.score(answer, response)[variant], measure))

    return best_scores(completions, reference, score, reward="rouge", prepare=str, skip_blank=True)


@lru_cache(maxsize=16)
def _scorer(variant: str, tokenize: str, stemmer: bool) -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    if tokenize == "latin":
        return RougeScorer([variant], use_stemmer=stemmer)
    return RougeScorer([variant], tokenizer=_Tokenizer(_WORD[tokenize], stemmer))


@dataclass(frozen=True)
class _Tokenizer:
    """What rouge-score asks of a tokenizer."""

    word: str
    stem: bool

    def tokenize(self, text: str) -> list[str]:
        """Returns the words of a text in lower case."""
        import regex

        words = regex.findall(self.word, text.lower())
        if not self.stem:
            return words
        stem = _porter()
        return [stem(word) if len(word) > 3 else word for word in words]


@lru_cache
def _porter() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem

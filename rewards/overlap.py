"""Rewards of machine translation, computed by sacrebleu: BLEU, chrF and TER.

Where a sample has several expected answers they are counted together, as each metric defines it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from instructrec.rewards.options import check_option
from instructrec.rewards.references import Reference, expected_answers
from instructrec.rewards.text import completion_texts

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF, TER

Tokenizer = Literal["13a", "intl", "char", "zh", "none"]
"""sacrebleu's tokenizers that need neither a download nor another package."""
Smoothing = Literal["exp", "floor", "add-k", "none"]
"""What sacrebleu does with n-grams that never match; see ``bleu``."""

_MOST_KEPT_CHARACTERS = 10_000_000
_kept_characters = 0


def bleu(
    completions: Sequence[Any],
    reference: Reference,
    *,
    tokenize: Tokenizer = "13a",
    lowercase: bool = False,
    smoothing: Smoothing = "exp",
    smoothing_value: float | None = None,
    max_order: int = 4,
    **columns: Any,
) -> list[float | None]:
    """Sentence BLEU of each response against its expected answers, on a scale from 0 to 1.

    BLEU (Papineni et al. 2002) as sacrebleu's sentence score / 100, with effective order: n-grams
    longer than the texts are left out, so that a perfect answer of one word scores 1 (plain BLEU
    gives it 0).

    Args:
        completions: B responses.
        reference: B expected answers, each a string or several acceptable strings. Blank ones are
            left out, because no response can overlap with nothing.
        tokenize: How sacrebleu splits words: ``13a`` (the usual one), ``intl``, ``char`` (for
            languages without spaces), ``zh`` or ``none``.
        lowercase: Whether case is ignored.
        smoothing: What stands for the precision of n-grams without a match: ``exp`` halves the
            smallest possible one each time, ``floor`` counts ``smoothing_value`` matches, ``add-k``
            adds ``smoothing_value`` to matches and n-grams from pairs on, ``none`` makes BLEU 0.
        smoothing_value: For ``floor`` (0.1 when not set) and ``add-k`` (1 when not set).
        max_order: Length of the longest n-grams.
        **columns: Not read.

    Returns:
        B scores in [0, 1]; None where the sample has no expected answer that is not blank.

    Raises:
        ConfigError: When an option is not one of its choices or below its lowest value.
        DataError: When a reference is not text.
    """
    check_option("bleu", "tokenize", tokenize, Tokenizer)
    check_option("bleu", "smoothing", smoothing, Smoothing)
    check_option("bleu", "smoothing_value", smoothing_value, float | None, at_least=0)
    check_option("bleu", "max_order", max_order, int, at_least=1)
    metric = _bleu(tokenize, lowercase, smoothing, smoothing_value, max_order)
    return _scores(metric, completions, reference, "bleu")


def chrf(
    completions: Sequence[Any],
    reference: Reference,
    *,
    char_order: int = 6,
    word_order: int = 0,
    beta: int = 2,
    lowercase: bool = False,
    whitespace: bool = False,
    **columns: Any,
) -> list[float | None]:
    """Sentence chrF of each response against its expected answers, on a scale from 0 to 1.

    chrF (Popović 2015) as sacrebleu's sentence score / 100: an F-score over n-grams of characters,
    which needs no tokenizer and forgives inflection. With ``word_order: 2`` it is chrF++.

    Args:
        completions: B responses.
        reference: B expected answers, each a string or several acceptable strings, of which the
            best counts. Blank ones are left out.
        char_order: Length of the longest character n-grams.
        word_order: Length of the longest word n-grams; 0 leaves words out.
        beta: How many times recall weighs as much as precision.
        lowercase: Whether case is ignored.
        whitespace: Whether white space counts as characters.
        **columns: Not read.

    Returns:
        B scores in [0, 1]; None where the sample has no expected answer that is not blank.

    Raises:
        ConfigError: When a number is below its lowest value.
        DataError: When a reference is not text.
    """
    for name, value, lowest in (
        ("char_order", char_order, 1),
        ("word_order", word_order, 0),
        ("beta", beta, 1),
    ):
        check_option("chrf", name, value, int, at_least=lowest)
    metric = _chrf(char_order, word_order, beta, lowercase, whitespace)
    return _scores(metric, completions, reference, "chrf")


def ter(
    completions: Sequence[Any],
    reference: Reference,
    *,
    normalized: bool = False,
    no_punct: bool = False,
    asian_support: bool = False,
    case_sensitive: bool = False,
    **columns: Any,
) -> list[float | None]:
    """One minus the translation edit rate, at least 0: 1 where nothing has to be edited.

    The rate (Snover et al. 2006) is sacrebleu's: inserted, deleted, replaced and moved words by
    words of the expected answer. It has no upper bound; from one edit per word on the score is 0.
    The search for moves makes it slow for answers of hundreds of words; chrF is not.

    Args:
        completions: B responses.
        reference: B expected answers, each a string or several acceptable strings: the fewest edits
            count, over the average length. Blank ones are left out.
        normalized: Whether sacrebleu splits off punctuation first.
        no_punct: Whether punctuation is removed.
        asian_support: Whether, with one of these, Chinese and Japanese characters count as words
            and their punctuation as punctuation.
        case_sensitive: Whether case counts.
        **columns: Not read.

    Returns:
        B scores in [0, 1]; None where the sample has no expected answer that is not blank.

    Raises:
        DataError: When a reference is not text.
    """
    metric = _ter(normalized, no_punct, asian_support, case_sensitive)

    def words(text: str) -> int:
        return len(metric.tokenizer(text.rstrip()).split())

    def score(text: str, answers: list[str]) -> float:
        lengths = [words(answer) for answer in answers]
        # Whatever is too long must be deleted, word by word: no need to search for the edits.
        if words(text) - max(lengths) >= sum(lengths) / len(lengths) > 0:
            return 0.0
        return 1 - float(metric.sentence_score(text, answers).score) / 100

    return _scores(metric, completions, reference, "ter", score)


def _scores(
    metric: BLEU | CHRF | TER,
    completions: Sequence[Any],
    reference: Reference,
    reward: str,
    score: Callable[[str, list[str]], float] | None = None,
) -> list[float | None]:
    """Scores each response with a metric of sacrebleu, by default its sentence score / 100."""
    scores: list[float | None] = []
    texts = completion_texts(completions)
    expected = expected_answers(reference, reward, skip_blank=True)
    for text, answers in zip(texts, expected, strict=True):
        if not answers:
            scores.append(None)
            continue
        listed = list(answers)
        value = score(text, listed) if score else metric.sentence_score(text, listed).score / 100
        scores.append(min(max(value, 0.0), 1.0))  # rounding reaches 1.0000000000000004
    _forget_texts(metric, sum(map(len, texts)))
    return scores


def _forget_texts(metric: BLEU | CHRF | TER, characters: int) -> None:
    """Empties the caches of sacrebleu's tokenizers after so many more characters of text.

    They keep the last 65,536 texts, whatever their length: gigabytes where responses are long.
    """
    global _kept_characters
    _kept_characters += characters
    if _kept_characters < _MOST_KEPT_CHARACTERS:
        return
    from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

    _kept_characters = 0
    for tokenizer in (type(getattr(metric, "tokenizer", None)), TokenizerRegexp):
        forget = getattr(tokenizer.__call__, "cache_clear", None)
        if forget:
            forget()


@lru_cache(maxsize=16)
def _bleu(
    tokenize: str, lowercase: bool, smoothing: str, smoothing_value: float | None, max_order: int
) -> BLEU:
    from sacrebleu.metrics import BLEU

    return BLEU(
        tokenize=tokenize,
        lowercase=lowercase,
        smooth_method=smoothing,
        smooth_value=smoothing_value,
        max_ngram_order=max_order,
        effective_order=True,
    )


@lru_cache(maxsize=16)
def _chrf(char_order: int, word_order: int, beta: int, lowercase: bool, whitespace: bool) -> CHRF:
    from sacrebleu.metrics import CHRF

    return CHRF(char_order, word_order, beta, lowercase, whitespace)


@lru_cache(maxsize=16)
def _ter(normalized: bool, no_punct: bool, asian_support: bool, case_sensitive: bool) -> TER:
    from sacrebleu.metrics import TER

    return TER(normalized, no_punct, asian_support, case_sensitive)

"""Exact match and the overlap of tokens, as question answering measures them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from instructrec.rewards.numerals import whole_number
from instructrec.rewards.options import check_option
from instructrec.rewards.references import Reference, best_scores
from instructrec.rewards.text import Normalisation, normaliser

Tokens = Literal["words", "characters"]
"""What a text is cut into; see ``f1``."""


def exact_match(
    completions: Sequence[Any],
    reference: Reference,
    *,
    normalise: Normalisation | Literal["numeric"] = "strip",
    **columns: Any,
) -> list[float | None]:
    """1.0 where a response equals one of the expected answers, else 0.0.

    Args:
        completions: B responses.
        reference: B expected answers, each a string or several acceptable strings.
        normalise: What is ignored on both sides before comparing: ``none``, ``strip`` (outer white
            space), ``casefold`` (also case), ``squad`` (also punctuation and articles) or
            ``numeric`` (how a number is written: 1,000 = 1000.0 = 1e3; other texts as ``strip``).
        **columns: Not read.

    Returns:
        B scores in {0, 1}; None where the sample has no expected answer.

    Raises:
        ConfigError: When ``normalise`` is not one of these.
        DataError: When a reference is not text.
    """
    prepare = _numeric if normalise == "numeric" else normaliser(normalise)
    return best_scores(completions, reference, _equal, reward="exact_match", prepare=prepare)


def f1(
    completions: Sequence[Any],
    reference: Reference,
    *,
    normalise: Normalisation = "squad",
    tokens: Tokens = "words",
    **columns: Any,
) -> list[float | None]:
    """Overlap of a response with an expected answer: the F1 of SQuAD (Rajpurkar et al. 2016).

    Precision is the share of the response's tokens that the answer has too, recall the share of the
    answer's tokens that the response has, each token counted as often as it occurs; the score is
    2·precision·recall / (precision + recall). As in SQuAD 2.0, a text without tokens matches only
    another one without.

    Args:
        completions: B responses.
        reference: B expected answers, each a string or several acceptable strings.
        normalise: As for ``exact_match``; ``squad`` is that of the benchmark.
        tokens: ``words`` between white space, or ``characters`` other than white space for
            languages that put none between words.
        **columns: Not read.

    Returns:
        B scores in [0, 1]; None where the sample has no expected answer.

    Raises:
        ConfigError: When ``normalise`` is not one of its choices.
        DataError: When a reference is not text.
    """
    check_option("f1", "tokens", tokens, Tokens)
    normal = normaliser(normalise)

    def bag(text: str) -> Counter[str]:
        words = normal(text).split()
        return Counter(words if tokens == "words" else "".join(words))

    return best_scores(completions, reference, _token_f1, reward="f1", prepare=bag)


def _equal(response: str, answer: str) -> float:
    return 1.0 if response == answer else 0.0


def _numeric(text: str) -> str:
    number = whole_number(text)
    return text.strip() if number is None else str(number)


def _token_f1(response: Counter[str], answer: Counter[str]) -> float:
    if not response or not answer:
        return float(not response and not answer)
    common = sum((response & answer).values())
    return 2 * common / (response.total() + answer.total())

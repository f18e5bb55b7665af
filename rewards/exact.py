"""Exact match: the response is the expected answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructrec.rewards.text import (
    Normalisation,
    completion_texts,
    normaliser,
    reference_texts,
)


def exact_match(
    completions: Sequence[Any],
    reference: Sequence[str | Sequence[str] | None],
    *,
    normalise: Normalisation = "strip",
    **columns: Any,
) -> list[float | None]:
    """1.0 where a response equals one of the expected answers, else 0.0.

    Args:
        completions: B responses.
        reference: B expected answers, each a string or several acceptable strings.
        normalise: What is ignored on both sides before comparing: ``none``, ``strip`` (outer white
            space), ``casefold`` (also case) or ``squad`` (also punctuation and articles).
        **columns: Not read.

    Returns:
        B scores in {0, 1}; None where the sample has no expected answer.

    Raises:
        ConfigError: When ``normalise`` is not one of these.
        DataError: When a reference is not text.
    """
    normal = normaliser(normalise)
    scores: list[float | None] = []
    for i, (text, expected) in enumerate(
        zip(completion_texts(completions), reference, strict=True)
    ):
        if isinstance(expected, str):
            scores.append(1.0 if normal(text) == normal(expected) else 0.0)
            continue
        answers = reference_texts(expected, "exact_match", i)
        if answers is None:
            scores.append(None)
        else:
            response = normal(text)
            scores.append(1.0 if any(response == normal(a) for a in answers) else 0.0)
    return scores

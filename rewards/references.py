"""Comparing responses with expected answers: one or several each, of which the best counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from instructrec.rewards.text import completion_texts, reference_texts

Reference = Sequence[str | Sequence[str] | None]
"""B expected answers, each a string, several acceptable strings, or None."""

_T = TypeVar("_T")


def best_scores(
    completions: Sequence[Any],
    reference: Reference,
    score: Callable[[_T, _T], float],
    *,
    reward: str,
    prepare: Callable[[str], _T],
    skip_blank: bool = False,
) -> list[float | None]:
    """Scores each response against the expected answer that suits it best.

    Args:
        completions: B responses.
        reference: B expected answers.
        score: From the prepared response and a prepared answer to a number.
        reward: Name of the reward that asks, for errors.
        prepare: What is done to both texts before they are compared.
        skip_blank: Whether answers without any visible character are left out.

    Returns:
        B scores; None where the sample has no expected answer.

    Raises:
        DataError: When a reference is not text.
    """
    scores: list[float | None] = []
    texts = completion_texts(completions)
    for text, answers in zip(
        texts, expected_answers(reference, reward, skip_blank=skip_blank), strict=True
    ):
        if not answers:
            scores.append(None)
        elif len(answers) == 1:
            scores.append(score(prepare(text), prepare(answers[0])))
        else:
            response = prepare(text)
            scores.append(max(score(response, prepare(answer)) for answer in answers))
    return scores


def expected_answers(
    reference: Reference, reward: str, *, skip_blank: bool = False
) -> Iterator[Sequence[str]]:
    """Yields the expected answers of each sample; none where the reward does not apply.

    Args:
        reference: B expected answers.
        reward: Name of the reward that asks, for errors.
        skip_blank: Whether answers without any visible character are left out.

    Raises:
        DataError: When a reference is not text.
    """
    for i, expected in enumerate(reference):
        answers: Sequence[str]
        if isinstance(expected, str):
            answers = (expected,)
        else:
            answers = reference_texts(expected, reward, i) or ()
        yield [a for a in answers if a.strip()] if skip_blank else answers

"""Rewards for what a response contains or resembles: a text, a pattern, nearly the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from instructrec.errors import ConfigError, DataError
from instructrec.rewards.options import check_option
from instructrec.rewards.references import Reference, best_scores, expected_answers
from instructrec.rewards.text import Normalisation, completion_texts, normaliser

if TYPE_CHECKING:
    import regex as regex_library

FuzzyMethod = Literal["ratio", "token_sort", "levenshtein"]
"""How likeness is measured; see ``fuzzy``."""
Need = Literal["any", "all", "share"]
"""How many of several texts a response must contain; see ``contains``."""

_COMBINE: dict[str, Callable[[list[bool]], float]] = {
    "any": lambda found: float(any(found)),
    "all": lambda found: float(all(found)),
    "share": lambda found: sum(found) / len(found),
}


def contains(
    completions: Sequence[Any],
    reference: Reference,
    *,
    normalise: Normalisation = "casefold",
    need: Need = "any",
    words: bool = False,
    **columns: Any,
) -> list[float | None]:
    """1.0 where a response contains an expected text, else 0.0.

    Args:
        completions: B responses.
        reference: B expected texts, each a string or several strings. Blank ones are left out,
            because every response contains nothing.
        normalise: What is ignored on both sides, as for ``exact_match``.
        need: Where several texts are expected: ``any`` of them is enough, ``all`` must be there, or
            the score is the ``share`` that is.
        words: Whether the text must stand as whole words: with it, "cat" is not in "concatenate".
            Of no use for languages without spaces.
        **columns: Not read.

    Returns:
        B scores in {0, 1}, with ``share`` in [0, 1]; None where the sample expects nothing.

    Raises:
        ConfigError: When ``normalise`` is not one of its choices.
        DataError: When a reference is not text.
    """
    normal = normaliser(normalise)
    found_in = _has_words if words else str.__contains__
    check_option("contains", "need", need, Need)
    combine = _COMBINE[need]
    scores: list[float | None] = []
    texts = completion_texts(completions)
    expected = expected_answers(reference, "contains", skip_blank=True)
    for text, answers in zip(texts, expected, strict=True):
        wanted = [w for w in map(normal, answers) if w]  # "The" is nothing to SQuAD
        response = normal(text) if wanted else ""
        scores.append(combine([found_in(response, w) for w in wanted]) if wanted else None)
    return scores


def fuzzy(
    completions: Sequence[Any],
    reference: Reference,
    *,
    method: FuzzyMethod = "ratio",
    normalise: Normalisation = "strip",
    **columns: Any,
) -> list[float | None]:
    """How alike a response and an expected answer are, letter by letter, computed by rapidfuzz.

    Args:
        completions: B responses.
        reference: B expected answers, each a string or several acceptable strings. Blank ones are
            left out: rapidfuzz finds two empty texts perfectly alike.
        method: ``ratio`` is rapidfuzz's ``fuzz.ratio`` / 100, one minus the insertions and
            deletions per letter of both texts; ``token_sort`` is the same over sorted words;
            ``levenshtein`` is one minus the edits (substitutions too) per letter of the longer one.
        normalise: What is ignored on both sides, as for ``exact_match``.
        **columns: Not read.

    Returns:
        B scores in [0, 1]; None where the sample has no expected answer that is not blank.

    Raises:
        ConfigError: When an option is not one of its choices.
        DataError: When a reference is not text.
    """
    return best_scores(
        completions,
        reference,
        _likeness(method),
        reward="fuzzy",
        prepare=normaliser(normalise),
        skip_blank=True,
    )


class Regex:
    """1.0 where a pattern is found in a response, else 0.0.

    The pattern is written for the library ``regex``, which reads what ``re`` reads and, unlike
    ``re``, can give up: some patterns take exponential time on some texts, and a policy in
    training will find such a text. A response that takes too long counts as failed, not as 0.

    Args:
        pattern: The pattern; without it, each sample has its own in the column ``pattern`` (one or
            several, of which any is enough).
        mode: ``search`` finds it anywhere, ``fullmatch`` wants the whole response, without outer
            white space, to fit.
        timeout: Most seconds of computing for one response and pattern.

    Raises:
        ConfigError: When the pattern is not one, or the timeout is not positive.
    """

    __name__ = "regex"

    def __init__(
        self,
        pattern: str | None = None,
        *,
        mode: Literal["search", "fullmatch"] = "search",
        timeout: float = 1.0,
    ) -> None:
        if not (timeout > 0 and math.isfinite(timeout)):
            raise ConfigError(f"reward 'regex': timeout = {timeout}: expected seconds above 0.")
        if pattern is not None:
            try:
                _compiled(pattern)
            except ValueError as error:
                raise ConfigError(f"reward 'regex': pattern = {pattern!r}: {error}.") from None
        self.pattern = pattern
        self.mode = mode
        self.timeout = timeout

    def __call__(
        self,
        completions: Sequence[Any],
        pattern: Sequence[str | Sequence[str] | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores B responses; ``pattern`` is the column of that name, where there is one.

        Returns:
            B scores in {0, 1}; None where the sample has no pattern.

        Raises:
            ConfigError: When there is neither the option nor the column ``pattern``.
            DataError: When a pattern of the column is not one.
            TimeoutError: When a response takes too long.
        """
        if self.pattern is None and pattern is None:
            raise ConfigError(
                "reward 'regex' has nothing to look for: set its option pattern, or give the data "
                "a column 'pattern' (pattern_column names another one)."
            )
        per_sample = pattern if self.pattern is None else [self.pattern] * len(completions)
        assert per_sample is not None
        scores: list[float | None] = []
        texts = completion_texts(completions)
        for i, (text, wanted) in enumerate(
            zip(texts, expected_answers(per_sample, "regex"), strict=True)
        ):
            try:
                patterns = [_compiled(one) for one in wanted]
            except ValueError as error:
                raise DataError(
                    f"reward 'regex': the pattern of sample {i}, {wanted!r}: {error}."
                ) from None
            found = any(self._found(one, text) for one in patterns)
            scores.append(float(found) if patterns else None)
        return scores

    def _found(self, pattern: regex_library.Pattern[str], text: str) -> bool:
        try:
            if self.mode == "search":
                return pattern.search(text, timeout=self.timeout) is not None
            return pattern.fullmatch(text.strip(), timeout=self.timeout) is not None
        except TimeoutError:
            raise TimeoutError(
                f"the pattern {pattern.pattern!r} took longer than {self.timeout:g} s on a "
                f"response of {len(text)} characters"
            ) from None


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> regex_library.Pattern[str]:
    """Compiles a pattern; ValueError when it is not one."""
    import regex

    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression ({error})") from None


def _has_words(text: str, wanted: str) -> bool:
    start = text.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        before, after = text[start - 1 : start], text[end : end + 1]
        joined = (before.isalnum() and wanted[0].isalnum()) or (
            after.isalnum() and wanted[-1].isalnum()
        )
        if not joined:
            return True
        start = text.find(wanted, start + 1)
    return False


def _likeness(method: str) -> Callable[[str, str], float]:
    check_option("fuzzy", "method", method, FuzzyMethod)
    from rapidfuzz import fuzz
    from rapidfuzz.distance import Levenshtein

    if method == "levenshtein":
        return Levenshtein.normalized_similarity
    ratio = fuzz.token_sort_ratio if method == "token_sort" else fuzz.ratio
    return lambda response, answer: ratio(response, answer) / 100

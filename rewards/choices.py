"""Rewards that read the final answer out of a longer response: a chosen letter, a number."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from instructrec.errors import ConfigError, DataError
from instructrec.rewards.numerals import (
    DecimalMark,
    Number,
    first_number,
    last_number,
    whole_number,
)
from instructrec.rewards.options import check_option
from instructrec.rewards.references import Reference, expected_answers
from instructrec.rewards.text import completion_texts, normalise_text

Take = Literal["last", "first", "whole"]
"""Which number of a text counts; see ``numeric``."""
_FIND = {"last": last_number, "first": first_number, "whole": whole_number}


def numeric(
    completions: Sequence[Any],
    reference: Reference,
    *,
    take: Take = "last",
    abs_tolerance: float = 0.0,
    rel_tolerance: float = 0.0,
    decimal: DecimalMark = ".",
    percent: Literal["unit", "hundredth"] = "unit",
    units: Literal["ignore", "same"] = "ignore",
    **columns: Any,
) -> list[float | None]:
    """1.0 where the number in a response is the expected one, else 0.0.

    Read are 42, -3.5, 1,234.5, .5, 1e6, 3/4, 1 1/2, LaTeX's frac, $5 and 5 km. The comparison is
    exact; a response without a number scores 0.

    Args:
        completions: B responses.
        reference: B expected numbers as text, one or several each; texts without are left out.
        take: Which number of a text counts: the ``last``, the ``first``, or ``whole`` where the
            text must be the number and nothing else.
        abs_tolerance: Largest difference that is accepted.
        rel_tolerance: The same as a share of the expected number; the larger of both holds.
        decimal: The decimal mark; the other one of "." and "," groups thousands.
        percent: Whether "50%" is 50 with a ``unit``, or 50 ``hundredth`` parts: 0.5.
        units: ``ignore`` the word behind the number, or demand the ``same`` if one is expected.
        **columns: Not read.

    Returns:
        B scores in {0, 1}; None where no number is expected.

    Raises:
        ConfigError: When an option is not one of its choices, or a tolerance is negative.
        DataError: When a reference is not text.
    """
    check_option("numeric", "take", take, Take)
    check_option("numeric", "decimal", decimal, DecimalMark)
    check_option("numeric", "abs_tolerance", abs_tolerance, float, at_least=0)
    check_option("numeric", "rel_tolerance", rel_tolerance, float, at_least=0)
    absolute, relative = Fraction(abs_tolerance), Fraction(rel_tolerance)

    def read(text: str) -> Number | None:
        number = _FIND[take](text, decimal)
        if number and percent == "hundredth" and number.unit in ("%", "percent"):
            return Number(number.value / 100, "")
        return number

    scores: list[float | None] = []
    texts = completion_texts(completions)
    for text, answers in zip(texts, expected_answers(reference, "numeric"), strict=True):
        wanted = [number for number in map(read, answers) if number]
        given = read(text) if wanted else None
        close = given is not None and any(
            abs(given.value - number.value) <= max(absolute, relative * abs(number.value))
            and (units == "ignore" or number.unit in ("", given.unit))
            for number in wanted
        )
        scores.append(float(close) if wanted else None)
    return scores


def multiple_choice(
    completions: Sequence[Any],
    reference: Reference,
    choices: Sequence[Sequence[str] | None] | None = None,
    *,
    letters: str = "ABCD",
    **columns: Any,
) -> list[float | None]:
    """1.0 where the letter that a response settles on is the expected one, else 0.0.

    The letter is, in this order: that of the last boxed answer, of the last "answer is B" or
    "option: (B)", the one that the response begins with as in "B) Paris", or the only one that
    stands alone in it. A response that names several as its answer ("A or B") settles on none.

    Args:
        completions: B responses.
        reference: B expected letters such as "B" or "(b)", each a string or several; with
            ``choices`` the text of the option does too.
        choices: The texts of each sample's options in the order of ``letters``, a column of the
            data; with it, a response that is one of these texts has chosen it.
        letters: The letters of the options.
        **columns: Not read.

    Returns:
        B scores in {0, 1}; None where the sample has no expected answer.

    Raises:
        ConfigError: When ``letters`` are not different capital letters.
        DataError: When a reference is neither a letter nor the text of an option.
    """
    reader = _letter_reader(letters)
    scores: list[float | None] = []
    texts = completion_texts(completions)
    options = [None] * len(texts) if choices is None else choices
    for i, (text, answers, known) in enumerate(
        zip(texts, expected_answers(reference, "multiple_choice"), options, strict=True)
    ):
        if not answers:
            scores.append(None)
            continue
        named = {
            _plain(option): letter for option, letter in zip(known or (), letters, strict=False)
        }
        right = {_expected_letter(answer, letters, named, i) for answer in answers}
        scores.append(float((reader.letter(text) or named.get(_plain(text))) in right))
    return scores


@dataclass(frozen=True)
class _LetterReader:
    """Patterns that find the chosen one of some letters."""

    stated: re.Pattern[str]
    leading: re.Pattern[str]
    alone: re.Pattern[str]
    hedge: re.Pattern[str]

    def letter(self, text: str) -> str | None:
        """Returns the capital letter that a response settles on, None when there is none."""
        stated = None
        for match in self.stated.finditer(text):
            stated = match
        chosen = stated or self.leading.match(text)
        if chosen is not None:
            if self.hedge.match(text, chosen.end()):
                return None
            return chosen["letter"].upper()
        found = {match["letter"] for match in self.alone.finditer(text)}
        return found.pop() if len(found) == 1 else None


@lru_cache
def _letter_reader(letters: str) -> _LetterReader:
    if not (letters.isascii() and letters.isalpha() and letters.isupper()) or len(
        set(letters)
    ) < max(2, len(letters)):
        raise ConfigError(
            f"reward 'multiple_choice': letters = {letters!r}: expected different capital letters, "
            "e.g. ABCDE."
        )
    capital, either = f"[{letters}]", f"[{letters}{letters.lower()}]"
    opening, closing = r"[\s*_`\"'(\[{$]{0,8}", r"[\s*_`\"'\])}$]{0,8}"
    start, end = r"(?<!\w)(?<!\w['\u2019])", r"(?!\w|['\u2019]\w)"
    # "A" and "I" before a small letter are words: "A dog", "I think".
    article = r"[AI]\s+(?!(?:or|and)\b)[a-z]"
    return _LetterReader(
        stated=re.compile(
            r"(?:\\boxed|\b(?i:answer|option|choice|choose|pick)(?i:\s+(?:is|would\sbe))?)"
            rf"\s{{0,4}}[:=]?{opening}(?:\\[a-z]{{2,6}}\{{)?{opening}"
            rf"(?P<letter>{capital}{end}|{either}(?=\)|{closing}\.?(?:\Z|\n)))"
        ),
        leading=re.compile(rf"{opening}(?P<letter>{either})(?={closing}(?:\Z|[).:\]]|\n))"),
        alone=re.compile(
            rf"{start}(?<!not )(?<!n't )(?P<letter>(?!{article}){capital}){end}",
        ),
        hedge=re.compile(
            rf"{closing}[.:]?(?:\s*(?:(?:or|and)\b|[/&]|,(?!{opening}{capital}\s+[a-z]))"
            rf"{opening}{either}{end}|{opening}{capital}(?={closing}(?:\Z|[).:\]]|\n)))"
        ),
    )


def _expected_letter(answer: str, letters: str, named: dict[str, str], index: int) -> str:
    plain = answer.strip(" \t\n().:").upper()
    if len(plain) == 1 and plain in letters:
        return plain
    if _plain(answer) in named:
        return named[_plain(answer)]
    raise DataError(
        f"reward 'multiple_choice': the reference of sample {index} is {answer!r}; expected one of "
        f"the letters {letters}{', or the text of one of its choices' if named else ''}. Set the "
        "option letters to those that the data uses."
    )


def _plain(text: str) -> str:
    return normalise_text(text, "casefold").rstrip(".")

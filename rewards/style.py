"""Rewards for how a response is written: its length, its repetitions, whether it refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from instructrec.errors import ConfigError, DataError
from instructrec.rewards.options import check_option
from instructrec.rewards.text import completion_texts

Unit = Literal["words", "characters", "tokens"]
"""What is counted: words between white space, characters, or the policy's own token ids."""

_NO_LENGTH = (
    "reward 'length' does not know which length is wanted: set minimum, maximum or target, or give "
    "the data a column 'target' (target_column names another one)."
)


class Length:
    """1.0 where a response is as long as wanted, less the further it is off, at least 0.

    Between ``minimum`` and ``maximum`` the score is 1; outside it falls in a straight line and
    reaches 0 at ``soft`` units off (at once when ``soft`` is 0). With ``maximum`` = L_max - L_cache
    and ``soft`` = L_cache this is one plus the soft overlong punishment of DAPO (Yu et al. 2025).

    Args:
        minimum: Fewest units that score 1.
        maximum: Most units that score 1.
        target: The same as ``minimum`` and ``maximum`` of this value. Without any of the three,
            each sample has its own in the column ``target``.
        soft: Units over which the score falls from 1 to 0.
        unit: ``words``, ``characters`` or ``tokens`` (the ids that the policy produced, its end
            token too).

    Raises:
        ConfigError: When the numbers contradict each other or are negative.
    """

    __name__ = "length"

    def __init__(
        self,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
        target: int | None = None,
        soft: int = 0,
        unit: Unit = "words",
    ) -> None:
        check_option("length", "unit", unit, Unit)
        for name, value in (("minimum", minimum), ("maximum", maximum), ("target", target)):
            check_option("length", name, value, int | None, at_least=0)
        check_option("length", "soft", soft, int, at_least=0)
        ranged = minimum is not None or maximum is not None
        if ranged and target is not None:
            raise ConfigError("reward 'length': set target, or minimum and maximum, not both.")
        if minimum is not None and maximum is not None and minimum > maximum:
            raise ConfigError(
                f"reward 'length': minimum = {minimum} is above maximum = {maximum}; swap them."
            )
        self.minimum = target if minimum is None else minimum
        self.maximum = target if maximum is None else maximum
        self.soft = soft
        self.unit = unit

    def __call__(
        self,
        completions: Sequence[Any],
        target: Sequence[int | None] | None = None,
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores B responses; ``target`` is the column of that name, where there is one.

        Returns:
            B scores in [0, 1]; None where the sample has no target.

        Raises:
            ConfigError: When there is neither a length option nor the column ``target``.
            DataError: When a target is not a whole number, or tokens are to be counted and the
                caller has no token ids.
        """
        sizes = [len(units) for units in _units(completions, completion_ids, self.unit, "length")]
        if self.minimum is not None or self.maximum is not None:
            return [self._score(size, self.minimum, self.maximum) for size in sizes]
        if target is None:
            raise ConfigError(_NO_LENGTH)
        scores: list[float | None] = []
        for i, (size, wanted) in enumerate(zip(sizes, target, strict=True)):
            if wanted is None:
                scores.append(None)
                continue
            if isinstance(wanted, bool | str) or not (wanted >= 0 and float(wanted).is_integer()):
                raise DataError(
                    f"reward 'length': the target of sample {i} is {wanted!r}; expected a number "
                    f"of {self.unit}, e.g. 20."
                )
            scores.append(self._score(size, int(wanted), int(wanted)))
        return scores

    def check_columns(self, available: Mapping[str, Any] | Sequence[str]) -> None:
        """Raises ConfigError when neither an option nor a column says which length is wanted."""
        if self.minimum is None and self.maximum is None and "target" not in available:
            raise ConfigError(_NO_LENGTH)

    def _score(self, size: int, low: int | None, high: int | None) -> float:
        below = 0 if low is None else low - size
        above = 0 if high is None else size - high
        off = max(below, above, 0)
        if off == 0:
            return 1.0
        return max(0.0, 1 - off / self.soft) if self.soft else 0.0


def repetition(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None = None,
    *,
    n: int = 3,
    unit: Unit = "words",
    **columns: Any,
) -> list[float]:
    """Share of different n-grams among all n-grams of a response: 1 where nothing is repeated.

    The distinct-n of Li et al. (2016). A response of fewer than n units repeats nothing.

    Args:
        completions: B responses.
        completion_ids: Their token ids, for ``tokens``.
        n: Length of the n-grams.
        unit: ``words``, ``characters`` (for languages without spaces) or ``tokens``.
        **columns: Not read.

    Returns:
        B scores in (0, 1].

    Raises:
        ConfigError: When an option is wrong.
        DataError: When tokens are to be counted and the caller has no token ids.
    """
    check_option("repetition", "n", n, int, at_least=1)
    check_option("repetition", "unit", unit, Unit)
    scores = []
    for units in _units(completions, completion_ids, unit, "repetition"):
        total = len(units) - n + 1
        distinct = {*zip(*(units[i:] for i in range(n)), strict=False)}
        scores.append(len(distinct) / total if total > 0 else 1.0)
    return scores


def refusal(
    completions: Sequence[Any],
    *,
    phrases: Sequence[str] | None = None,
    within: int = 300,
    **columns: Any,
) -> list[float]:
    """1.0 where a response declines to answer, else 0.0, judged by the words of its beginning.

    A keyword check, in the manner of Zou et al. (2023): apologies followed by inability, "I cannot
    help with", "as an AI". It knows English, lets the commonest figures of speech pass ("I cannot
    help but smile"), misses polite evasions, and is meant as a guard beside other rewards; a
    classifier judges better.

    Args:
        completions: B responses.
        phrases: What a refusal contains, instead of the built-in English expressions; case is
            ignored.
        within: How many characters from the beginning are read.
        **columns: Not read.

    Returns:
        B scores in {0, 1}.

    Raises:
        ConfigError: When ``phrases`` is not a list of texts or ``within`` not positive.
    """
    return [float(found) for found in _refuses(completions, phrases, within, "refusal")]


def no_refusal(
    completions: Sequence[Any],
    *,
    phrases: Sequence[str] | None = None,
    within: int = 300,
    **columns: Any,
) -> list[float]:
    """1.0 where a response does not decline to answer, else 0.0: one minus ``refusal``.

    Args:
        completions: B responses.
        phrases: As for ``refusal``.
        within: As for ``refusal``.
        **columns: Not read.

    Returns:
        B scores in {0, 1}.

    Raises:
        ConfigError: As ``refusal``.
    """
    return [float(not found) for found in _refuses(completions, phrases, within, "no_refusal")]


# "I cannot help but smile", "I can't recommend it enough", "sorry, I can't imagine how hard it is".
_FEELS = (
    r" help (?:but|it|myself|\w+ing)\b"
    r"| (?:even )?(?:begin to )?(?:imagine|believe|wait|thank)\b"
    r"| (?:recommend|support|promote|stress|praise)\b[^.!?]{0,60}\benough\b"
)
_CANNOT = rf"(?:can(?:no|')t|can not|won't|will not)(?!{_FEELS})"
_UNABLE = r"(?: am|'m| are|'re) (?:unable|not able|not allowed)"
_TASK = (
    r"(?:(?:really|actually|directly|currently|ethically|legally|personally|simply) )?"
    r"(?:help|assist|provide|answer|respond|comply|fulfil?l?|create|generate|write|do that|offer|"
    r"share|discuss|engage|participate|continue|support|promote|recommend|advise)"
)
_REFUSAL = re.compile(
    rf"\b(?:i|we) {_CANNOT} {_TASK}\b"
    rf"|\b(?:i|we){_UNABLE} to {_TASK}\b"
    rf"|\b(?:sorry|afraid|apologi[sz]e)\b[^.!?]{{0,40}}\b(?:i|we)(?: {_CANNOT}|{_UNABLE})\b"
    r"|\bi(?: must| have to|'ll have to)? (?:decline|refuse) to\b|\bi must decline\b"
    r"|\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    rf"[^.!?]{{0,60}}\b(?:{_CANNOT}|unable|not able)\b"
    r"|\bi(?:'m| am) not comfortable\b|\bagainst my (?:programming|guidelines|polic(?:y|ies))\b"
)


def _refuses(
    completions: Sequence[Any], phrases: Sequence[str] | None, within: int, reward: str
) -> list[bool]:
    check_option(reward, "within", within, int, at_least=1)
    listed = isinstance(phrases, list | tuple) and all(isinstance(p, str) and p for p in phrases)
    if phrases is not None and not (listed and phrases):
        raise ConfigError(
            f"reward {reward!r}: phrases = {phrases!r}: expected a list of texts, "
            "e.g. ['tut mir leid']."
        )
    # Casefolding may lengthen a text, so what is read is cut before and not after it.
    heads = [text.lstrip()[:within].casefold() for text in completion_texts(completions)]
    if phrases is not None:
        wanted = [phrase.casefold() for phrase in phrases]
        return [any(phrase in head for phrase in wanted) for head in heads]
    plain = [" ".join(head.replace("\u2019", "'").split()) for head in heads]
    return [_REFUSAL.search(head) is not None for head in plain]


def _units(
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]] | None,
    unit: str,
    reward: str,
) -> list[Sequence[Any]]:
    """Cuts B responses into what is counted."""
    if unit != "tokens":
        texts = completion_texts(completions)
        return [text.split() if unit == "words" else text for text in texts]
    if completion_ids is None:
        raise DataError(
            f"reward {reward!r}: unit = 'tokens' needs 'completion_ids', which was not handed "
            "over: only a policy that produces token ids has it. Count words or characters instead."
        )
    return [list(ids) for ids in completion_ids]

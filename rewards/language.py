"""Which language a response is written in."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from instructrec.errors import ConfigError, DataError, unknown_name
from instructrec.rewards.options import check_option
from instructrec.rewards.text import completion_texts

if TYPE_CHECKING:
    from langdetect.detector_factory import DetectorFactory
    from py3langid.langid import LanguageIdentifier

Score = Literal["match", "probability"]
"""Whether the language is right, or how probable it is that it is."""


_loading = threading.Lock()


class Language:
    """1.0 where a response is written in the wanted language, else 0.0.

    The language is told by py3langid's naive Bayes model over bytes: 139 languages, the same answer
    for the same text every time, nothing to download. It needs a few words: name the languages that
    may occur in ``among`` where responses are short. A response without a letter scores 0.

    Args:
        language: The wanted language as an ISO 639 code such as ``de`` (``pt-BR`` is read as
            ``pt``); without it, each sample has its own in the column ``language``.
        among: Codes of the only languages that are considered; all when not set.
        score: ``match`` gives 0 or 1, ``probability`` the model's probability of the language.

    Raises:
        ConfigError: When a code is unknown.
    """

    __name__ = "language"

    def __init__(
        self,
        language: str | None = None,
        *,
        among: Sequence[str] | None = None,
        score: Score = "match",
    ) -> None:
        check_option("language", "score", score, Score)
        if among is not None and (isinstance(among, str) or len({*among}) < 2):
            raise ConfigError(
                f"reward 'language': among = {among!r}: expected a list of two or more codes, "
                "e.g. ['de', 'en']."
            )
        self.among = None if among is None else tuple(sorted({_code(a) for a in among}))
        self.score = score
        for code in self.among or ():
            self._check(code, None)
        self.language = None if language is None else _code(language)
        if self.language is not None:
            self._check(self.language, self.among)

    def __call__(
        self,
        completions: Sequence[Any],
        language: Sequence[str | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Scores B responses; ``language`` is the column of that name, where there is one.

        Returns:
            B scores in [0, 1]; None where the sample has no wanted language.

        Raises:
            ConfigError: When there is neither the option nor the column ``language``.
            DataError: When a code of the column is unknown.
        """
        if self.language is None and language is None:
            raise ConfigError(
                "reward 'language' does not know which one is wanted: set its option language, or "
                "give the data a column 'language' (language_column names another one)."
            )
        scores: list[float | None] = []
        for i, text in enumerate(completion_texts(completions)):
            wanted = self.language if self.language or language is None else language[i]
            if wanted is None:
                scores.append(None)
                continue
            if self.language is None:
                wanted = self._column_code(wanted, i)
            ranked = language_probabilities(text, self.among)
            if self.score == "probability":
                scores.append(min(1.0, ranked.get(wanted, 0.0)))
            else:
                scores.append(float(next(iter(ranked), None) == wanted))
        return scores

    def _column_code(self, wanted: Any, index: int) -> str:
        try:
            code = _code(wanted)
            self._check(code, self.among)
        except ConfigError as error:
            raise DataError(f"the language of sample {index}: {error}") from None
        return code

    def _check(self, code: str, among: tuple[str, ...] | None) -> None:
        known = among or _identifier(None).labels
        if code not in known:
            raise ConfigError(f"reward 'language': {unknown_name('language', code, known)}")


def language_probabilities(text: str, among: tuple[str, ...] | None = None) -> dict[str, float]:
    """Returns the languages that a text may be written in, the most probable first.

    Args:
        text: Any string.
        among: Codes of the only languages that are considered; all when not given.

    Returns:
        ISO 639 code -> probability; empty for a text without a letter. ``zxx`` stands for what is
        no language at all, such as markup.
    """
    if not any(map(str.isalpha, text)):
        return {}
    return dict(_identifier(among).rank(text))


def detected_language(text: str) -> str | None:
    """Returns the language of a text as IFEval tells it: the most probable one of langdetect.

    Args:
        text: Any string.

    Returns:
        The code as langdetect has it (``zh-cn``); None for a text without a letter or the like.

    Raises:
        ConfigError: When langdetect is not installed.
    """
    try:
        from langdetect import LangDetectException
    except ImportError as error:
        raise ConfigError(
            "constraints on the language of a response need the package langdetect: "
            "pip install 'instructrec[ifeval]'."
        ) from error
    detector = _detectors().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


# langdetect's own loading is not safe in threads: a second one works with what is read so far.
# Both models are loaded behind one lock, once.


def _identifier(among: tuple[str, ...] | None) -> LanguageIdentifier:
    with _loading:
        return _load_identifier(among)


def _detectors() -> DetectorFactory:
    with _loading:
        return _load_detectors()


@lru_cache(maxsize=16)
def _load_identifier(among: tuple[str, ...] | None) -> LanguageIdentifier:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(among)
    return identifier


@lru_cache(maxsize=1)
def _load_detectors() -> DetectorFactory:
    from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.set_seed(0)  # it draws at random; unseeded, one text can get two answers
    return factory


def _code(language: Any) -> str:
    if not isinstance(language, str) or not language.strip():
        raise ConfigError(
            f"reward 'language': {language!r} is no language; expected a code such as 'de'."
        )
    return language.strip().replace("_", "-").partition("-")[0].lower()

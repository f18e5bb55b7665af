"""METEOR: word overlap that forgives other forms of a word and, with WordNet, other words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructrec.errors import ConfigError
from instructrec.rewards.options import check_option
from instructrec.rewards.references import Reference, best_scores


class Meteor:
    """METEOR of Lavie and Agarwal (2007) between a response and an expected answer, by nltk.

    Words are matched when they are equal, else when their Porter stems are, else when WordNet knows
    them as synonyms; case is ignored. With precision P and recall R over matched words, the score
    is F·(1 - gamma·(chunks / matches)^beta), F = P·R / (alpha·P + (1 - alpha)·R), where chunks are
    runs of matches in the same order on both sides. So a perfect answer of m words scores
    1 - gamma/m^beta: 0.5 for one word, 0.98 for three.

    Words are what nltk's ``wordpunct_tokenize`` finds: runs of letters and digits, and runs of
    punctuation. The stems and synonyms are English.

    Args:
        synonyms: Whether WordNet's synonyms match. They need WordNet's data, which nltk does not
            bring along; without synonyms the scores are lower, and are not nltk's default METEOR.
        alpha: Weight of precision against recall, in [0, 1]; 0.9 makes recall count more.
        beta: Shape of the penalty for order, at least 0.
        gamma: Largest penalty for order, in [0, 1].

    Raises:
        ConfigError: When WordNet's data is missing, or a number is out of bounds.
    """

    __name__ = "meteor"

    def __init__(
        self,
        *,
        synonyms: bool = True,
        alpha: float = 0.9,
        beta: float = 3.0,
        gamma: float = 0.5,
    ) -> None:
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            check_option("meteor", name, value, float, at_least=0)
            if name != "beta" and value > 1:
                raise ConfigError(f"reward 'meteor': {name} = {value}: expected at most 1.")
        self.synonyms = synonyms
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        if synonyms:
            _check_wordnet()

    def __call__(
        self, completions: Sequence[Any], reference: Reference, **columns: Any
    ) -> list[float | None]:
        """Scores B responses against the ``reference`` column; blank references are left out.

        Returns:
            B scores in [0, 1]; None where the sample has no expected answer that is not blank.

        Raises:
            DataError: When a reference is not text.
        """
        from nltk.corpus import wordnet
        from nltk.tokenize import wordpunct_tokenize
        from nltk.translate.meteor_score import single_meteor_score

        known = wordnet if self.synonyms else _NoSynonyms()

        def score(response: list[str], answer: list[str]) -> float:
            found = single_meteor_score(
                answer,
                response,
                wordnet=known,
                alpha=self.alpha,
                beta=self.beta,
                gamma=self.gamma,
            )
            return float(found)

        return best_scores(
            completions,
            reference,
            score,
            reward="meteor",
            prepare=wordpunct_tokenize,
            skip_blank=True,
        )


class _NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _check_wordnet() -> None:
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        raise ConfigError(
            "reward 'meteor' needs the data of WordNet, which nltk cannot find. Run `python -m "
            "nltk.downloader wordnet` where there is a network (and copy the folder nltk_data to "
            "where there is none, or name it in the variable NLTK_DATA), or set the option "
            "synonyms to false, which gives METEOR without synonyms."
        ) from None

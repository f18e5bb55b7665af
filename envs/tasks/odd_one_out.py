"""Which word is of another kind? "Which one is not a food: chisel, cookie or onion?" -> chisel."""

from __future__ import annotations

from collections.abc import Sequence

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.procedural import Problem, ProceduralTask, choose_pair
from instructrec.envs.tasks.vocabulary import CATEGORIES, with_article, words_in, words_of

PHRASINGS = (
    "Which one is not a kind of {kind}: {x}, {y} or {z}?",
    "Which one is not {a_kind}: {x}, {y} or {z}?",
    "Which word is not {a_kind}: {x}, {y} or {z}?",
    "Which of these is not {a_kind}: {x}, {y} or {z}?",
    "Tell me which one is not {a_kind}: {x}, {y} or {z}.",
    "Find the one that is not {a_kind}: {x}, {y} or {z}.",
    "Pick the one that is not {a_kind}: {x}, {y} or {z}.",
    "Name the one that is not {a_kind}: {x}, {y} or {z}.",
    "Say which one is not {a_kind}: {x}, {y} or {z}.",
)


@register_task("odd_one_out")
class OddOneOut(ProceduralTask):
    """Finds the one of three short nouns that is not of the kind named."""

    name = "odd_one_out"

    def keys(self) -> Sequence[tuple[str, str]]:
        """Returns every ``(odd word, its category)`` of the split."""
        return words_in(self.split, short=True)

    def _num_pairs(self, kind: str) -> int:
        count = len(words_of(kind, self.split, short=True))
        return count * (count - 1)

    def num_variants(self, key: tuple[str, str]) -> int:
        """Returns phrasings x places of the odd word x ordered pairs of any other kind."""
        pairs = sum(self._num_pairs(kind) for kind in CATEGORIES if kind != key[1])
        return len(PHRASINGS) * 3 * pairs

    def problem(self, key: tuple[str, str], variant: int) -> Problem:
        """Returns a variant: phrasing, place of the odd word, the kind and two of its words."""
        odd, odd_category = key
        rest, phrasing = divmod(variant, len(PHRASINGS))
        rest, place = divmod(rest, 3)
        for kind in (kind for kind in CATEGORIES if kind != odd_category):
            if rest < self._num_pairs(kind):
                break
            rest -= self._num_pairs(kind)
        words = list(choose_pair(rest, words_of(kind, self.split, short=True)))
        words.insert(place, odd)
        x, y, z = words
        prompt = PHRASINGS[phrasing].format(kind=kind, a_kind=with_article(kind), x=x, y=y, z=z)
        return Problem(prompt, odd, item=odd)

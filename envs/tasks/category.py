"""Which of three kinds is a thing? "Is a whale a tool, an animal or a food?" -> animal."""

from __future__ import annotations

from collections.abc import Sequence

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.procedural import Problem, ProceduralTask, choose_pair
from instructrec.envs.tasks.vocabulary import CATEGORIES, with_article, words_in

PHRASINGS = (
    "Is {a_word} {a_x}, {a_y} or {a_z}?",
    "What is {a_word}: {a_x}, {a_y} or {a_z}?",
    "Would you call {a_word} {a_x}, {a_y} or {a_z}?",
    "Is {a_word} best called {a_x}, {a_y} or {a_z}?",
    "Tell me: is {a_word} {a_x}, {a_y} or {a_z}?",
    "Say what {a_word} is: {a_x}, {a_y} or {a_z}.",
    "Decide: is {a_word} {a_x}, {a_y} or {a_z}?",
    "Do you think {a_word} is {a_x}, {a_y} or {a_z}?",
    "Choose what {a_word} is: {a_x}, {a_y} or {a_z}.",
)


@register_task("category")
class Category(ProceduralTask):
    """Names the kind of a noun; the answer is one of the three kinds offered."""

    name = "category"

    def keys(self) -> Sequence[tuple[str, str]]:
        """Returns every ``(word, category)`` of the split."""
        return words_in(self.split)

    def num_variants(self, key: tuple[str, str]) -> int:
        """Returns phrasings x places of the answer x ordered pairs of wrong kinds."""
        wrong = len(CATEGORIES) - 1
        return len(PHRASINGS) * 3 * wrong * (wrong - 1)

    def problem(self, key: tuple[str, str], variant: int) -> Problem:
        """Returns a variant: phrasing, place of the answer and the two wrong kinds."""
        word, category = key
        rest, phrasing = divmod(variant, len(PHRASINGS))
        rest, place = divmod(rest, 3)
        options = list(choose_pair(rest, [other for other in CATEGORIES if other != category]))
        options.insert(place, category)
        x, y, z = options
        prompt = PHRASINGS[phrasing].format(
            word=word,
            a_word=with_article(word),
            x=x,
            y=y,
            z=z,
            a_x=with_article(x),
            a_y=with_article(y),
            a_z=with_article(z),
        )
        return Problem(prompt[0].upper() + prompt[1:], category, item=word)

"""Two words in the opposite order: "Swap the two words: guitar train" -> train guitar."""

from __future__ import annotations

from collections.abc import Sequence

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.procedural import Problem, ProceduralTask
from instructrec.envs.tasks.vocabulary import words_in

PHRASINGS = (
    "Swap the two words: {first} {second}",
    "Switch the two words: {first} {second}",
    "Exchange the two words: {first} {second}",
    "Put the second word first: {first} {second}",
    "Turn the word order around: {first} {second}",
    "Write these two words in reverse order: {first} {second}",
    "Give the words in the opposite order: {first} {second}",
    "Reverse the order of the words: {first} {second}",
    "Write the second word, then the first: {first} {second}",
)


@register_task("swap_words")
class SwapWords(ProceduralTask):
    """Writes two short nouns in the opposite order, with one space between them."""

    name = "swap_words"

    def keys(self) -> Sequence[str]:
        """Returns the split's short words: each is the first word in turn."""
        return [word for word, _ in words_in(self.split, short=True)]

    def num_variants(self, key: str) -> int:
        """Returns phrasings x other words."""
        return len(PHRASINGS) * (len(self._keys) - 1)

    def problem(self, key: str, variant: int) -> Problem:
        """Returns a variant: phrasing and second word."""
        other, phrasing = divmod(variant, len(PHRASINGS))
        second = [word for word in self._keys if word != key][other]
        return Problem(
            PHRASINGS[phrasing].format(first=key, second=second), f"{second} {key}", item=key
        )

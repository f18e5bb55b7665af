"""Skills about words: operations on strings, ordering, counting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.partition import numbers_of
from instructrec.envs.tasks.skills.base import Choices, Made, Skill
from instructrec.envs.tasks.vocabulary import with_article, words_in

_Operation = tuple[str, Callable[..., str]]

OPERATIONS: dict[int, tuple[_Operation, ...]] = {
    1: (
        ("write the first letter of the word {}", lambda a: a[0]),
        ("write the last letter of the word {}", lambda a: a[-1]),
        ("write the word {} in capital letters", lambda a: a.upper()),
    ),
    2: (
        ("write the word {} backwards", lambda a: a[::-1]),
        (
            "write the word {} without the letters a, e, i, o and u",
            lambda a: "".join(c for c in a if c not in "aeiou"),
        ),
        ("spell the word {} with a hyphen between the letters", lambda a: "-".join(a)),
    ),
    3: (
        (
            "join the words {} and {} with a hyphen and write the result in capital letters",
            lambda a, b: f"{a}-{b}".upper(),
        ),
        (
            "write the first letter of the word {} and then the last letter of the word {}, "
            "without a space",
            lambda a, b: a[0] + b[-1],
        ),
        (
            "write the words {} and {} as one word and read it backwards",
            lambda a, b: (a + b)[::-1],
        ),
    ),
}
"""Level -> verb phrases with what they ask for."""


@cache
def kinds_of(split: str) -> Mapping[str, str]:
    """Returns the split's short nouns with their kinds."""
    return MappingProxyType(dict(words_in(split, short=True)))


def short_words(split: str, without: str = "") -> list[str]:
    """Returns the split's short nouns, less one of them."""
    return [word for word in kinds_of(split) if word != without]


@register_task("string_operations")
class StringOperations(Skill):
    """Letters of a word (1), the word rewritten (2), two words made one (3)."""

    family = "string_operations"

    def keys(self) -> Sequence[str]:
        """Returns the split's short nouns."""
        return short_words(self.split)

    def make(self, key: str, choices: Choices) -> Made:
        """Chooses the operation, at level 3 another word, and the phrasing."""
        task, operate = choices.one(OPERATIONS[self.level])
        words = [key]
        if self.level == 3:
            words.append(choices.one(short_words(self.split, key)))
        return Made(choices.framed(task.format(*words)), operate(*words), keep=tuple(words))


@register_task("ordering")
class Ordering(Skill):
    """Three numbers by size (1); three words (2) or five (3) by the alphabet."""

    family = "ordering"

    def keys(self) -> Sequence[Any]:
        """Returns the split's two-digit numbers, or its short nouns."""
        return numbers_of(self.split, 10, 99) if self.level == 1 else short_words(self.split)

    def make(self, key: Any, choices: Choices) -> Made:
        """Chooses the others, the direction and the phrasing; the key is written first."""
        others = choices.several([k for k in self._keys if k != key], 4 if self.level == 3 else 2)
        values = [key, *others]
        backwards = bool(choices.index(2))
        things = [str(value) for value in values]
        if self.level == 1:
            order = "from the largest to the smallest" if backwards else "from small to large"
            task = f"put these numbers in order, {order}: {', '.join(things)}"
        else:
            order = "in reverse alphabetical order" if backwards else "in alphabetical order"
            task = f"write these words {order}, with commas between them: {', '.join(things)}"
        answer = ", ".join(str(value) for value in sorted(values, reverse=backwards))
        return Made(choices.framed(task), answer, keep=tuple(things))


LETTER_PHRASINGS = (
    "How many letters does the word {word} have?",
    "How many letters are in the word {word}?",
    "Count the letters of the word {word}.",
    "What is the number of letters in the word {word}?",
    "The word {word} has how many letters?",
    "How long is the word {word}, in letters?",
    "Tell me the number of letters of the word {word}.",
    "Give the number of letters that the word {word} has.",
    "Of how many letters is the word {word} made?",
)
REPEAT_PHRASINGS = (
    "How often does the word {word} occur here: {words}?",
    "Count the word {word} in this list: {words}.",
    "How many times is {word} in this list: {words}?",
    "{words}: how many times does {word} come up?",
    "Here is a list: {words}. How often is {word} in it?",
    "Tell me how often {word} is written here: {words}.",
    "What is the number of times that {word} occurs in {words}?",
    "In the list {words}, how often do you find {word}?",
)
KIND_PHRASINGS = (
    "How many of these are of the kind {kind}: {words}?",
    "Count the words of the kind {kind}: {words}.",
    "{words}: how many of them belong to the kind {kind}?",
    "Here is a list: {words}. How many words in it name {a_kind}?",
    "How often is {a_kind} named in this list: {words}?",
    "What is the number of words of the kind {kind} in {words}?",
    "Tell me how many of these words name {a_kind}: {words}.",
    "In the list {words}, how many words are of the kind {kind}?",
)


@register_task("counting")
class Counting(Skill):
    """The letters of a word (1), a word among six (2), the words of a kind among six (3)."""

    family = "counting"

    def keys(self) -> Sequence[str]:
        """Returns the split's short nouns."""
        return short_words(self.split)

    def make(self, key: str, choices: Choices) -> Made:
        """Chooses the list, where the level has one, and the phrasing."""
        if self.level == 1:
            phrasing = choices.one(LETTER_PHRASINGS)
            return Made(phrasing.format(word=key), str(len(key)), keep=(key,))
        others = choices.several(short_words(self.split, key), 1 if self.level == 2 else 5)
        if self.level == 2:
            # Bit i of the mask: is the key at place i? Any but none and all of the six places.
            mask = 1 + choices.index(2**6 - 2)
            words = [key if mask >> i & 1 else others[0] for i in range(6)]
            prompt = choices.one(REPEAT_PHRASINGS).format(word=key, words=" ".join(words))
            return Made(prompt, str(words.count(key)), keep=(key, *others))
        words, kinds = [key, *others], kinds_of(self.split)
        kind = kinds[key]
        prompt = choices.one(KIND_PHRASINGS).format(
            kind=kind, a_kind=with_article(kind), words=", ".join(words)
        )
        number = sum(kinds[word] == kind for word in words)
        return Made(prompt, str(number), keep=(*words, kind))

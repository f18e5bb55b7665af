"""A sentence under three constraints that a program checks: a keyword, a length and a format.

"Write a sentence about pandas. Use the word ladder. ..." -> * The panda is near the ladder. ...
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.procedural import Problem, ProceduralTask
from instructrec.envs.tasks.vocabulary import with_article, words_in

OPENINGS = (
    "Write something about {topic}.",
    "Tell me something about {topic}.",
    "Describe {topic}.",
    "Write a few words about {topic}.",
    "Think of {topic} and write about it.",
    "What comes to your mind about {topic}?",
    "Make up a sentence about {topic}.",
    "Say something nice about {topic}.",
)
FEWEST_WORDS = 6
MOST_WORDS = (10, 12, 15, 20)

FORMATS: dict[str, tuple[str, dict[str, Any], str]] = {
    "title": (
        "Begin with a title in double angular brackets, such as <<A Day>>.",
        {"id": "detectable_format:title"},
        "<<A Day>> {sentence}",
    ),
    "bullets": (
        "Write exactly two bullet points, each on a line that begins with an asterisk and a space.",
        {"id": "detectable_format:number_bullet_lists", "kwargs": {"num_bullets": 2}},
        "* {sentence}\n* Yes.",
    ),
    "highlight": (
        "Highlight a part of the answer with asterisks, such as *this part*.",
        {"id": "detectable_format:number_highlighted_sections", "kwargs": {"num_highlights": 1}},
        "*Yes.* {sentence}",
    ),
    "json": (
        'Answer with a JSON object, such as {{"answer": "…"}}.',
        {"id": "detectable_format:json_format"},
        '{{"answer": "{sentence}"}}',
    ),
}
"""Format -> how it is asked for, its check, and an answer that has it."""


@register_task("constrained_writing")
class ConstrainedWriting(ProceduralTask):
    """Writes something short that holds a keyword, keeps a length and has a format.

    The column ``constraints`` is what the reward of that name reads; ``reference`` is an answer
    that follows all of them, and not the only one. ``family`` names the format.
    """

    name = "constrained_writing"
    columns: tuple[str, ...] = ("reference", "family", "item", "constraints")

    def keys(self) -> Sequence[str]:
        """Returns the split's nouns: each is the topic in turn."""
        return [word for word, _ in words_in(self.split)]

    def num_variants(self, key: str) -> int:
        """Returns formats x openings x lengths x other nouns."""
        return len(FORMATS) * len(OPENINGS) * len(MOST_WORDS) * (len(self._keys) - 1)

    def problem(self, key: str, variant: int) -> Problem:
        """Returns a variant: format, opening, length and keyword."""
        variant, form = divmod(variant, len(FORMATS))
        variant, opening = divmod(variant, len(OPENINGS))
        other, length = divmod(variant, len(MOST_WORDS))
        keyword = [word for word in self._keys if word != key][other]
        family, (asked, check, answer) = list(FORMATS.items())[form]
        most = MOST_WORDS[length]
        prompt = " ".join(
            (
                OPENINGS[opening].format(topic=with_article(key)),
                f"Use the word {keyword}.",
                f"Write {FEWEST_WORDS} to {most} words.",
                asked.format(),
            )
        )
        return Problem(
            prompt,
            answer.format(sentence=f"The {key} is near the {keyword}."),
            item=key,
            family=family,
            more={"constraints": [*_constraints(keyword, most), check]},
        )


def _constraints(keyword: str, most: int) -> list[dict[str, Any]]:
    words = "length_constraints:number_words"
    return [
        {"id": "keywords:existence", "kwargs": {"keywords": [keyword]}},
        {"id": words, "kwargs": {"num_words": FEWEST_WORDS, "relation": "at least"}},
        {"id": words, "kwargs": {"num_words": most, "relation": "at most"}},
    ]

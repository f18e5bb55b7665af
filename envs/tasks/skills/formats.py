"""The skill of keeping a format: capitals, lists, brackets, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Literal

from instructrec.envs.tasks.base import register_task
from instructrec.envs.tasks.skills.base import Choices, Made, Skill, listed
from instructrec.envs.tasks.skills.words import short_words

_Judged = Literal["exact", "json"]
_Format = tuple[str, _Judged, Callable[[list[str]], str]]

FORMATS: dict[int, tuple[_Format, ...]] = {
    1: (
        (
            "write the words {words} in capital letters, with a space between them",
            "exact",
            lambda words: " ".join(words).upper(),
        ),
        (
            "write the words {words} with a semicolon and a space between them",
            "exact",
            "; ".join,
        ),
        ("write the words {words}, each on a line of its own", "exact", "\n".join),
        (
            "write the words {words} with a space between them, all in square brackets",
            "exact",
            lambda words: f"[{' '.join(words)}]",
        ),
    ),
    2: (
        (
            "write the words {words} as a list, each on a line that begins with a hyphen and a "
            "space",
            "exact",
            lambda words: "\n".join(f"- {word}" for word in words),
        ),
        (
            "write the words {words} as a numbered list, with lines such as 1. word",
            "exact",
            lambda words: "\n".join(f"{i}. {word}" for i, word in enumerate(words, start=1)),
        ),
        ("write the words {words} as a JSON list", "json", json.dumps),
        (
            "write the words {words} in capital letters, with commas and spaces between them",
            "exact",
            lambda words: ", ".join(words).upper(),
        ),
    ),
    3: (
        (
            "write the words {words} as a JSON object with the keys first and second",
            "json",
            lambda words: json.dumps(dict(zip(("first", "second"), words, strict=True))),
        ),
        (
            "write a JSON object that has the words {words} as its keys and their numbers of "
            "letters as the values",
            "json",
            lambda words: json.dumps({word: len(word) for word in words}),
        ),
        (
            "write the words {words} as a JSON list, in capital letters",
            "json",
            lambda words: json.dumps([word.upper() for word in words]),
        ),
    ),
}
"""Level -> verb phrases, how their results are judged, and the results."""


@register_task("format_following")
class FormatFollowing(Skill):
    """Words in a plain format (1), as a list of several lines or JSON (2), as JSON (3)."""

    family = "format_following"

    def keys(self) -> Sequence[str]:
        """Returns the split's short nouns: each is the first word in turn."""
        return short_words(self.split)

    def make(self, key: str, choices: Choices) -> Made:
        """Chooses the format, the other words and the phrasing."""
        task, judged, write = choices.one(FORMATS[self.level])
        others = choices.several(short_words(self.split, key), 2 if self.level == 2 else 1)
        words = [key, *others]
        prompt = choices.framed(task.format(words=listed(words)))
        return Made(prompt, write(words), judged, keep=tuple(words))

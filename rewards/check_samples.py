"""What ``check_reward`` asks a reward about: ordinary, worthless and hostile responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrec.errors import ConfigError, DataError
from instructrec.rewards.text import reference_texts

GOLD_COLUMNS = ("reference", "references", "answer", "solution", "target", "label")
"""Columns that hold expected answers, by their usual names."""
PROMPT_COLUMNS = ("prompt", "prompts", "instruction", "question", "input", "messages")
"""Columns that hold instructions, by their usual names."""
RESPONSE_COLUMNS = ("response", "responses", "completion", "completions", "output", "generated")
"""Columns that hold responses, by their usual names."""

_ORDINARY = (
    ("What is the capital of France?", "Paris"),
    ("What is 6 times 7?", "42"),
    ("Say good morning in German.", "Guten Morgen"),
    ("Name a colour of the sky.", ["blue", "azure"]),
    ("Where did the cat sit?", "The cat sat on the mat."),
    ("How is the weather, in Japanese?", "今日は良い天気です"),
)

GARBAGE = ("", " ", ":", "Solution", "lorem ipsum dolor", "I do not know.")
"""Responses that answer nothing; judges have been seen to reward some of them."""

HOSTILE = {
    "empty": "",
    "white space": " \t\n\r ",
    "NUL and control characters": "a\x00b\x07\x1b[31mc\x7f",
    "a lone surrogate": "half \ud83d of a pair",
    "combining letters": "e\u0301" * 50,
    "right-to-left marks": "\u202eabc\u2066def\u2069\u200f",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈",
    "Chinese": "今天天气很好。",
    "format strings and markup": "%s {} \\N{bell} $(ls) <b>&amp;</b> ```json {```",
    "deep brackets": "[" * 2000,
    "a very long response": "word " * 4000,
    "one very long word": "a" * 20_000,
    "a not-a-number": "nan",
    "a huge number": "9" * 5000,
}
"""What it is -> a response that has broken reward functions."""


@dataclass(frozen=True)
class Samples:
    """Rows to ask a reward about."""

    prompts: list[Any]
    """B instructions."""
    completions: list[Any]
    """B ordinary responses: expected answers, and answers to another row."""
    columns: dict[str, list[Any]]
    """The other columns, each of length B."""
    gold: list[str | None]
    """An expected answer of each row, None where none is known."""
    own: bool = False
    """Whether nobody gave data: the rows are the check's, and may not suit the reward."""

    def __len__(self) -> int:
        return len(self.prompts)

    def extras(self, completions: Sequence[Any]) -> dict[str, list[Any]]:
        """Stand-ins for what a policy would know of the responses."""
        return {
            "completion_ids": [
                list(str(c).encode("utf-8", "replace"))[:64] or [0] for c in completions
            ]
        }


def make_samples(data: Sequence[Mapping[str, Any]] | None, needed: Sequence[str]) -> Samples:
    """Makes the rows.

    Args:
        data: Rows with a prompt and the columns that the reward reads; a response where there is
            one. None takes a few rows of our own, whose answers go by any of ``GOLD_COLUMNS``.
        needed: Columns that the reward reads.

    Raises:
        DataError: A row has no prompt, or there are no rows.
        ConfigError: Without data, a column is needed that nobody can invent.
    """
    own = data is None
    gold_name = next((name for name in GOLD_COLUMNS if name in needed), None)
    if data is None:
        unknown = [name for name in needed if name not in GOLD_COLUMNS]
        if unknown:
            raise ConfigError(
                f"it reads the column{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}: pass "
                "data with prompts and these columns (--data FILE)"
            )
        data = [{"prompt": prompt, **dict.fromkeys(needed, answer)} for prompt, answer in _ORDINARY]
    if not data:
        raise DataError("the data holds no rows: expected at least one with a prompt")
    prompt_name, response_name = (
        next((n for n in names if n in data[0]), None)
        for names in (PROMPT_COLUMNS, RESPONSE_COLUMNS)
    )
    if prompt_name is None:
        raise DataError(
            f"the data has no prompts: expected one of the columns {', '.join(PROMPT_COLUMNS)}, "
            f"found {', '.join(data[0])}"
        )
    names = [n for n in data[0] if n not in (prompt_name, response_name)]
    columns = {name: [row.get(name) for row in data] for name in names}
    prompts = [row[prompt_name] for row in data]
    gold = [_gold(row.get(gold_name), i) if gold_name else None for i, row in enumerate(data)]
    known = [answer for answer in gold if answer is not None] or [p[0] for p in _ORDINARY]
    others = [known[(i + 1) % len(known)] for i in range(len(prompts))]
    given = [row[response_name] for row in data] if response_name else None
    first = given or [
        answer if answer is not None else other for answer, other in zip(gold, others, strict=True)
    ]
    return Samples(
        prompts=prompts * 2,
        completions=[*first, *others],
        columns={name: values * 2 for name, values in columns.items()},
        gold=gold * 2,
        own=own,
    )


def _gold(value: Any, index: int) -> str | None:
    try:
        answers = reference_texts(value, "check", index)
    except DataError:  # an answer that is no text, e.g. a number: nobody knows how it is written
        return None
    return next((answer for answer in answers or () if answer.strip()), None)

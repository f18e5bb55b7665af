"""What rewards make of one response, and what each of its words adds to every one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from instructrec.envs.tasks.base import Instruction
from instructrec.errors import DataError
from instructrec.experiments.jsonl import Row
from instructrec.rewards.combine import CombinedReward, make_rewards

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
"""What stands between white space; Chinese and Japanese, which have none, by the character."""


def judges_of(
    rewards: Mapping[str, Any], columns: Sequence[str], *, named: bool
) -> tuple[CombinedReward | None, list[str]]:
    """What can judge the answer to a prompt that stands in no data set.

    Args:
        rewards: As in a recipe; may be empty.
        columns: What is known beside the prompt.
        named: Whether they were asked for, so that none may be left out.

    Returns:
        The rewards that need no other columns, None without any, and notes for people about those
        that were left out.

    Raises:
        DataError: A reward that was asked for needs another column.
    """
    if not rewards:
        return None, []
    whole = make_rewards(rewards)
    if named:
        whole.check_columns(columns)
    kept, notes = [], []
    for part in whole.parts.values():
        try:
            part.reward.check_columns(columns)
        except DataError as error:
            notes.append(f"{error} It is left out; --expected gives the column 'reference'.")
        else:
            kept.append(part)
    return CombinedReward(kept, renormalise=whole.renormalise) if kept else None, notes


def scored(reward: CombinedReward, item: Instruction, texts: Sequence[str]) -> list[Row]:
    """Returns ``total, parts, statuses`` of each response to an instruction."""
    columns = {name: [value] * len(texts) for name, value in item.columns.items()}
    batch = reward.score([item.prompt] * len(texts), list(texts), columns)
    return [
        {
            "total": None if math.isnan(batch.total[i]) else float(batch.total[i]),
            "parts": {
                name: float(scores[i])
                for name, scores in batch.parts.items()
                if batch.status[name][i].value == "scored"
            },
            "statuses": {name: batch.status[name][i].value for name in batch.parts},
        }
        for i in range(len(texts))
    ]


def words(reward: CombinedReward, item: Instruction, text: str) -> list[Row]:
    """What each word adds: a score of the response less that of the response without the word.

    Leave one out. A reward that depends on words together credits each of them with all of it.

    Returns:
        Rows ``word, adds, parts``: what it adds to the total (None where one of the two responses
        has none), and to each reward that scored both.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    if not spans:
        return []
    without = [(text[:start] + text[end:]).strip() for start, end in spans]
    whole, *others = scored(reward, item, [text, *without])
    if not whole["parts"]:
        return []
    return [
        {
            "word": text[start:end],
            "adds": None
            if None in (whole["total"], other["total"])
            else whole["total"] - other["total"],
            "parts": {
                name: score - other["parts"][name]
                for name, score in whole["parts"].items()
                if name in other["parts"]
            },
        }
        for (start, end), other in zip(spans, others, strict=True)
    ]

"""What a mentor is shown: instructions, each with the responses that are to be judged."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from instructrec.errors import DataError
from instructrec.experiments.contenders import Member, read_policy
from instructrec.experiments.jsonl import Row, dump_line, read_rows, write_atomic

Prompt = str | list[dict[str, str]]
CHOSEN, REJECTED = "chosen", "rejected"


@dataclass(frozen=True)
class Candidate:
    """One response, and whose it is."""

    source: str
    """Who answered; the mentor is not told."""
    text: str
    """The response."""


@dataclass(frozen=True)
class Item:
    """One instruction with one response, or with two."""

    id: str
    """Its own id."""
    prompt: Prompt
    """Text, or messages with role and content."""
    candidates: tuple[Candidate, ...]
    """The responses."""
    reference: Any = None
    """The expected answer, where there is one."""
    instruction: str | None = None
    """Id of the instruction, where several items are about one; None: that of the item."""

    @property
    def instruction_id(self) -> str:
        """Id of the instruction."""
        return self.instruction or self.id

    @property
    def sources(self) -> tuple[str, ...]:
        """Whose the responses are."""
        return tuple(candidate.source for candidate in self.candidates)

    def text_of(self, source: str) -> str:
        """The response of a source."""
        return next(c.text for c in self.candidates if c.source == source)


def gather(
    named: Sequence[str], *, pairs: bool, seed: int, limit: int | None
) -> tuple[list[Item], list[str]]:
    """Reads responses and puts them together.

    Args:
        named: Run folders or ``.jsonl`` files of evaluations: two policies that answered the same
            instructions, one with several samples of each, or one file with the columns ``chosen``
            and ``rejected``.
        pairs: Two responses to an instruction together; else each response by itself.
        seed: Decides the order.
        limit: Most instructions.

    Returns:
        The items in the order in which they are shown, and notes for people.

    Raises:
        DataError: Something cannot be read, or gives no such item.
        CheckpointError: A folder is no run folder.
    """
    if not 1 <= len(named) <= 2:
        raise DataError(f"{len(named)} policies given: expected one policy or two.")
    found = _preferences(named[0]) if pairs and len(named) == 1 else None
    if found is None:
        members = [read_policy([Path(name)]).contenders[0].members[0] for name in named]
        found = [item for answers in _answers(members) for item in _items(answers, pairs=pairs)]
    alike = [item for item in found if len({c.text for c in item.candidates}) == 1 and pairs]
    items = [item for item in found if item not in alike]
    notes = [f"{len(alike)} instructions were left out: both responses are alike."] if alike else []
    if not items:
        raise DataError(
            f"{' and '.join(named)} leave nothing to judge: expected instructions that both have "
            "answered, or several responses to each (evaluate --samples 2 --temperature 1)."
        )
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.instruction_id, []).append(item)
    order = list(groups)
    random.Random(seed).shuffle(order)
    chosen = [item for instruction in order[:limit] for item in groups[instruction]]
    if not pairs:  # nobody sees that two of them answer the same
        random.Random(f"{seed}/responses").shuffle(chosen)
    return chosen, notes


def _preferences(name: str) -> list[Item] | None:
    """The pairs of a preference file; None for anything else."""
    path = Path(name)
    if not path.is_file():
        return None
    rows = read_rows(path)
    if not rows or not {CHOSEN, REJECTED} <= rows[0].keys():
        return None
    items = []
    for number, row in enumerate(rows, start=1):
        texts = [row.get(CHOSEN), row.get(REJECTED)]
        if row.get("prompt") is None or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{path}, row {number}: expected prompt, and chosen and rejected as texts, found "
                f"{sorted(row)}."
            )
        candidates = (
            Candidate(CHOSEN, str(row[CHOSEN])),
            Candidate(REJECTED, str(row[REJECTED])),
        )
        name = f"{row.get('id', 'row')}#{number}"
        items.append(Item(name, row["prompt"], candidates, row.get("reference")))
    return items


def _answers(members: Sequence[Member]) -> list[list[tuple[str, Row]]]:
    """Of each instruction the first responses of two policies, or the first two of one."""
    if len(members) == 1:
        return [
            [(f"sample {i}", row) for i, row in enumerate(rows[:2])]
            if len(rows) > 1
            else [(members[0].variant, rows[0])]
            for rows in members[0].by_instruction.values()
        ]
    first, second = members
    names = [first.variant, second.variant]
    if names[0] == names[1]:
        names = [str(first.path), str(second.path)]
    shared = [key for key in first.by_instruction if key in second.by_instruction]
    return [
        [(n, m.by_instruction[key][0]) for n, m in zip(names, members, strict=True)]
        for key in shared
    ]


def _items(answers: Sequence[tuple[str, Row]], *, pairs: bool) -> list[Item]:
    """The responses to an instruction together, where there are two, or each by itself."""
    whole = _item(answers)
    if pairs:
        return [whole] if len(answers) > 1 else []
    if len(answers) == 1:
        return [whole]
    return [
        replace(whole, id=f"{whole.id}#{c.source}", candidates=(c,), instruction=whole.id)
        for c in whole.candidates
    ]


def _item(answers: Sequence[tuple[str, Row]]) -> Item:
    row = answers[0][1]
    prompts = [answer["prompt"] for _, answer in answers]
    if any(prompt != prompts[0] for prompt in prompts):
        raise DataError(
            f"instruction {row['id']!r} has different prompts in the two evaluations: expected "
            "responses to the same task. Evaluate both policies on the same one."
        )
    candidates = tuple(Candidate(name, answer["response"]) for name, answer in answers)
    return Item(row["id"], prompts[0], candidates, row.get("reference"))


def fingerprint(items: Sequence[Item]) -> str:
    """SHA-256 of all items, in hexadecimal."""
    text = json.dumps([asdict(item) for item in items], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Writes items as JSONL."""
    write_atomic(path, b"".join(dump_line(asdict(item)) for item in items).decode())


def read_items(path: Path) -> list[Item]:
    """Reads what `write_items` wrote."""
    return [
        Item(
            row["id"],
            row["prompt"],
            tuple(Candidate(**c) for c in row["candidates"]),
            row["reference"],
            row.get("instruction"),
        )
        for row in read_rows(path)
    ]

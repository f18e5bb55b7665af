"""What a mentor said, kept line by line, and one sitting of a mentor.

Each judgment is on the disk before the next item is shown, and so is what takes one back: a kill
loses nothing, and the same command goes on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from instructrec.errors import DataError
from instructrec.experiments.jsonl import JsonlWriter, read_rows
from instructrec.experiments.label_items import Candidate, Item

SCORES = (1, 2, 3, 4, 5)
"""Scores of a single response, the best last."""


@dataclass(frozen=True)
class Judgment:
    """What was said about one item."""

    item: str
    """Its id."""
    kind: Literal["prefer", "tie", "skip", "score"]
    """What was said."""
    winner: str | None = None
    """Source of the better response."""
    score: int | None = None
    """1 to 5."""
    correction: str | None = None
    """A better answer that the mentor wrote."""
    shown: tuple[str, ...] = ()
    """Sources in the order in which their responses were shown."""
    seconds: float = 0.0
    """Time that it took."""
    at: str = ""
    """When, in UTC."""


def read_judgments(path: Path) -> dict[str, Judgment]:
    """Reads what a mentor said, who may be at it: nothing is written.

    Args:
        path: The mentor's file.

    Returns:
        The judgments that stand, by item, the newest last.

    Raises:
        DataError: The file holds something else.
    """
    found: dict[str, Judgment] = {}
    for row in read_rows(path):
        try:
            if "undo" in row:
                del found[row["undo"]]
                continue
            judgment = Judgment(**{**row, "shown": tuple(row["shown"])})
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{path} holds a line that is no judgment ({error}): expected a file that "
                "`instructrec label` wrote."
            ) from error
        found.pop(judgment.item, None)
        found[judgment.item] = judgment
    return found


class Book:
    """The judgments of one mentor in a file; use it as a context manager.

    Args:
        path: The file; what it holds is read, and gone on with.

    Raises:
        DataError: The file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.judgments = read_judgments(path) if path.exists() else {}
        """The judgments that stand, by item, the newest last."""
        self._writer = JsonlWriter(path)

    def add(self, judgment: Judgment) -> None:
        """Keeps a judgment; an earlier one of the item is replaced."""
        self._writer.write(asdict(judgment))
        self.judgments.pop(judgment.item, None)
        self.judgments[judgment.item] = judgment

    def undo(self) -> Judgment | None:
        """Takes the newest judgment back and returns it; None if there is none."""
        if not self.judgments:
            return None
        item, taken = self.judgments.popitem()
        self._writer.write({"undo": item})
        return taken

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Sitting:
    """A mentor at work: one item after the other, the sides of each in a drawn order.

    Args:
        items: What is judged, in this order.
        book: Where it is kept; what stands there is not asked again.
        seed: Decides, with the mentor's file and the item, which response is shown first.
        clock: Seconds.
    """

    def __init__(
        self,
        items: Sequence[Item],
        book: Book,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.book = book
        self.total = len(items)
        """Items in all."""
        self.correction: str | None = None
        """What the mentor wrote for the item that is shown."""
        self._items = {item.id: item for item in items}
        if len(self._items) < len(items):
            raise DataError("two items have the same id: expected one of each instruction.")
        self._seed, self._clock = seed, clock
        self._since = clock()

    @property
    def done(self) -> int:
        """Items that are judged."""
        return sum(item in self._items for item in self.book.judgments)

    @property
    def item(self) -> Item | None:
        """The item that is shown; None when all are judged."""
        return next((i for k, i in self._items.items() if k not in self.book.judgments), None)

    @property
    def sides(self) -> tuple[Candidate, ...]:
        """Its responses in the order in which they are shown."""
        if self.item is None:
            return ()
        drawn = f"{self._seed}\0{self.book.path.name}\0{self.item.id}".encode()
        turned = hashlib.sha256(drawn).digest()[0] % 2 == 1
        return self.item.candidates[::-1] if turned else self.item.candidates

    def prefer(self, side: int) -> None:
        """The response on a side, 0 or 1, is the better one."""
        self._keep("prefer", winner=self.sides[side].source)

    def tie(self) -> None:
        """Both are equally good."""
        self._keep("tie")

    def skip(self) -> None:
        """Nothing is said about the item."""
        self._keep("skip")

    def score(self, score: int) -> None:
        """The response gets a score."""
        self._keep("score", score=score)

    def correct(self, text: str) -> None:
        """Keeps a better answer for the item; it counts once the item is judged."""
        self.correction = text.strip() or None

    def undo(self) -> Judgment | None:
        """Takes the newest judgment back, shows its item again; returns it, None without any."""
        taken = self.book.undo()
        if taken is not None:
            self.correction = taken.correction
            # An item comes first again if it is the earliest one without a judgment.
            item = self._items.pop(taken.item, None)
            if item is not None:
                self._items = {taken.item: item, **self._items}
            self._since = self._clock()
        return taken

    def _keep(
        self,
        kind: Literal["prefer", "tie", "skip", "score"],
        winner: str | None = None,
        score: int | None = None,
    ) -> None:
        item = self.item
        if item is None:
            return
        judgment = Judgment(
            item.id,
            kind,
            winner=winner,
            score=score,
            correction=self.correction,
            shown=tuple(side.source for side in self.sides),
            seconds=round(self._clock() - self._since, 1),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.book.add(judgment)
        self.correction = None
        self._since = self._clock()

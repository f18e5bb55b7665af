"""What a data set holds: the numbers behind ``instructrec data check``."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from instructrec.envs.tasks.base import render_prompt
from instructrec.envs.tasks.dataset import DatasetTask
from instructrec.envs.tasks.filters import language_of
from instructrec.envs.tasks.preparation import Prepared
from instructrec.experiments.listing import table

_QUANTILES = {"min": 0.0, "median": 0.5, "95 %": 0.95, "max": 1.0}
_LISTED_LANGUAGES = 8


@dataclass
class Lengths:
    """How long texts are, four bytes a text."""

    values: array[int] = field(default_factory=lambda: array("I"))
    """One length each."""

    def quantiles(self) -> dict[str, float]:
        """Returns the smallest, median, 95 % and largest length; empty without texts."""
        if not self.values:
            return {}
        found = np.quantile(np.frombuffer(self.values, dtype=np.uint32), [*_QUANTILES.values()])
        return dict(zip(_QUANTILES, map(float, found), strict=True))


@dataclass
class Column:
    """What one column holds."""

    types: Counter[str] = field(default_factory=Counter)
    """Type -> rows, without those that have no value."""
    lengths: Lengths = field(default_factory=Lengths)
    """Of its texts, in characters."""

    def add(self, value: Any) -> None:
        """Takes note of the value of a row."""
        if value is None:
            return
        self.types[type(value).__name__] += 1
        for text in [value] if isinstance(value, str) else value if _is_texts(value) else ():
            self.lengths.values.append(len(text))


@dataclass
class Profile:
    """What a data set holds."""

    rows: int
    """Rows of the data set."""
    bad: int
    """Rows that cannot be used."""
    bad_rows: list[str]
    """What is wrong with the first of them."""
    filtered: dict[str, int]
    """Reason -> rows left out by filters, and as examples."""
    shapes: dict[str, int]
    """Shape -> rows, see `SHAPES`."""
    splits: dict[str, int]
    """Split -> usable rows."""
    duplicates: int
    """Usable rows whose instruction came before."""
    leaked: int
    """Validation and test rows whose instruction is in the training split as well."""
    columns: dict[str, Column] = field(default_factory=dict)
    """What the rewards see."""
    lengths: dict[str, Lengths] = field(default_factory=dict)
    """``instruction`` and ``reference``, in characters and, with a tokenizer, in tokens."""
    invisible: int = 0
    """Rows whose instruction holds control, direction or zero-width characters."""
    languages: Counter[str] = field(default_factory=Counter)
    """Language -> rows, among those looked at; ``none`` for texts without a letter."""

    @property
    def usable(self) -> int:
        """Rows that can be used and were not left out."""
        return sum(self.splits.values())

    def __str__(self) -> str:
        facts = [
            ("rows", f"{self.rows}, of which {self.usable} are used"),
            ("unusable", str(self.bad)),
            *((f"left out: {reason}", str(count)) for reason, count in self.filtered.items()),
            ("shapes", _counts(self.shapes)),
            ("splits", _counts(self.splits)),
            ("same instruction twice", str(self.duplicates)),
            ("held out and in training", str(self.leaked)),
            ("invisible characters", str(self.invisible)),
        ]
        if self.languages:
            looked = sum(self.languages.values())
            common = dict(self.languages.most_common(_LISTED_LANGUAGES))
            facts.append((f"languages of {looked} rows", _counts(common)))
        lengths = [("length", *_QUANTILES)]
        lengths += [(name, *_numbers(found)) for name, found in self.lengths.items()]
        columns = [("column", "values", "types", "characters (median, max)")]
        for name, column in self.columns.items():
            sizes = column.lengths.quantiles()
            shown = f"{sizes['median']:.0f}, {sizes['max']:.0f}" if sizes else "-"
            total = str(sum(column.types.values()))
            columns.append((name, total, ", ".join(sorted(column.types)) or "-", shown))
        parts = [table(facts), table(lengths)]
        parts += [table(columns)] if self.columns else []
        if self.bad:
            more = self.bad - len(self.bad_rows)
            parts.append(
                "\n".join(["Unusable:", *self.bad_rows, *[f"and {more} more"] * (more > 0)])
            )
        return "\n\n".join(parts)


def profile(
    task: DatasetTask, *, count_tokens: Callable[[str], int] | None = None, languages: int = 1000
) -> Profile:
    """Reads the usable rows of a data set once more and counts what they hold.

    Args:
        task: The data set with split ``all``.
        count_tokens: From a text to its number of tokens; None leaves tokens out.
        languages: Rows whose language is told (a tenth of a millisecond each), evenly spread.
    """
    catalog = task.catalog
    found = Profile(
        rows=len(catalog),
        bad=catalog.num_bad,
        bad_rows=list(catalog.bad_rows),
        filtered={name: n for name, n in catalog.filtered.items() if n},
        shapes=dict(catalog.shapes),
        splits=catalog.counts,
        duplicates=catalog.num_duplicates,
        leaked=catalog.num_leaked,
        columns={name: Column() for name in catalog.columns},
    )
    positions = catalog.positions(None)
    looked_at = {*np.linspace(0, len(positions) - 1, languages, dtype=int).tolist()}
    for i, position in enumerate(positions):
        row = catalog.prepared(int(position))
        _add(found, row, count_tokens)
        if i in looked_at and languages:
            found.languages[language_of(row.prompt) or "unknown"] += 1
    return found


def _add(found: Profile, row: Prepared, count_tokens: Callable[[str], int] | None) -> None:
    for name, column in found.columns.items():
        column.add(row.columns.get(name))
    text = render_prompt(row.prompt)
    found.invisible += any(not c.isprintable() and c not in "\n\t\r" for c in text)
    answers = [row.reference] if isinstance(row.reference, str) else row.reference or []
    for kind, texts in (("instruction", [text]), ("reference", answers)):
        _measure(found, f"{kind}, characters", map(len, texts))
        if count_tokens is not None:
            _measure(found, f"{kind}, tokens", map(count_tokens, texts))


def _measure(found: Profile, name: str, values: Iterable[int]) -> None:
    for value in values:
        found.lengths.setdefault(name, Lengths()).values.append(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _numbers(lengths: Lengths) -> Sequence[str]:
    return [f"{value:.0f}" for value in lengths.quantiles().values()]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

"""Instructions from a data file: JSON Lines first; JSON, CSV and Parquet as well."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, Self

from instructrec.envs.tasks.base import Instruction, Message, Prompt, check_index, check_split
from instructrec.envs.tasks.files import Row, read_rows
from instructrec.envs.tasks.partition import SPLITS, stable_hash
from instructrec.envs.tasks.procedural import fingerprint_of
from instructrec.errors import ConfigError, DataError, did_you_mean

ALL = "all"
"""The split that holds every row of a file."""

_SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
_OWN_FIELDS = ("id", "prompt", "messages", "reference", "references", "split")
_REWARD_ARGUMENTS = ("prompts", "completions")


class DatasetTask:
    """The rows of a data file, in file order.

    A row has ``prompt`` (a string, or a list of chat messages) or ``messages``; ``reference`` (one
    expected answer or a list of them) or ``references`` (a list), unless the rewards need none; and
    any other columns, which the rewards receive. ``id`` must be unique where given, else it is made
    from the prompt and the reference.

    Without a ``split`` column a row's split follows from a hash of its prompt (letter case and
    white space ignored): equal prompts stay together and adding a row moves no other row.

    Args:
        path: A ``.jsonl``, ``.json`` (a list of objects), ``.csv`` or ``.parquet`` file.
        split: ``train``, ``validation``, ``test``, or ``all``.
        validation_fraction: Share of the rows, 0 to 1; for files without a ``split`` column.
        test_fraction: Likewise.

    Raises:
        DataError: The file cannot be read, a row is malformed (file and line are named), or the
            split is empty.
        ConfigError: Unknown split, or impossible fractions.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str = "train",
        validation_fraction: float = 0.1,
        test_fraction: float = 0.1,
    ) -> None:
        self.split = check_split(split, (*SPLITS, ALL))
        self.fractions = _check_fractions(validation_fraction, test_fraction)
        self.path = Path(path).expanduser()
        self.name = re.sub(r"[^A-Za-z0-9_.-]+", "_", self.path.stem)
        rows, digest = read_rows(self.path)
        self.columns = _column_names(rows, self.path)
        self._items = self._select(rows)
        self._digest = digest

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Instruction:
        return self._items[check_index(index, len(self._items), self.name)]

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the file's bytes, the split and the fractions."""
        return fingerprint_of(data=self._digest, split=self.split, fractions=self.fractions)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable

    def _select(self, rows: list[Row]) -> list[Instruction]:
        """Checks every row of the file and returns those of the split as instructions."""
        num_with_split = sum(row.fields.get("split") is not None for row in rows)
        splits: Counter[str] = Counter()
        identities = _Identities()
        items = []
        for row in rows:
            prompt = _prompt_of(row)
            columns = _columns_of(row, self.columns)
            id_ = identities.name(row, prompt, columns)
            if num_with_split:
                split = _declared_split(row)
            else:
                split = _hashed_split(prompt, *self.fractions)
            splits[split] += 1
            if self.split in (ALL, split):
                items.append(Instruction(id_, prompt, columns))
        if not items:
            found = ", ".join(f"{splits[name]} {name}" for name in SPLITS)
            raise DataError(
                f"{self.path}: the split {self.split!r} is empty; the {len(rows)} rows are {found}."
                " Add rows, change validation_fraction and test_fraction, or use split='all'."
            )
        return items


class _Identities:
    """Gives every row its id and refuses ids that come twice."""

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}
        self._copies: Counter[str] = Counter()

    def name(self, row: Row, prompt: Prompt, columns: dict[str, Any]) -> str:
        given = row.fields.get("id")
        if given is None:
            id_ = f"{stable_hash(prompt, columns.get('reference')):016x}"
            self._copies[id_] += 1
            if self._copies[id_] > 1:
                id_ = f"{id_}-{self._copies[id_]}"
        else:
            id_ = str(given)
            _check_encodable(id_, row)
        if id_ in self._lines:
            raise DataError(
                f"{row.where}: the id {id_!r} was used before, in {self._lines[id_]}; ids must be "
                "unique (leave them out to have them made)"
            )
        self._lines[id_] = row.where
        return id_


def _column_names(rows: list[Row], path: Path) -> tuple[str, ...]:
    """Returns the names that the rewards will see, and refuses files that cannot work."""
    names = dict.fromkeys(name for row in rows for name in row.fields)
    if "prompt" not in names and "messages" not in names:
        hint = did_you_mean("prompt", names)
        raise DataError(
            f"{path} has no column 'prompt' or 'messages'.{hint} Its columns are {list(names)}; "
            "rename the one that holds the instruction."
        )
    for name in _REWARD_ARGUMENTS:
        if name in names:
            raise DataError(
                f"{path} has a column {name!r}, which is what rewards call "
                f"{'the instructions' if name == 'prompts' else 'the responses'}; rename it."
            )
    others = [name for name in names if name not in _OWN_FIELDS]
    has_reference = "reference" in names or "references" in names
    return (*(["reference"] if has_reference else []), *others)


def _prompt_of(row: Row) -> Prompt:
    prompt, messages = row.fields.get("prompt"), row.fields.get("messages")
    if (prompt is None) == (messages is None):
        found = "both" if prompt is not None else f"neither; its columns are {list(row.fields)}"
        raise DataError(f"{row.where}: expected either 'prompt' or 'messages', found {found}")
    if isinstance(prompt, str):
        if not prompt.strip():
            raise DataError(f"{row.where}: the prompt is empty")
        _check_encodable(prompt, row)
        return prompt
    value = messages if prompt is None else prompt
    field = "messages" if prompt is None else "prompt"
    return _messages_of(value, field, row)


def _messages_of(value: Any, field: str, row: Row) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{row.where}: {field!r} is {_shorten(value)}; expected "
            + ("a string or a list" if field == "prompt" else "a list")
            + " of messages like {'role': 'user', 'content': '...'}"
        )
    for message in value:
        if not isinstance(message, dict) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise DataError(
                f"{row.where}: a message of {field!r} is {_shorten(message)}; expected an object "
                "whose 'role' and 'content' are strings"
            )
        _check_encodable(message["content"], row)
    if value[-1]["role"] == "assistant":
        raise DataError(
            f"{row.where}: the conversation ends with the assistant's answer; end it where the "
            "response begins and move the answer to 'reference'"
        )
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _columns_of(row: Row, names: tuple[str, ...]) -> dict[str, Any]:
    columns = {name: row.fields.get(name) for name in names if name != "reference"}
    for value in columns.values():
        if isinstance(value, str):
            _check_encodable(value, row)
    if "reference" in names:
        columns["reference"] = _reference_of(row)
    return {name: columns[name] for name in names}


def _reference_of(row: Row) -> str | list[str]:
    """Returns ``reference`` (a string or list) or ``references`` (always a list)."""
    one, several = row.fields.get("reference"), row.fields.get("references")
    if (one is None) == (several is None):
        found = "both" if one is not None else "neither, but other rows have one"
        raise DataError(f"{row.where}: expected either 'reference' or 'references', found {found}")
    if several is not None and not isinstance(several, list):
        raise DataError(
            f"{row.where}: 'references' is {_shorten(several)}; expected a list of strings "
            "(a single one goes under 'reference')"
        )
    value = one if several is None else several
    answers = value if isinstance(value, list) else [value]
    if not answers:
        raise DataError(f"{row.where}: the list of references is empty")
    texts = [_answer(answer, row) for answer in answers]
    return texts if isinstance(value, list) else texts[0]


def _answer(value: Any, row: Row) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{row.where}: a reference is {_shorten(value)}; expected a string, a number or a list"
        )
    _check_encodable(value, row)
    return value


def _check_encodable(text: str, row: Row) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{row.where}: {_shorten(text)} holds half of a surrogate pair at character "
            f"{error.start}, which cannot be encoded as UTF-8; remove or repair it"
        ) from error


def _declared_split(row: Row) -> str:
    given = row.fields.get("split")
    split = _SPLIT_NAMES.get(str(given), given)
    if split not in SPLITS:
        raise DataError(
            f"{row.where}: the split is {given!r}; expected one of {', '.join(SPLITS)} in every "
            "row (or no 'split' column: rows are then split by a hash of the prompt)"
        )
    return split


def _hashed_split(prompt: Prompt, validation_fraction: float, test_fraction: float) -> str:
    texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    canonical = [" ".join(unicodedata.normalize("NFKC", t).casefold().split()) for t in texts]
    position = stable_hash("split", *canonical) / 2**64
    if position < test_fraction:
        return "test"
    return "validation" if position < test_fraction + validation_fraction else "train"


def _check_fractions(validation: float, test: float) -> tuple[float, float]:
    for name, value in (("validation_fraction", validation), ("test_fraction", test)):
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(f"{name} is a share between 0 and 1, not {value!r}")
    if validation + test > 1:
        raise ConfigError(
            f"validation_fraction + test_fraction is {validation + test:g}; it may be at most 1"
        )
    return float(validation), float(test)


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

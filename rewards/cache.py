"""Scores kept on disk, for rewards that cost more than a look-up: judges, large models."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.errors import ConfigError
from instructrec.rewards.base import Status
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.options import EXTRAS
from instructrec.rewards.scoring import PartScores

_AT_ONCE = 500  # keys in one query; SQLite allows 999 variables everywhere
_SCHEMA = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL) WITHOUT ROWID"


class ScoreCache:
    """The scores that one reward gave before.

    A score belongs to everything that it can depend on: the reward, its version, the file that
    defines it, its options, the prompt, the response, and the columns that the reward reads (all of
    them, when it takes ``**columns``). Failures are never kept. A file that fails later on (a full
    disk, a long lock) costs a warning and the look-ups, not the run.

    Args:
        path: SQLite file, made when it does not exist; processes and rewards may share it.
        reward: The reward.

    Raises:
        ConfigError: The reward keeps state or is made of others, or the file cannot be used.
    """

    def __init__(self, path: str | Path, reward: BoundReward) -> None:
        if hasattr(reward.function, "score_parts") or hasattr(reward.function, "state_dict"):
            raise ConfigError(
                f"reward {reward.__name__!r} keeps state or is made of other rewards, so a score "
                "depends on more than its response: expected no cache here (parts may have one)."
            )
        self.path, self.reward = Path(path).expanduser(), reward
        self._identity = reward.identity().encode()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._given_up = False
        with self._lock:
            self._open()

    def score(
        self,
        call: Callable[..., PartScores],
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> PartScores:
        """Scores B responses: those that are known from the file, the others with ``call``.

        Args:
            call: Scores responses; takes the other three arguments, for some of the B rows.
            prompts: B instructions.
            completions: B responses.
            columns: Other per-sample values, each of length B.
        """
        keys = self._keys(prompts, completions, columns)
        known = self._read(keys)
        missing = [i for i, key in enumerate(keys) if key not in known]
        size = len(completions)
        result = PartScores(np.full(size, math.nan), [], [], 0.0)
        if missing:
            fresh = call(
                [prompts[i] for i in missing],
                [completions[i] for i in missing],
                {name: [values[i] for i in missing] for name, values in columns.items()},
            )
            result = fresh.spread(missing, size)
            self._write(
                (keys[i], None if result.status[i] is Status.NOT_APPLICABLE else result.scores[i])
                for i in missing
                if not result.status[i].failed
            )
        else:
            result.status, result.messages = [Status.NOT_APPLICABLE] * size, [""] * size
        for i, key in enumerate(keys):
            score = known.get(key)
            if score is not None:
                result.scores[i], result.status[i] = score, Status.SCORED
        result.flags["cache_hit"] = [key in known for key in keys]
        return result

    def close(self) -> None:
        """Closes the file; it opens again when something is scored."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection, self._given_up = None, False

    def _keys(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> list[bytes]:
        named = self.reward.parameters.names
        used = sorted(
            name
            for name in self.reward.used_columns(columns)
            if name not in EXTRAS or name in named or name in self.reward.required_columns
        )
        keys = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = [prompt, completion, {name: columns[name][i] for name in used}]
            content = _text(row)
            keys.append(hashlib.sha256(self._identity + content.encode()).digest())
        return keys

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, float | None]:
        found: dict[bytes, float | None] = {}
        with self._lock, self._or_without():
            if self._given_up:
                return found
            connection = self._open()
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                places = ",".join("?" * len(some))
                query = f"SELECT key, score FROM scores WHERE key IN ({places})"
                found.update(connection.execute(query, some).fetchall())
        return found

    def _write(self, rows: Any) -> None:
        with self._lock, self._or_without():
            if self._given_up:
                return
            with self._open() as connection:
                connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _or_without(self) -> Iterator[None]:
        """Has scoring go on without the file when it fails, once and for all: a lock takes 30 s."""
        try:
            yield
        except sqlite3.Error as error:
            self._given_up = True
            warnings.warn(
                f"the cache {str(self.path)!r} of reward {self.reward.__name__!r} fails ({error}): "
                "scoring goes on without it.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
                # Readers and one writer side by side; file systems without it do without.
                with contextlib.suppress(sqlite3.OperationalError):
                    connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(_SCHEMA)
                connection.commit()
            except (OSError, sqlite3.Error) as error:
                raise ConfigError(
                    f"the cache {str(self.path)!r} of reward {self.reward.__name__!r} cannot be "
                    f"used: {error}. Expected the path of an SQLite file, or of a new one."
                ) from error
            self._connection = connection
        return self._connection

    def __reduce__(self) -> tuple[Any, ...]:
        return ScoreCache, (self.path, self.reward)


def _text(row: Any) -> str:
    try:
        return json.dumps(row, sort_keys=True, default=_plain)
    except TypeError:  # a mapping with keys of several types cannot be sorted, or written as JSON
        return repr(row)


def _plain(value: Any) -> Any:
    """An object as JSON; the repr of an array would leave out what stands in its middle."""
    as_list = getattr(value, "tolist", None)
    return as_list() if callable(as_list) else repr(value)

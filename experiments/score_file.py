"""``instructrec rewards score``: the responses of a file, scored row by row."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import yaml
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from instructrec.choices import check_choices
from instructrec.errors import CheckpointError, ConfigError, DataError
from instructrec.experiments.jsonl import Row, dump_line, plain, read_json, write_json
from instructrec.experiments.listing import table
from instructrec.experiments.row_stream import Layout, find_layout, stream_rows
from instructrec.experiments.yaml_files import read_yaml
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.combine import CombinedReward, make_rewards
from instructrec.rewards.registry import find_reward, read_as
from instructrec.rewards.scaling import RunningStats

_FORMAT_VERSION = 2


@dataclass(frozen=True)
class ScoreConfig:
    """What is scored, and where the scores go."""

    data: str
    """JSONL, CSV or Parquet file with responses, instructions and the rewards' columns."""
    out: str | None = None
    """JSONL file for one row of scores each; an interrupted run continues it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the reward, e.g. --options.normalise squad."""
    format: Literal["text", "chat"] | None = None
    """What the reward reads: text or chat; None takes what it declares."""
    prompt_column: str | None = None
    """Column of the instructions; None looks for prompt, instruction, question, ..."""
    response_column: str | None = None
    """Column of the responses; None looks for response, completion, output, ..."""
    batch_size: int = 256
    """Responses scored with one call."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}: expected at least 1.")


@dataclass
class PartSummary:
    """What one reward gave over all rows so far."""

    stats: RunningStats = field(default_factory=RunningStats)
    """Mean and spread of its scores."""
    lowest: float = math.inf
    """Its lowest score."""
    highest: float = -math.inf
    """Its highest score."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """How often it was scored, not applicable, or failed in each way."""
    failure: str = ""
    """Why it failed the first time; empty when it did not."""

    def add(self, score: float | None, outcome: str, failure: str = "") -> None:
        """Counts one row; ``failure`` says why there is no score."""
        self.outcomes[outcome] += 1
        self.failure = self.failure or failure
        if score is not None:
            self.stats.add(np.array([score]))
            self.lowest, self.highest = min(self.lowest, score), max(self.highest, score)

    def row(self, name: str) -> tuple[str, ...]:
        """A line of the table."""
        failed = {k: n for k, n in self.outcomes.items() if k not in ("scored", "not_applicable")}
        numbers = [self.stats.mean, self.stats.std, self.lowest, self.highest]
        known = self.stats.count > 0
        return (
            name,
            *(f"{number:.4g}" if known else "" for number in numbers),
            str(self.outcomes["scored"]),
            str(self.outcomes["not_applicable"]),
            ", ".join(f"{n} {reason}" for reason, n in sorted(failed.items())) or "0",
        )


@dataclass
class Summary:
    """What scoring a file found."""

    parts: dict[str, PartSummary] = field(default_factory=dict)
    """By reward; ``total`` is the weighted sum, where it has several parts."""
    rows: int = 0
    """Rows scored, those of an earlier run included."""
    seconds: float = 0.0
    """Time that scoring took in this run."""

    def add(self, row: Row) -> None:
        """Counts one row of scores."""
        self.rows += 1
        for name, outcome in row["status"].items():
            reason = row.get("errors", {}).get(name, "")
            self.parts.setdefault(name, PartSummary()).add(row["parts"][name], outcome, reason)
        total = row["total"]
        failed = any(s not in ("scored", "not_applicable") for s in row["status"].values())
        outcome = "scored" if total is not None else "failed" if failed else "not_applicable"
        self.parts.setdefault("total", PartSummary()).add(total, outcome)

    @property
    def scored(self) -> int:
        """Rows that have a total."""
        return self.parts["total"].outcomes["scored"] if "total" in self.parts else 0

    def __str__(self) -> str:
        head = ("reward", "mean", "std", "min", "max", "scored", "not applicable", "failed")
        names = [name for name in self.parts if name != "total"]
        if len(names) > 1:
            names.append("total")
        shown = table([head, *(self.parts[name].row(name) for name in names)])
        reasons = [
            f"{name} failed, first: {part.failure}"
            for name, part in self.parts.items()
            if part.failure
        ]
        return "\n".join([shown, *([""] if reasons else []), *reasons])


def score_file(
    spec: str, config: ScoreConfig, *, overwrite: bool = False, quiet: bool = False
) -> Summary:
    """Scores every response of a file; memory does not grow with the file.

    Args:
        spec: A reward, or a YAML file whose ``rewards`` are scored together.
        config: The file and what to do with it.
        overwrite: Replace an existing file of scores.
        quiet: Show no progress.

    Raises:
        ConfigError: The reward or a setting is wrong.
        DataError: The file cannot be read, lacks a column, or ``out`` holds other scores.
        RewardError: The reward breaks its contract.
    """
    reward = rewards_of(spec, config.options, config.format)
    data, summary = Path(config.data), Summary()
    _check_out(config.out, data)
    first = next(iter(stream_rows(data)), None)
    if first is None:
        raise DataError(f"{data} holds no rows: expected at least one response.")
    layout = find_layout(list(first.fields), config.prompt_column, config.response_column)
    reward.check_columns([n for n in first.fields if n not in (layout.prompt, layout.response)])
    file = None
    if config.out is not None:
        file = _open(Path(config.out), _header(reward, data, layout), summary, overwrite)
    start = time.perf_counter()
    try:
        with _progress(quiet) as show:
            for rows, done in _scored(reward, data, layout, summary.rows, config.batch_size):
                for row in rows:
                    summary.add(row)
                if file is not None:
                    file.write(b"".join(dump_line(row) for row in rows))
                    file.flush()
                show.update(show.task_ids[0], completed=done, rows=summary.rows)
    finally:
        summary.seconds = time.perf_counter() - start
        reward.close()
        if file is not None:
            file.close()
    return summary


def rewards_of(
    spec: str, options: Mapping[str, Any], format: Literal["text", "chat"] | None = None
) -> CombinedReward:
    """Makes the reward of a command line: one reward, or the ``rewards`` of a YAML file."""
    if not spec.endswith((".yaml", ".yml")):
        return make_rewards(BoundReward(read_as(find_reward(spec), format), options))
    if options or format is not None:
        raise ConfigError(
            f"options were given (or a format), but those of {spec} stand in the file itself."
        )
    try:
        value = read_yaml(Path(spec))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{spec} cannot be read as YAML: {error}.") from error
    if not isinstance(value, dict) or "rewards" not in value:
        raise ConfigError(f"{spec} has no `rewards:`: expected a mapping from names to rewards.")
    return make_rewards(value["rewards"])


def _scored(
    reward: CombinedReward, data: Path, layout: Layout, skip: int, batch_size: int
) -> Iterator[tuple[list[Row], float]]:
    """Yields rows of scores batch by batch, and the share of the file behind them."""
    stream = enumerate(stream_rows(data))
    for _ in islice(stream, skip):
        pass
    while batch := list(islice(stream, batch_size)):
        taken = [layout.take(row.fields) for _, row in batch]
        names = dict.fromkeys(name for _, _, rest in taken for name in rest)
        scored = reward.score(
            [prompt for prompt, _, _ in taken],
            [response for _, response, _ in taken],
            {name: [rest.get(name) for _, _, rest in taken] for name in names},
        )
        rows = []
        for i, (number, _) in enumerate(batch):
            errors = {name: texts[i] for name, texts in scored.messages.items() if texts[i]}
            row = {
                "row": number,
                "id": taken[i][2].get("id"),
                "prompt": taken[i][0],
                "response": taken[i][1],
                "total": scored.total[i],
                "parts": {name: scores[i] for name, scores in scored.parts.items()},
                "status": {name: s[i].value for name, s in scored.status.items()},
            }
            rows.append(plain(row | {"errors": errors} if errors else row))
        yield rows, batch[-1][1].done


def _check_out(out: str | None, data: Path) -> None:
    """Refuses a file of scores that would replace the responses."""
    if out is not None and Path(out).resolve() == data.resolve():
        raise ConfigError(f"out = {out!r} is the file of responses itself: expected another name.")


def _header(reward: CombinedReward, data: Path, layout: Layout) -> Row:
    """What the scores of a file depend on."""
    with open(data, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return plain(
        {
            "format_version": _FORMAT_VERSION,
            "reward": reward.spec,
            "code": reward.identity(),
            "data": digest.hexdigest(),
            "columns": {"prompt": layout.prompt, "response": layout.response},
        }
    )


def _open(path: Path, header: Row, summary: Summary, overwrite: bool) -> BinaryIO:
    """Opens the file of scores behind its last whole row, and counts the rows that it has."""
    side = path.with_suffix(".json")
    if side == path:
        raise ConfigError(f"out = {str(path)!r}: expected a name ending in .jsonl.")
    _check_side(side, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if overwrite or not path.exists():
        path.unlink(missing_ok=True)
        write_json(side, header)
        return open(path, "wb")
    if not side.exists() or (before := read_json(side)) != header:
        changed = "" if not side.exists() else f" ({_changes(before, header)})"
        raise DataError(
            f"{path} holds scores of another reward, file or column{changed}. Give --overwrite, or "
            "another --out."
        )
    whole = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break  # the writer was stopped half-way
            summary.add(json.loads(line))
            whole += len(line)
    continued = open(path, "r+b")  # noqa: SIM115 - the caller closes it
    continued.truncate(whole)
    continued.seek(whole)
    return continued


def _check_side(side: Path, out: Path) -> None:
    """Refuses a file beside the scores that nobody wrote for scores."""
    try:
        ours = not side.exists() or {"format_version", "reward"} <= read_json(side).keys()
    except CheckpointError:
        ours = False
    if not ours:
        raise ConfigError(
            f"out = {str(out)!r}: what the scores depend on is kept beside them in {side}, and "
            "there is another file of that name. Give another --out, or move that file away."
        )


def _changes(before: Row, now: Row) -> str:
    keys = [key for key in now if before.get(key) != now[key]]
    return "; ".join(f"{key}: {before.get(key)!r} -> {now[key]!r}" for key in keys)


def _progress(quiet: bool) -> Progress:
    console = Console(file=sys.stderr)
    progress = Progress(
        TextColumn("{task.fields[rows]} responses"),
        BarColumn(bar_width=None),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )
    progress.add_task("score", total=1.0, rows=0)
    return progress

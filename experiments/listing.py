"""What is registered: the tables of ``instructrec rewards|tasks|envs list``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from instructrec.errors import ConfigError

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

    from instructrec.envs.tasks.base import Instruction


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Left-aligned columns, one line per row; the last column is not padded."""
    lines = list(rows)
    if not lines:
        return ""
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[-1]])
        for row in lines
    )


def markdown_table(rows: Iterable[tuple[str, ...]]) -> str:
    """The same rows as a table of Markdown; the first one is its head."""
    cells = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    head, *others = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([head, "|" + " --- |" * len(cells[0]), *others])


def inert(text: str) -> str:
    """Text for a list of Markdown: no links, images, HTML, code or second line."""
    return re.sub(r"([\\`<>\[\]])", r"\\\1", " ".join(text.split()))


def first_line(thing: object) -> str:
    """The first line of an object's docstring, or an empty string."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def rewards() -> str:
    """Every registered reward: name, range, what it measures."""
    from instructrec.rewards.loading import load_object
    from instructrec.rewards.registry import list_rewards, reward_info

    rows = []
    for name in list_rewards():
        info = reward_info(name)
        target = load_object(info.target) if isinstance(info.target, str) else info.target
        limits = "" if info.range is None else f"[{info.range[0]:g}, {info.range[1]:g}]"
        rows.append((name, limits, first_line(target)))
    return table(rows)


def tasks() -> str:
    """Every built-in task: name, sizes of its splits, an example."""
    from instructrec.envs.tasks.base import list_tasks, make_task

    rows = []
    for name in list_tasks():
        try:
            splits = [make_task(name, split=split) for split in ("train", "validation", "test")]
        except ConfigError as error:  # it needs an extra, or options
            rows.append((name, "-", str(error)))
            continue
        item = splits[0][0]
        sizes = " / ".join(str(len(task)) for task in splits)
        rows.append((name, sizes, _shown(item)))
    return table([("task", "train / validation / test", "an instruction -> its reference"), *rows])


def environment_specs() -> list[EnvSpec]:
    """Every environment that ``gym.make`` knows from this package, by id."""
    import gymnasium

    import instructrec.envs  # noqa: F401 (registers them)

    specs = [s for s in gymnasium.registry.values() if s.namespace == "instructrec"]
    return sorted(specs, key=lambda spec: spec.id)


def environments() -> str:
    """Every environment id, the task that it shows, and what an episode of it is."""
    from gymnasium.envs.registration import load_env_creator

    rows = []
    for spec in environment_specs():
        entry = spec.entry_point
        made = load_env_creator(entry) if isinstance(entry, str) else entry
        task = spec.kwargs.get("task")
        about = first_line(made).replace("`", "") if task is None else _example(task)
        rows.append((spec.id, task or "any", about))
    return table([("environment", "task", "what it is, or an instruction of it"), *rows])


def _example(name: str) -> str:
    """A task's first instruction with its reference, or what the task needs."""
    from instructrec.envs.tasks.base import make_task

    try:
        return _shown(make_task(name)[0])
    except ConfigError as error:  # it needs an extra
        return str(error)


def _shown(item: Instruction) -> str:
    from instructrec.envs.tasks.base import render_prompt

    return f"{render_prompt(item.prompt)} -> {item.columns.get('reference')}"

"""``instructrec data check | preview``: what a data set holds, before a run learns from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from instructrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from instructrec.envs.tasks.base import Instruction
    from instructrec.envs.tasks.dataset import DatasetTask

_DATA = (
    "A .jsonl, .json, .csv or .parquet file, a folder written by save_to_disk, or hf: and an id "
    "of the Hugging Face hub."
)
_OPTIONS = "Options of the data as task.options in a recipe, e.g. --options.template question."


def build(parser: ArgumentParser) -> None:
    """Adds the commands to the parser of ``instructrec data``."""
    from instructrec.experiments import command_line

    def add(name: str, text: str) -> ArgumentParser:
        made = command_line.make_parser(f"instructrec data {name}", text)
        made.add_argument("data", help=_DATA)
        made.add_argument("--options", type=dict[str, Any], default={}, help=_OPTIONS)
        commands.add_subcommand(name, made, help=text)
        return made

    commands = parser.add_subcommands(required=True, dest="action")
    check = add("check", "Read a whole data set: what it holds, and every row that is wrong.")
    check.add_argument(
        "--tokenizer",
        type=str,
        help="Count tokens, too: smollm2-135m, a run folder, a model's folder or hub id, or a "
        "function as module:attr.",
    )
    check.add_argument(
        "--languages", type=int, default=1000, help="Rows whose language is told; 0 tells none."
    )
    preview = add("preview", "Show instructions as a policy would see them.")
    preview.add_argument("--number", type=int, default=3, help="How many.")
    preview.add_argument("--split", type=str, default="all", help="train, validation, test or all.")
    preview.add_argument(
        "--start",
        type=int,
        default=0,
        help="Number of the first one: a row or, with --seed, an episode.",
    )
    preview.add_argument(
        "--seed", type=int, help="Show them in the order of a training with this seed."
    )


def run(values: Namespace, command: list[str]) -> None:
    """Runs one of them.

    Raises:
        DataError: The data cannot be read, or rows of it cannot be used.
        ConfigError: An option is wrong.
    """
    {"check": _check, "preview": _preview}[values.action](values[values.action])


def _check(values: Namespace) -> None:
    from instructrec.envs.tasks.filters import token_counter
    from instructrec.experiments.data_profile import profile

    if values.languages < 0:
        raise ConfigError(f"languages = {values.languages}: expected 0 or more.")
    counter = None if values.tokenizer is None else token_counter(values.tokenizer)
    task = _load(values.data, {**values.options, "on_bad_row": "skip"})
    found = profile(task, count_tokens=counter, languages=values.languages)
    print(found)
    if found.bad:
        raise DataError(
            f"{values.data}: {found.bad} of {found.rows} rows cannot be used; repair them, or "
            "leave them out with the option on_bad_row: skip."
        )


def _preview(values: Namespace) -> None:
    from instructrec.envs.tasks.rows import visible

    if values.number < 1 or values.start < 0:
        raise ConfigError("preview shows one instruction or more, from number 0 or a later one.")
    task = _load(values.data, values.options, values.split)
    shown = []
    for place, item in _chosen(task, values):
        lines = [f"[{place}] id {item.id}", "", *_prompt_lines(item)]
        lines += [f"{name} = {value!r}" for name, value in item.columns.items()]
        shown.append("\n".join(map(visible, lines)))
    print("\n\n".join(shown))


def _chosen(task: DatasetTask, values: Namespace) -> Iterator[tuple[str, Instruction]]:
    stop = values.start + values.number
    if values.seed is None:
        if values.start >= len(task):
            raise ConfigError(f"start = {values.start}: the data has rows 0 to {len(task) - 1}.")
        for index in range(values.start, min(stop, len(task))):
            yield f"row {index} of {len(task)}", task[index]
        return
    from instructrec.rl.rollout import instruction_order

    for number, index in enumerate(instruction_order(len(task), values.seed, values.start, stop)):
        place = f"episode {values.start + number}: row {index} of {len(task)}"
        yield place, task[index]


def _prompt_lines(item: Instruction) -> list[str]:
    from instructrec.envs.tasks.base import render_prompt

    return [*render_prompt(item.prompt).split("\n"), ""]


def _load(data: str, options: dict[str, Any], split: str = "all") -> DatasetTask:
    from instructrec.envs.tasks.base import DATA_SUFFIXES, make_task, names_data

    if not names_data(data):
        raise ConfigError(
            f"{data!r} is no data set: expected a name ending in {', '.join(DATA_SUFFIXES)}, a "
            "folder, or hf: and an id of the hub."
        )
    return cast("DatasetTask", make_task(data, split=split, **options))

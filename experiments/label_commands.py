"""``instructrec label``: a person, or a reward in their place, says which responses are better."""

from __future__ import annotations

import getpass
import random
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from instructrec.choices import check_choices
from instructrec.errors import ConfigError
from instructrec.experiments import label_results, telling
from instructrec.experiments.jsonl import Row, dump_line, read_json, write_atomic, write_json
from instructrec.experiments.label_book import SCORES, Book, Sitting, read_judgments
from instructrec.experiments.label_items import (
    Item,
    fingerprint,
    gather,
    read_items,
    write_items,
)
from instructrec.experiments.locks import held

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from instructrec.rewards.combine import CombinedReward

FORMAT_VERSION = 1
_BOOKS = "judgments-"


@dataclass(frozen=True)
class LabelConfig:
    """What is judged, by whom, and where it is kept (``instructrec label``)."""

    out: str = "runs/labels"
    """Folder of the judgments; one that holds some is gone on with."""
    annotator: str | None = None
    """Who judges; None takes the name of the account."""
    mode: Literal["prefer", "score"] = "prefer"
    """prefer: which of two responses is better; score: 1 to 5 for each response."""
    limit: int | None = None
    """Most instructions; None takes all."""
    seed: int = 0
    """Decides the order of the instructions, and which response is shown first."""
    show_reference: bool = False
    """Show the expected answer, too."""
    from_reward: str | None = None
    """Let a reward judge in place of a person: its name, module:attr, file.py:attr, or a YAML file
    with `rewards:`."""
    reward_options: dict[str, Any] = field(default_factory=dict)
    """Options of that reward."""
    noise: float = 0.0
    """Share of its judgments that are turned around, or, of scores, drawn at random."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.noise <= 1:
            raise ConfigError(f"noise = {self.noise}: expected a share from 0 to 1.")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit = {self.limit}: expected 1 or more.")
        if self.noise and self.from_reward is None:
            raise ConfigError("noise is of simulated mentors: give --from_reward, too.")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", self.who):
            raise ConfigError(
                f"annotator = {self.who!r}: expected letters, digits and . _ - (it names a file)."
            )

    @property
    def who(self) -> str:
        """Who judges."""
        if self.annotator is not None:
            return self.annotator
        if self.from_reward is not None:
            return re.sub(r"[^A-Za-z0-9._-]+", "-", self.from_reward)[:64]
        try:
            return getpass.getuser()
        except (KeyError, OSError):  # an account without a name
            return "mentor"


def build(parser: ArgumentParser) -> None:
    """Arguments of ``label``."""
    parser.add_argument(
        "policies",
        nargs="*",
        help="Two run folders or evaluations (.jsonl), one with several samples, or a preference "
        "file; nothing goes on with --out.",
    )
    parser.add_class_arguments(LabelConfig)


def run(values: Namespace, command: list[str]) -> None:
    """Judges."""
    from instructrec.experiments import command_line

    label(values.policies, command_line.as_dataclass(LabelConfig, values))


def label(
    named: Sequence[str],
    config: LabelConfig,
    *,
    show: Callable[[Sitting, LabelConfig, Sequence[str]], None] | None = None,
    say: telling.Say = telling.say,
) -> Row:
    """Judges until the end of the items or of the mentor's patience, and writes what came of it.

    ``preferences.jsonl``, ``demonstrations.jsonl`` and ``scores.jsonl`` are made anew from all
    mentors' judgments in the folder each time.

    Args:
        named: See `gather`; empty to go on with a folder.
        config: See `LabelConfig`.
        show: Shows items to a person; None takes the terminal.
        say: Receives lines for people.

    Returns:
        What ``summary.json`` holds.

    Raises:
        ConfigError: A setting is wrong, there is no terminal, or the folder holds other items.
        DataError: The responses cannot be used.
        CheckpointError: The same mentor is at it in another process.
    """
    folder = Path(config.out)
    items, notes = _items(named, config, folder)
    reward = None if config.from_reward is None else _reward(config)
    if reward is None and show is None:
        show = _terminal()
    file = folder / f"{_BOOKS}{config.who}.jsonl"
    with held(file, "label"), Book(file) as book:
        sitting = Sitting(items, book, config.seed)
        if reward is not None:
            simulate(sitting, reward, noise=config.noise, seed=config.seed)
        elif show is not None:
            show(sitting, config, notes)
    found = _write(folder, items, say)
    if left := sitting.total - sitting.done:
        say(f"\n{config.who} has {left} of {sitting.total} left: the same command goes on")
    return found


def simulate(sitting: Sitting, reward: CombinedReward, *, noise: float, seed: int) -> None:
    """Judges all items as a reward would, with mistakes.

    Args:
        sitting: What is judged.
        reward: Equal totals, or none for one of them, are a tie; a score is 1 + 4 × total, rounded.
        noise: Share of the judgments that are turned around, or drawn at random.
        seed: Decides which.
    """
    while (item := sitting.item) is not None:
        texts = [side.text for side in sitting.sides]
        prompt: Any = item.prompt if isinstance(item.prompt, str) else tuple(item.prompt)
        columns = {"reference": [item.reference] * len(texts)}
        batch = reward.score([prompt] * len(texts), texts, columns)
        totals = [float(total) for total in batch.total]
        draw = random.Random(f"{seed}/{item.id}")
        mistaken = draw.random() < noise
        if any(total != total for total in totals):
            sitting.skip()  # the reward does not apply, or failed
        elif len(totals) == 1:
            score = round(1 + 4 * min(max(totals[0], 0.0), 1.0))
            sitting.score(draw.choice(SCORES) if mistaken else score)
        elif totals[0] == totals[1]:
            sitting.tie()
        else:
            sitting.prefer(int(totals[1] > totals[0]) ^ int(mistaken))


def _items(
    named: Sequence[str], config: LabelConfig, folder: Path
) -> tuple[list[Item], Sequence[str]]:
    """The items of the folder, which begins with those that are named."""
    about = folder / "label.json"
    before = read_json(about) if about.exists() else None
    if before is not None and before["mode"] != config.mode:
        raise ConfigError(
            f"{folder} holds judgments of mode {before['mode']!r}, not {config.mode!r}: choose "
            "another --out."
        )
    if not named:
        if before is None:
            raise ConfigError(
                f"{folder} holds no judgments: expected policies to judge, such as "
                "`instructrec label runs/a runs/b`, or the --out of earlier ones."
            )
        return read_items(folder / "items.jsonl"), ()
    pairs = config.mode == "prefer"
    items, notes = gather(named, pairs=pairs, seed=config.seed, limit=config.limit)
    made: Row = {"format_version": FORMAT_VERSION, "mode": config.mode, "seed": config.seed}
    made |= {"policies": list(named), "items": len(items), "fingerprint": fingerprint(items)}
    if before is not None and before["fingerprint"] != made["fingerprint"]:
        raise ConfigError(
            f"{folder} holds judgments of other responses ({before['items']} of "
            f"{', '.join(before['policies'])}): go on with them by --out alone, or choose another "
            "--out."
        )
    if before is None:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds something else: expected a new folder for --out.")
        folder.mkdir(parents=True, exist_ok=True)
        write_items(folder / "items.jsonl", items)
        write_json(about, made)
    return items, notes


def _reward(config: LabelConfig) -> CombinedReward:
    from instructrec.experiments.score_file import rewards_of

    reward = rewards_of(str(config.from_reward), config.reward_options)
    reward.check_columns(["reference"])
    return reward


def _terminal() -> Callable[[Sitting, LabelConfig, Sequence[str]], None]:
    """What shows items at the terminal."""
    try:
        from instructrec.experiments.label_terminal import LabelApp
    except ImportError as error:
        raise ConfigError(
            "judging at a terminal needs the package textual: pip install 'instructrec[label]'."
        ) from error
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(
            "judging needs a terminal, and input or output is none: expected a person. "
            "--from_reward NAME lets a reward judge."
        )

    def show(sitting: Sitting, config: LabelConfig, notes: Sequence[str]) -> None:
        pairs = config.mode == "prefer"
        LabelApp(sitting, pairs=pairs, show_reference=config.show_reference, notes=notes).run()

    return show


def _write(folder: Path, items: Sequence[Item], say: telling.Say) -> Row:
    """Makes the results from all judgments in the folder."""
    books = sorted(folder.glob(f"{_BOOKS}*.jsonl"))
    judgments = {path.stem.removeprefix(_BOOKS): read_judgments(path) for path in books}
    found = label_results.summary(items, judgments)
    write_json(folder / "summary.json", found)
    say(f"{label_results.to_text(found)}\n")
    for name in ("preferences", "demonstrations", "scores"):
        rows = getattr(label_results, name)(items, judgments)
        path = folder / f"{name}.jsonl"
        if rows or path.exists():
            write_atomic(path, b"".join(dump_line(row) for row in rows).decode("utf-8"))
            say(f"{name:<15}{path} ({len(rows)})")
    return found

"""What a ``.jsonl`` of responses holds, so that all of them are scored anew, and each once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from instructrec.envs.tasks.base import DATA_SUFFIXES, Task
from instructrec.errors import ConfigError, DataError
from instructrec.experiments.config import EvaluateConfig
from instructrec.experiments.jsonl import Row, read_json, read_rows
from instructrec.policies.config import Sampling

_DRAWS = ("temperature", "top_p", "top_k", "max_new_tokens")


@dataclass(frozen=True)
class Recorded:
    """The responses of an earlier evaluation, counted."""

    file: Path
    """Where they are."""
    instructions: int
    """Instructions with a response: different ``id``, or prompts where rows have none."""
    fewest: int
    """Responses to the instruction that has the fewest."""
    most: int
    """Responses to the one that has the most."""
    header: Row
    """What was evaluated and how; empty for a file that no evaluation wrote."""

    def samples(self, asked: int | None) -> int:
        """Responses to each instruction that are scored.

        Args:
            asked: What was asked for; None takes all.

        Raises:
            DataError: There are fewer, or not the same number to each.
        """
        if asked is None and self.fewest != self.most:
            raise DataError(
                f"{self.file} has {self.fewest} to {self.most} responses to an instruction: "
                f"expected as many to each. --samples {self.fewest} takes that many of each."
            )
        if asked is not None and asked > self.fewest:
            raise DataError(
                f"samples = {asked}, but {self.file} has {self.fewest} responses to an "
                "instruction: none can count twice. Leave --samples out, or ask for fewer."
            )
        return asked or self.fewest

    def limit(self, asked: int | None, task: Task) -> int | None:
        """How many instructions of a task are scored: those that the file has.

        Args:
            asked: What was asked for; None takes all.
            task: The task, of which the file has the first instructions.

        Raises:
            DataError: The file has fewer.
        """
        found = self.instructions
        if asked is not None and found < min(asked, len(task)):
            raise DataError(
                f"limit = {asked}, but {self.file} has responses to {found} instructions: "
                "expected at most that. Leave --limit out to score all of them."
            )
        return found if asked is None and found < len(task) else asked

    def check_task(self, task: Task) -> None:
        """Refuses a task that was taken from the file and is another one by now.

        Raises:
            DataError: Its options, its data or the version that makes it differ.
        """
        if self.header.get("fingerprint") not in (None, task.fingerprint):
            raise DataError(
                f"{self.file} was made with other instructions of the task {task.name!r} than "
                "this command has: its options, its data or its version differ. Name the task "
                "and its options with --task and --options."
            )

    def sampling(self, config: EvaluateConfig) -> Sampling:
        """How the responses were drawn, where the file says so; else as asked for.

        Raises:
            ConfigError: Another way to draw them was asked for.
        """
        known = self.header.get("sampling")
        names = {field.name for field in fields(Sampling)}
        asked = {key: getattr(config, key) for key in _DRAWS}
        given = {key: value for key, value in asked.items() if value is not None}
        if not isinstance(known, dict) or not known.keys() <= names:
            return Sampling(**{"temperature": 0.0, **given})
        drawn = Sampling(**known | {"stop_strings": tuple(known.get("stop_strings", ()))})
        wrong = [f"{key} = {value}" for key, value in given.items() if value != getattr(drawn, key)]
        if wrong:
            raise ConfigError(
                f"{', '.join(wrong)} given, but the responses in {self.file} were drawn already "
                f"({', '.join(f'{key} {getattr(drawn, key)}' for key in _DRAWS)}): leave that out, "
                "or evaluate the policy itself."
            )
        return drawn


def is_recorded(policy: str) -> bool:
    """Whether a policy of this name is a file of responses."""
    return policy.endswith(".jsonl")


def read_recorded(policy: str) -> Recorded | None:
    """Counts the responses of a policy that is a file of them; None for other policies.

    Args:
        policy: As for ``instructrec evaluate``.

    Raises:
        ConfigError: It is a data file of another kind.
        DataError: It cannot be read, or has no row.
    """
    file = Path(policy)
    if not is_recorded(policy):
        if file.suffix in DATA_SUFFIXES and file.is_file():
            raise ConfigError(
                f"{policy} is a data file: expected a policy, or the .jsonl of an evaluation. Data "
                "are named with --task."
            )
        return None
    rows = read_rows(file)
    if not rows:
        raise DataError(f"{policy} has no rows: expected the responses of an evaluation.")
    for number, row in enumerate(rows, start=1):
        if not {"prompt", "response"} <= row.keys():
            raise DataError(
                f"{policy}, row {number} has the columns {', '.join(row)}: expected 'prompt' and "
                "'response', as evaluations write them. A data set is named with --task, beside a "
                "policy that answers it."
            )
    has_ids = all("id" in row for row in rows)
    answers = Counter(str(row["id" if has_ids else "prompt"]) for row in rows)
    side = file.with_suffix(".json")
    header = read_json(side) if side.exists() else {}
    fewest, most = min(answers.values()), max(answers.values())
    return Recorded(file, len(answers), fewest, most, header)

"""What a comparison is about: policies, each one or several runs, on the same instructions.

A policy is named on the command line as a run folder, an evaluation's ``.jsonl``, or
``NAME=PATH,PATH``. Run folders of one variant with different seeds are one policy. Nothing but
these files is read and no model is loaded; scripted policies that are named answer anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.errors import DataError
from instructrec.experiments.bounds import SCRIPTED, answered_like
from instructrec.experiments.changed_settings import flatten
from instructrec.experiments.evaluation import Evaluation, cluster_of, load_evaluation
from instructrec.experiments.jsonl import Row
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.shared_scores import shared_scores

_OWN = ("name", "variant", "seed", "policy.model", "output.", "tracking.", "eval.", "resume")
"""Settings (or, ending in a dot, groups) in which the seeds of one policy may differ."""
_SAME = ("task", "split", "episodes")
"""Of an evaluation, what has to be the same for a comparison; of rewards see `shared_scores`."""


@dataclass(frozen=True)
class Member:
    """One run of a policy, or one file of its responses."""

    path: Path
    """Where it lies."""
    evaluation: Evaluation
    """Its responses."""
    seed: int | None = None
    """Its seed; None where nobody knows it."""
    variant: str = ""
    """Name of the setting."""
    config: Row = field(default_factory=dict)
    """Its settings; empty for a file of responses."""
    record: Row = field(default_factory=dict)
    """What ``run.json`` says."""
    summary: Row = field(default_factory=dict)
    """Its final numbers."""

    @cached_property
    def updates(self) -> list[Row]:
        """Metrics of its updates or steps; none for a file, or for a run that only evaluates."""
        trained = self.record.get("job_type") in ("train", "sft", "dpo")
        return read_metrics(self.path) if trained else []

    @property
    def unit(self) -> str:
        """What its training counts: ``step`` of supervised training, else ``update``."""
        return "step" if self.record.get("job_type") in ("sft", "dpo") else "update"

    @property
    def episodes_per_update(self) -> float | None:
        """Episodes of an update, or demonstrations (pairs) of a step; None where unknown."""
        if self.unit == "step":
            settings = self.config.get(str(self.record.get("job_type")))
            return settings.get("batch_size") if isinstance(settings, dict) else None
        counted = [row for row in self.updates if row.get("train/episodes")]
        return counted[-1]["train/episodes"] / counted[-1]["train/update"] if counted else None

    @property
    def is_fixed(self) -> bool:
        """Whether it has no other seeds: a scripted policy, or a model as it is, asked greedily."""
        if _header(self, "policy") in SCRIPTED:
            return True
        model, record = str(self.record.get("base_model")), self.record
        trained = record.get("parent") or model.endswith(".jsonl") or Path(model).name == "policy"
        return record.get("job_type") == "eval" and self.seed is None and not trained

    @cached_property
    def by_instruction(self) -> dict[str, list[Row]]:
        """Its rows by instruction."""
        found: dict[str, list[Row]] = {}
        for row in self.evaluation.rows:
            found.setdefault(row["id"], []).append(row)
        return found

    def score(self, instruction: str, part: str) -> float:
        """Mean score over the samples of an instruction that have one; NaN without any."""
        known = [score for score in self.scores(instruction, part) if score is not None]
        return math.fsum(known) / len(known) if known else math.nan

    def scores(self, instruction: str, part: str) -> list[float | None]:
        """Score of each sample of an instruction, None where it has none."""
        rows = self.by_instruction[instruction]
        return [row["total"] if part == "total" else row["parts"].get(part) for row in rows]


@dataclass(frozen=True)
class Contender:
    """A policy that is compared."""

    name: str
    """What it is called."""
    members: list[Member]
    """Its runs, by seed."""

    @property
    def seeds(self) -> list[int | None]:
        """Seeds of its runs."""
        return [member.seed for member in self.members]

    def scores(self, ids: Sequence[str], part: str) -> np.ndarray:
        """Scores, (seeds, instructions) float64, NaN where there is none."""
        return np.array([[m.score(key, part) for key in ids] for m in self.members])

    @property
    def is_fixed(self) -> bool:
        """Whether there are no other seeds of it to know of."""
        return all(member.is_fixed for member in self.members)

    @cached_property
    def response_len(self) -> float | None:
        """Mean length of its responses in tokens; None where nobody counted."""
        rows = [row for member in self.members for row in member.evaluation.rows]
        known = [row["response_len"] for row in rows if row["response_len"] is not None]
        return math.fsum(known) / len(known) if known else None

    @cached_property
    def kl_per_token(self) -> float | None:
        """How far its runs ended from their references, nats per token; None without any."""
        last = [member.updates[-1] for member in self.members if member.updates]
        known = [
            row["ppo/kl_ref"] / max(row["rollout/response_len"], 1)
            for row in last
            if "ppo/kl_ref" in row
        ]
        return math.fsum(known) / len(known) if known else None


@dataclass(frozen=True)
class Comparison:
    """Policies on the same instructions."""

    contenders: list[Contender]
    """Two policies or more, in the order given."""
    ids: list[str]
    """Instructions that all of them answered."""
    notes: list[str] = field(default_factory=list)
    """What a reader has to know about how comparable they are."""

    @property
    def rows(self) -> list[Row]:
        """A row of each instruction, of the first policy."""
        first = self.contenders[0].members[0].by_instruction
        return [first[key][0] for key in self.ids]

    @property
    def parts(self) -> list[str]:
        """Scores that mean the same in all of them, the total first where it does."""
        return shared_scores([m.evaluation for c in self.contenders for m in c.members])

    def kept(self, part: str) -> list[int]:
        """Places in ``ids`` of the instructions on which every run has a score of a part."""
        scores = np.concatenate([c.scores(self.ids, part) for c in self.contenders])
        return [int(i) for i in np.flatnonzero(np.isfinite(scores).all(0))]

    def clusters(self, places: Sequence[int]) -> list[str]:
        """Cluster of each instruction."""
        rows = self.rows
        return [cluster_of(rows[i]) for i in places]

    def labels(self, places: Sequence[int]) -> list[str]:
        """Task of each instruction: that of a mixture, else its family; "" where it has none."""
        rows = self.rows
        return [str(rows[i].get("task") or rows[i].get("family") or "") for i in places]


def read_comparison(named: Sequence[str], *, common: bool = False) -> Comparison:
    """Reads what is named on the command line.

    Args:
        named: Run folders, ``.jsonl`` files, ``NAME=PATH,PATH``, or a scripted policy (oracle,
            random, empty), which answers what the first run was asked.
        common: Compare on the instructions that all have answered, should they differ.

    Raises:
        DataError: There are fewer than two policies, one is there twice, an evaluation is missing,
            or they are of different instructions.
        CheckpointError: A folder is no run folder.
    """
    contenders = _grouped(named)
    if len(contenders) < 2:
        raise DataError(
            f"{len(contenders)} policy to compare"
            + (
                f" ({contenders[0].name!r}, {len(contenders[0].members)} runs)"
                if contenders
                else ""
            )
            + ": expected two or more. Runs of one variant are one policy; NAME=PATH,PATH says "
            "otherwise."
        )
    notes = [note for contender in contenders for note in _odd_settings(contender)]
    members = [member for contender in contenders for member in contender.members]
    first, *others = members
    for other in others:
        odd = [key for key in _SAME if _header(first, key) != _header(other, key)]
        if odd:
            raise DataError(
                f"{other.path} and {first.path} were measured on another {', '.join(odd)}: scores "
                "would mean different things. Measure one again with `instructrec evaluate`."
            )
        draws = _header(first, "sampling"), _header(other, "sampling")
        if draws[0] != draws[1] and not {_header(first, "policy"), _header(other, "policy")} & set(
            SCRIPTED
        ):
            notes.append(f"{other.path.name} was drawn in another way than {first.path.name}.")
    ids = _shared_ids(members, common, notes)
    notes = [*_other_references(members, ids), *notes]
    return Comparison(contenders, ids, list(dict.fromkeys(notes)))


def read_policy(folders: Sequence[Path]) -> Comparison:
    """Reads the runs of one policy, to look at it by itself.

    Args:
        folders: Run folders of different seeds.

    Raises:
        DataError: A run has no evaluation, or they answered different instructions.
        CheckpointError: A folder is no run folder.
    """
    members = [_member(folder) for folder in folders]
    return Comparison([Contender(members[0].variant, members)], _shared_ids(members, False, []))


def _grouped(named: Sequence[str]) -> list[Contender]:
    """Policies by name; run folders of one variant are put together."""
    groups: dict[str, list[Member]] = {}
    scripted = [text for text in named if text in SCRIPTED and not Path(text).exists()]
    for text in named:
        if text in scripted:
            groups.setdefault(text, [])
            continue
        name, paths = _split(text)
        for member in map(_member, paths):
            group = groups.setdefault(name or member.variant, [])
            if group and not name and member.path.is_file():
                raise DataError(
                    f"{group[0].path} and {member.path} have one name, {member.variant!r}: say "
                    "which policies they are of, NAME=PATH OTHER=PATH."
                )
            group.append(member)
    if odd := [text for text in scripted if groups[text]]:
        raise DataError(f"{odd[0]!r} is a scripted policy: give the runs another name.")
    _add_bounds(groups)
    for name, members in groups.items():
        paths_seen = [member.path.resolve() for member in members]
        seeds = [member.seed for member in members if member.seed is not None]
        if len(set(paths_seen)) < len(paths_seen) or len(set(seeds)) < len(seeds):
            raise DataError(
                f"{name!r} has a run or a seed twice ({', '.join(str(m.path) for m in members)}): "
                "expected different seeds of one policy. Give them names: NAME=PATH OTHER=PATH."
            )
    return [
        Contender(name, sorted(members, key=lambda m: -1 if m.seed is None else m.seed))
        for name, members in groups.items()
    ]


def _split(text: str) -> tuple[str, list[Path]]:
    """Name and paths of ``NAME=PATH,PATH``; no name for a path, which may have a "=" in it."""
    name, separator, paths = text.partition("=")
    if not separator or Path(text).exists():
        return "", [Path(text)]
    listed = paths.split(",")
    if not name or not all(listed):
        raise DataError(f"{text!r}: expected NAME=PATH or NAME=PATH,PATH.")
    return name, [Path(path) for path in listed]


def _add_bounds(groups: dict[str, list[Member]]) -> None:
    """Lets the scripted policies answer what the first run was asked."""
    first = next((members[0] for members in groups.values() if members), None)
    for name in [name for name, members in groups.items() if not members]:
        if first is None:
            raise DataError(
                f"only scripted policies to compare ({', '.join(groups)}): expected a run as well, "
                "whose instructions they answer."
            )
        measured = answered_like(name, first.evaluation, first.config or _settings(first.path))
        groups[name] = [Member(Path(name), measured, variant=name)]


def _settings(file: Path) -> Row:
    """Settings of the run that a file of responses lies in; empty for one that lies elsewhere."""
    run = _run_of(file)
    return {} if run is None else run.config()


def _run_of(file: Path) -> RunFolder | None:
    """The run that a file of responses lies in."""
    folder = file.parent.parent
    return RunFolder.open(folder) if (folder / "run.json").is_file() else None


def _member(path: Path) -> Member:
    if path.is_file():
        run = _run_of(path)
        seed = None if run is None else run.info().seed
        return Member(path, load_evaluation(path), seed, variant=path.stem)
    folder = RunFolder.open(path)
    record, summary = folder.record(), folder.summary()
    if "eval_file" not in summary:
        raise DataError(
            f"{path} has no evaluation (its status is {record.get('status')!r}): finish it with "
            "--resume, or measure it with `instructrec evaluate`."
        )
    info = folder.info()
    return Member(
        path,
        load_evaluation(path / summary["eval_file"]),
        info.seed,
        info.variant,
        folder.config(),
        record,
        summary,
    )


def _header(member: Member, key: str) -> Any:
    return member.evaluation.header.get(key)


def _odd_settings(contender: Contender) -> list[str]:
    """A note where the seeds of a policy had different settings."""
    flat = [flatten(member.config) for member in contender.members if member.config]
    keys = {key for config in flat for key in config}
    odd = sorted(
        key
        for key in keys
        if not any(key.startswith(own) if own.endswith(".") else key == own for own in _OWN)
        and len({repr(config.get(key)) for config in flat}) > 1
    )
    shown = ", ".join(odd[:5]) + (", ..." if len(odd) > 5 else "")
    return [f"the runs of {contender.name} differ in {shown}."] if odd else []


def _other_references(members: Sequence[Member], ids: Sequence[str]) -> list[str]:
    """A loud note where runs were judged against different expected answers."""
    first = members[0]
    odd = [
        (key, member)
        for key in ids
        for member in members
        if _reference(member, key) != _reference(first, key)
    ]
    if not odd:
        return []
    count = len({key for key, _ in odd})
    return [
        f"DIFFERENT REFERENCES on {count} of {len(ids)} instructions ({odd[0][0]} of "
        f"{odd[0][1].path.name} and {first.path.name}, for one): where a reward reads them, the "
        "scores do not mean the same and cannot be compared."
    ]


def _reference(member: Member, instruction: str) -> Any:
    return member.by_instruction[instruction][0].get("reference")


def _shared_ids(members: Sequence[Member], common: bool, notes: list[str]) -> list[str]:
    first = members[0]
    prompts = {key: rows[0]["prompt"] for key, rows in first.by_instruction.items()}
    shared = [
        key
        for key, prompt in prompts.items()
        if all(
            key in m.by_instruction and m.by_instruction[key][0]["prompt"] == prompt
            for m in members
        )
    ]
    most = max(len(member.by_instruction) for member in members)
    if len(shared) < most:
        if not common or not shared:
            odd = next(
                m for m in members if m.by_instruction.keys() != prompts.keys() or m is members[-1]
            )
            raise DataError(
                f"{odd.path} and {first.path} answered different instructions ({len(shared)} of up "
                f"to {most} are the same): expected the same split and limit. "
                + ("--common compares on those that are the same." if shared else "Measure again.")
            )
        notes.append(f"only {len(shared)} of {most} instructions were answered by all.")
    return shared

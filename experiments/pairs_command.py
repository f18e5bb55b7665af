"""``instructrec pairs``: preference pairs from samples of a policy, ranked by any reward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from instructrec.choices import check_choices
from instructrec.envs.tasks.base import default_rewards
from instructrec.errors import ConfigError, DataError
from instructrec.experiments import command_line, evaluate_policy, telling
from instructrec.experiments.config import EvaluateConfig
from instructrec.experiments.evaluation import Evaluation, evaluate
from instructrec.experiments.jsonl import (
    dump_line,
    plain,
    read_json,
    write_atomic,
    write_json,
)
from instructrec.experiments.listing import table
from instructrec.experiments.locks import held
from instructrec.experiments.preference_pairs import Mentor, Pair, Select, pairs_of_rows
from instructrec.experiments.recorded import read_recorded
from instructrec.experiments.runfolder import RunFolder
from instructrec.policies.base import Policy
from instructrec.rewards.combine import make_rewards
from instructrec.rewards.parts import RewardSpec

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_SAMPLES = 4
"""Responses to an instruction where nothing else is asked for."""
LoadPolicy = Callable[[str, evaluate_policy.Plan, EvaluateConfig], Policy]
"""Makes the policy of a name."""


@dataclass(frozen=True)
class PairsConfig:
    """What is sampled, how the samples are ranked, and which pairs are kept."""

    out: str
    """JSONL file for the pairs; the samples go beside it, and an interrupted run goes on there."""
    task: str | None = None
    """Task; None takes that of the run folder or file of samples, else closed_answers."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the task."""
    split: str = "train"
    """Split of the instructions."""
    rewards: dict[str, bool | float | str | RewardSpec] = field(default_factory=dict)
    """What ranks the samples; none takes those of the policy's run folder, else the task's own."""
    n: int | None = None
    """Responses sampled to each instruction; None takes 4, or as many as a file of samples has."""
    limit: int | None = None
    """Most instructions; None takes the whole split, or those of a file of samples."""
    select: Select = "best_vs_worst"
    """One pair per instruction (best_vs_worst), or of every two responses (all)."""
    min_margin: float = 0.0
    """Least distance of the scores of a pair; equal scores never make one."""
    flip_rate: float = 0.0
    """Share of the pairs in which a simulated mentor errs, from 0 to 0.5."""
    bradley_terry: float | None = None
    """Temperature of a mentor who errs the more often, the closer the scores are."""
    temperature: float | None = None
    """Softmax temperature of the samples; None takes that of a file of samples, else 1."""
    top_p: float | None = None
    """Nucleus: smallest set of tokens with this much probability; None as for the temperature."""
    max_new_tokens: int | None = None
    """Most tokens in one response; None takes that of the policy's run folder, else 64."""
    batch_size: int = 64
    """Responses decoded together."""
    seed: int = 0
    """Seed of the sampling and of the mentor."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute precision."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    system_prompt: str | None = None
    """System message; None takes that of the policy's run folder, else none."""

    def __post_init__(self) -> None:
        check_choices(self)
        if Path(self.out).suffix != ".jsonl":
            raise ConfigError(f"out = {self.out!r}: expected the name of a .jsonl file.")
        if self.n is not None and self.n < 2:
            raise ConfigError(f"n = {self.n}: a pair needs 2 responses or more.")
        if self.temperature is not None and not self.temperature > 0:
            raise ConfigError(
                f"temperature = {self.temperature}: greedy decoding gives the same response every "
                "time; expected more than 0."
            )
        if not self.min_margin >= 0:
            raise ConfigError(f"min_margin = {self.min_margin}: expected 0 or more.")
        self.mentor  # noqa: B018 (its numbers are checked)
        self.as_evaluation()  # so are those of the samples

    @property
    def mentor(self) -> Mentor:
        """Who prefers."""
        return Mentor(self.flip_rate, self.bradley_terry, self.seed)

    @property
    def samples_file(self) -> Path:
        """The scored samples, with what they are in the same name with ``.json``."""
        return Path(self.out).with_suffix(".samples.jsonl")

    def as_evaluation(self) -> EvaluateConfig:
        """The evaluation whose rows are the samples."""
        same = [
            *("task", "options", "split", "rewards", "limit", "temperature", "top_p"),
            *("max_new_tokens", "batch_size", "seed", "dtype", "device", "system_prompt"),
        ]
        given = {name: getattr(self, name) for name in same}
        given |= {name: 1.0 for name in ("temperature", "top_p") if given[name] is None}
        return EvaluateConfig(samples=self.n or _SAMPLES, **given)


def run_pairs(
    policy: str,
    config: PairsConfig,
    *,
    overwrite: bool = False,
    say: telling.Say = telling.say,
    load: LoadPolicy = evaluate_policy.load,
) -> list[Pair]:
    """Samples, scores, pairs, and writes the preference file.

    The samples are written batch by batch, and the same command goes on with those that are there.

    Args:
        policy: As for ``instructrec evaluate``; the ``.jsonl`` of an earlier evaluation with
            several samples pairs its responses, scored anew.
        config: What is wanted.
        overwrite: Replace pairs and samples that are there.
        say: Receives lines for people.
        load: Makes the policy.

    Raises:
        ConfigError: ``out`` holds other pairs, or its samples are what is read.
        DataError: No two responses have different scores.
        CheckpointError: Another process writes there.
        InstructRecError: Policy, task or rewards cannot be used; nothing was replaced.
    """
    out = Path(config.out)
    for place, what in ((config.samples_file, "its samples"), (out, "the pairs")):
        if Path(policy).resolve() == place.resolve():
            raise ConfigError(
                f"out = {config.out!r}: {what} would take the place of {policy}, which is read. "
                "Give another --out."
            )
    if not overwrite and out.exists() and not out.with_suffix(".json").exists():
        raise _other_rows(out)  # before anything is sampled
    config = _completed(policy, config)
    with held(out, "pairs"):
        return _make_pairs(policy, config, out, overwrite, say, load)


def _make_pairs(
    policy: str,
    config: PairsConfig,
    out: Path,
    overwrite: bool,
    say: telling.Say,
    load: LoadPolicy,
) -> list[Pair]:
    """See `run_pairs`; nobody else is at it."""
    evaluation = _samples(policy, config, overwrite, load)
    pairs = pairs_of_rows(evaluation.rows, select=config.select, min_margin=config.min_margin)
    if not pairs:
        raise DataError(
            f"none of {len({row['id'] for row in evaluation.rows})} instructions has two responses "
            f"whose scores (by {', '.join(evaluation.parts)}) differ (by {config.min_margin:g} or "
            f"more): there is nothing to prefer. The samples lie in {config.samples_file}. "
            "Take another reward, a higher temperature, a larger n or a smaller min_margin."
        )
    pairs = config.mentor.judge(pairs)
    made = _header(evaluation, config)
    _refuse_other_pairs(out, made)
    write_json(out.with_suffix(".json"), made)
    write_atomic(out, b"".join(dump_line(pair.row()) for pair in pairs).decode())
    say(_told(evaluation, pairs, config))
    return pairs


def _completed(policy: str, config: PairsConfig) -> PairsConfig:
    """The same with what a file of samples says of itself, where the policy is one.

    Raises:
        DataError: It has a single response to an instruction.
        ConfigError: The settings ask for samples of another kind.
    """
    recorded = read_recorded(policy)
    if recorded is None:
        return config
    if recorded.fewest < 2:
        raise DataError(
            f"{policy} has {recorded.fewest} responses to an instruction: expected 2 or more to "
            "each, as `instructrec evaluate --samples 4 --temperature 1` and `instructrec pairs` "
            "write them."
        )
    known = recorded.header if config.task is None else {}
    drawn = recorded.header.get("sampling", {})
    names = [name for name in ("temperature", "top_p", "max_new_tokens") if name in drawn]
    for name in names:
        asked = getattr(config, name)
        if asked not in (None, drawn[name]):
            raise ConfigError(
                f"{name} = {asked}: the samples of {policy} are there already and were drawn with "
                f"{drawn[name]}. Leave it out, or name a policy, which is then sampled anew."
            )
    return replace(
        config,
        n=config.n or recorded.fewest,
        split=known.get("split", config.split),
        **{name: drawn[name] for name in names},
    )


def _samples(policy: str, config: PairsConfig, overwrite: bool, load: LoadPolicy) -> Evaluation:
    """The scored samples; those of before are deleted once nothing else can be wrong."""
    settings = config.as_evaluation()
    run = RunFolder.open(policy) if (Path(policy) / "run.json").is_file() else None
    plan = evaluate_policy.make_plan(policy, settings, run)
    if plan.episodes.several:
        raise ConfigError(
            f"the episodes of {policy!r} have several answers (env {plan.episodes.env!r}): pairs "
            "are made of single answers. Name a policy that was trained on those."
        )
    plan, task = evaluate_policy.open_task(plan, named=config.task is not None)
    reward = make_rewards(plan.rewards if plan.rewards is not None else default_rewards(task))
    reward.check_columns(task.columns)
    answering = load(policy, plan, settings)
    if overwrite:
        samples = config.samples_file
        for path in (samples, samples.with_suffix(".json"), Path(config.out)):
            path.unlink(missing_ok=True)
    return evaluate(
        answering,
        task,
        reward,
        sampling=plan.sampling,
        samples=plan.samples,
        batch_size=config.batch_size,
        limit=plan.limit,
        out=config.samples_file,
    )


def _header(evaluation: Evaluation, config: PairsConfig) -> dict[str, Any]:
    """What the pairs are."""
    how = {"select": config.select, "min_margin": config.min_margin, **asdict(config.mentor)}
    return dict(plain({"format_version": 1, "pairs": how, "samples": evaluation.header}))


def _refuse_other_pairs(out: Path, made: dict[str, Any]) -> None:
    """Keeps pairs that were made otherwise, and files that are no pairs."""
    if not out.exists():
        return
    side = out.with_suffix(".json")
    before = read_json(side) if side.exists() else {}
    if before != made:
        raise _other_rows(out)


def _other_rows(out: Path) -> ConfigError:
    return ConfigError(
        f"out = {str(out)!r} exists already and holds other rows than this command makes: give "
        "another --out, or --overwrite to replace it and its samples."
    )


def _told(evaluation: Evaluation, pairs: list[Pair], config: PairsConfig) -> str:
    margins = np.array([pair.margin for pair in pairs])
    asked = len({row["id"] for row in evaluation.rows})
    flipped = sum(pair.flipped for pair in pairs)
    quartiles = ", ".join(f"{q:.3g}" for q in np.quantile(margins, [0.25, 0.5, 0.75]))
    rows = [
        ("instructions", f"{asked}, {len({p.instruction for p in pairs})} of them with a pair"),
        ("responses", f"{len(evaluation.rows)} in {config.samples_file}"),
        ("pairs", f"{len(pairs)} in {config.out}"),
        ("margin", f"{margins.mean():.3g} on average, quartiles {quartiles}"),
        ("turned round", f"{flipped} ({flipped / len(pairs):.1%}) by the simulated mentor"),
    ]
    return table(rows if flipped else rows[:-1])


def build(parser: ArgumentParser) -> None:
    """Arguments of ``pairs``."""
    command_line.add_config_file(parser, recipes=False)
    parser.add_argument(
        "policy",
        help="Who answers: as for `instructrec evaluate` (a run folder, a model, or the .jsonl of "
        "an earlier evaluation with several samples).",
    )
    parser.add_class_arguments(PairsConfig)
    parser.add_argument(
        "--overwrite", action="store_true", help="Replace pairs and samples that are there."
    )


def run(values: Namespace, command: list[str]) -> None:
    """Makes pairs."""
    config = command_line.as_dataclass(PairsConfig, values)
    run_pairs(values.policy, config, overwrite=values.overwrite)

"""What a report is made of: a run folder, read, those of unfinished and failed runs too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from instructrec.errors import ConfigError, DataError
from instructrec.experiments import before_after
from instructrec.experiments.before_after import Change
from instructrec.experiments.evaluation import Evaluation, load_evaluation
from instructrec.experiments.fault_log import read_faults
from instructrec.experiments.jsonl import Row, read_json
from instructrec.experiments.runfolder import RunFolder, read_metrics, read_rows
from instructrec.metrics import axis_value

_BY_STEPS = {"sft": "sft", "dpo": "dpo", "reward-model": "fit"}
"""Job types that count optimizer steps, and where their settings stand."""


@dataclass(frozen=True)
class Reading:
    """A run, read; of an unfinished one some of it is empty."""

    path: Path
    """Its folder."""
    record: Row
    """Content of ``run.json``."""
    config: Row
    """Content of ``config.yaml``."""
    summary: Row
    """Content of ``summary.json``."""
    updates: list[Row]
    """Lines of ``metrics.jsonl``."""
    samples: list[Row]
    """Responses of the rollouts."""
    warnings: list[Row]
    """What looked wrong: update and message."""
    faults: list[Row] = field(default_factory=list)
    """What went wrong, one row for each kind of fault in an update."""
    evaluation: Evaluation | None = None
    """The final evaluation."""
    before: Evaluation | None = None
    """An evaluation of the start, of the same kind."""
    changes: list[Change] = field(default_factory=list)
    """What is different between the two."""
    learned: Row = field(default_factory=dict)
    """What a reward model has learned: content of its ``reward_report.json``."""
    scored: list[Row] = field(default_factory=list)
    """The rows that measured it, with its scores."""

    @property
    def unit(self) -> str:
        """What its curves are over: ``update`` or ``step``."""
        return "step" if self.record.get("job_type") in _BY_STEPS else "update"

    @property
    def section(self) -> str:
        """Where the settings of its training stand."""
        return _BY_STEPS.get(str(self.record.get("job_type")), "ppo")

    @property
    def done(self) -> int:
        """Updates or steps recorded."""
        return int(max((axis_value(row) or 0 for row in self.updates), default=0))


def read_run(path: Path, before: str | None = None) -> Reading:
    """Reads what a run has left so far.

    Args:
        path: The run folder.
        before: Evaluation of its start; None looks for one.

    Raises:
        CheckpointError: It is no run folder.
        ConfigError: It holds other runs instead of being one.
        DataError: ``before`` is of another kind than the run's final evaluation, or there is none.
    """
    run = RunFolder.open(path)
    record, summary = run.record(), run.summary()
    if record["job_type"] == "compare":
        raise ConfigError(_several(path))
    if record["job_type"] == "reward-model" and before:
        raise ConfigError(
            f"{path} trained a reward model, which answers nothing that {before} could be held "
            "against: leave --before out."
        )
    after = _final_evaluation(path, summary)
    start = None
    if after is not None:
        start = _named(Path(before), after) if before else before_after.find_before(run, after)
    elif before:
        raise DataError(
            f"{path} has no final evaluation (its status is {record.get('status')!r}) that "
            f"{before} could be held against: finish the run with --resume, or leave --before out."
        )
    return Reading(
        path,
        record,
        run.config(),
        summary,
        read_metrics(path) if run.metrics_path.exists() else [],
        _rows(path / "samples.jsonl"),
        _rows(path / "warnings.jsonl"),
        read_faults(path),
        after,
        start,
        before_after.changes(start, after) if start is not None and after is not None else [],
        read_learned(path),
        _rows(path / summary["scores_file"]) if "scores_file" in summary else [],
    )


def _several(path: Path) -> str:
    """Says what to report on instead of a folder of several runs."""
    inner = sorted(p.parent.name for p in path.glob("*/run.json"))
    own = path / "report.md"
    told = f" What they came to together stands in {own}." if own.is_file() else ""
    return (
        f"{path} holds several runs: report on one of them ({', '.join(inner) or 'none'}), "
        f"such as {path / ('ppo' if 'ppo' in inner or not inner else inner[-1])}.{told}"
    )


def read_learned(path: Path) -> Row:
    """What a reward model has learned, from its run folder; empty where it is not there."""
    file = path / "reward_model" / "reward_report.json"
    return read_json(file) if file.is_file() else {}


def _rows(file: Path) -> list[Row]:
    return read_rows(file) if file.exists() else []


def _final_evaluation(path: Path, summary: Row) -> Evaluation | None:
    named = summary.get("eval_file")
    if named is None:
        return None
    try:
        return load_evaluation(path / named)
    except DataError:  # deleted by hand, or being written anew: the numbers of summary.json stay
        return None


def _named(path: Path, after: Evaluation) -> Evaluation:
    before = before_after.read_evaluation(path)
    if odd := before_after.differing(before, after):
        raise DataError(
            f"{path} was measured by another {', '.join(odd)} than the end of the run: expected "
            "the same instructions, rewards and decoding. Measure the start again."
        )
    return before

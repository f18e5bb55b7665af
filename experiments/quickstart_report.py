"""What the quickstart found: table, paired differences, before/after samples. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.envs.tasks.base import render_prompt
from instructrec.errors import DataError
from instructrec.experiments.evaluation import Evaluation, cluster_of
from instructrec.experiments.jsonl import Row
from instructrec.experiments.listing import table
from instructrec.experiments.progress import format_duration
from instructrec.experiments.stats import Difference, Interval, paired_difference

STAGES = {"base": "zero-shot", "sft": "short SFT", "sft-best": "best SFT", "ppo": "PPO"}
"""Folder of a stage -> what it is called."""
BASELINES = {"sft-long": "SFT for as long", "raft": "RAFT"}
"""Further stages at PPO's cost: in time, or in rollouts."""
TITLES = STAGES | BASELINES
_KINDS = (("gained", 4), ("lost", 2), ("right before and after", 2), ("wrong before and after", 2))
_KIND_OF = {
    (False, True): "gained",
    (True, False): "lost",
    (True, True): "right before and after",
    (False, False): "wrong before and after",
}
_NUM_SAMPLES = 10
_COLUMNS = (
    *("policy", "exact match", "95 % interval"),  # greedy decoding
    *("sampled", "pass@k", "entropy", "tokens", "trained in"),
)


@dataclass(frozen=True)
class Stage:
    """One policy of the comparison, measured."""

    name: str
    """Key of ``TITLES``."""
    greedy: Evaluation
    """Held-out instructions, greedy decoding."""
    sampled: Evaluation
    """A part of them, several sampled responses each."""
    train_s: float
    """Wall time of its training (0 for the untouched model)."""

    @property
    def title(self) -> str:
        """What the stage is called."""
        return TITLES[self.name]


def results_table(stages: Sequence[Stage]) -> str:
    """One row for each policy."""
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for stage in stages:
        greedy, metrics = stage.greedy.interval("exact_match"), stage.sampled.metrics()
        passes = [key for key in metrics if key.startswith("eval/pass_at_")]
        best = max(passes, key=lambda key: int(key.rpartition("_")[2]), default="")
        rows.append(
            (
                stage.title,
                f"{greedy.mean:.3f}",
                f"{greedy.low:.3f} to {greedy.high:.3f}",
                _number(metrics.get("eval/exact_match/mean")),
                _number(metrics.get(best)) + (f" (k={best.rpartition('_')[2]})" if best else ""),
                _number(metrics.get("eval/entropy")),
                _number(stage.greedy.metrics().get("eval/response_len"), 1),
                format_duration(stage.train_s) if stage.train_s else "-",
            )
        )
    return table(rows)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def difference(after: Evaluation, before: Evaluation) -> Difference:
    """Paired difference of exact match, intervals clustered by item.

    Raises:
        DataError: The two evaluations do not hold the same instructions.
    """
    a, b = by_id(after), by_id(before)
    if a.keys() != b.keys():
        odd = sorted(a.keys() ^ b.keys())
        raise DataError(
            f"the two evaluations differ in {len(odd)} instructions (such as {odd[0]!r}): a paired "
            "comparison needs the same ones."
        )
    ids = [key for key in a if _scored(a[key]) and _scored(b[key])]
    return paired_difference(
        [a[key]["parts"]["exact_match"] for key in ids],
        [b[key]["parts"]["exact_match"] for key in ids],
        [cluster_of(a[key]) for key in ids],
    )


def by_id(evaluation: Evaluation) -> dict[str, Row]:
    """Rows of an evaluation with one response per instruction, by instruction."""
    return {row["id"]: row for row in evaluation.rows}


def _scored(row: Row) -> bool:
    return row["parts"].get("exact_match") is not None


def difference_lines(stages: Mapping[str, Stage]) -> list[str]:
    """The two comparisons that say whether PPO was worth it."""
    lines = []
    for other in ("sft", "sft-best"):
        found = difference(stages["ppo"].greedy, stages[other].greedy)
        verdict = "excludes" if found.low > 0 or found.high < 0 else "includes"
        lines.append(
            f"PPO - {STAGES[other]}: {found.mean:+.3f}, 95 % interval {found.low:+.3f} to "
            f"{found.high:+.3f} ({verdict} 0; {found.n} instructions, {found.n_clusters} items)"
        )
    return lines


def pick_samples(
    before: Evaluation, after: Evaluation, seed: int, number: int = _NUM_SAMPLES
) -> list[tuple[str, str]]:
    """Chooses instructions that show gains, losses and what stayed the same.

    Args:
        before: Greedy evaluation of the start.
        after: Greedy evaluation of the end, of the same instructions.
        seed: Which of them are drawn.
        number: How many; fewer when there are not so many.

    Returns:
        Pairs of kind and instruction id, in the order of the kinds.
    """
    first, last = by_id(before), by_id(after)
    pools: dict[str, list[str]] = {kind: [] for kind, _ in _KINDS}
    for key in first:
        outcome = (_is_right(first[key]), _is_right(last[key]))
        pools[_KIND_OF[outcome]].append(key)
    rng = np.random.default_rng(seed)
    for pool in pools.values():
        rng.shuffle(pool)
    quotas = {kind: min(share, len(pools[kind])) for kind, share in _KINDS}
    for kind, _ in _KINDS:  # kinds with more to show make up for those with less
        quotas[kind] += min(number - sum(quotas.values()), len(pools[kind]) - quotas[kind])
    chosen = [(kind, key) for kind, _ in _KINDS for key in pools[kind][: quotas[kind]]]
    return chosen[:number]


def sample_lines(stages: Mapping[str, Stage], seed: int) -> list[str]:
    """Instructions with the answers of three policies; ``ok`` marks an exact match."""
    picked = pick_samples(stages["sft"].greedy, stages["ppo"].greedy, seed)
    rows = {name: by_id(stages[name].greedy) for name in ("base", "sft", "ppo")}
    lines = []
    for kind, key in picked:
        row = rows["sft"][key]
        lines.append(f"{render_prompt(row['prompt'])}  [{_text(row['reference'])}]  ({kind})")
        lines += [
            f"    {STAGES[name]:<9}  {_mark(answers[key])}  {_text(answers[key]['response'])}"
            for name, answers in rows.items()
        ]
    return lines


def _is_right(row: Row) -> bool:
    return bool(row["parts"].get("exact_match"))


def _mark(row: Row) -> str:
    return "ok" if _is_right(row) else "  "


def _text(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 70 else text[:67] + "..."


def write_report(folder: Path, sections: Mapping[str, str]) -> Path:
    """Writes ``report.md``: each section as preformatted text, with the learning curve."""
    parts = ["# Quickstart", "", "![Learning curve](learning_curve.png)", ""]
    for title, text in sections.items():
        fence = "`" * 4  # responses may hold three of them
        parts += [f"## {title}", "", fence + "text", text, fence, ""]
    path = folder / "report.md"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def summary_of(stages: Mapping[str, Stage]) -> dict[str, Any]:
    """The numbers of the comparison for ``summary.json``."""
    summary: dict[str, Any] = {"stages": {}, "differences": {}}
    for name, stage in stages.items():
        summary["stages"][name] = {
            "exact_match": _interval(stage.greedy.interval("exact_match")),
            "families": {
                family: intervals["exact_match"].mean
                for family, intervals in stage.greedy.families().items()
            },
            "greedy": stage.greedy.metrics(),
            "sampled": stage.sampled.metrics(),
            "train_s": stage.train_s,
        }
    for other in ("sft", "sft-best"):
        summary["differences"][f"ppo-{other}"] = vars(
            difference(stages["ppo"].greedy, stages[other].greedy)
        )
    return summary


def _interval(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}

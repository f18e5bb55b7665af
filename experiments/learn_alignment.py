"""A dual encoder from instructions with outputs: trained, calibrated, measured, told about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.envs.tasks.base import render_prompt
from instructrec.envs.tasks.partition import stable_hash
from instructrec.errors import DataError
from instructrec.experiments.alignment_stats import AlignmentReport, alignment_report, calibrate
from instructrec.experiments.learn_preferences import interval_metrics, of_the_choice, told
from instructrec.experiments.listing import markdown_table
from instructrec.experiments.preference_data import DemonstrationItem
from instructrec.experiments.reward_model_config import RewardModelConfig
from instructrec.experiments.reward_run import Items, Learned, policy_of
from instructrec.policies.scorer import load_scorer
from instructrec.rewards.alignment import MARKERS, AlignmentSettings
from instructrec.rl.alignment import (
    DualEncoder,
    embed_matches,
    encode_matches,
    same_matches,
    train_alignment,
)
from instructrec.rl.fitting import Surroundings
from instructrec.rl.reward_naming import VAL_LOSS

_LEAST = 4


def learn_alignment(
    config: RewardModelConfig, base: str, items: Items, around: Surroundings
) -> Learned:
    """Trains a dual encoder, calibrates its score on half of the held-out pairs, measures the rest.

    Raises:
        DataError: There are too few held-out pairs to calibrate and to measure.
    """
    halves = _halves(items[1])
    scorer = load_scorer(policy_of(config, base), head="none", seed=config.seed, markers=MARKERS)
    (train, limit), (held_out, _) = (
        encode_matches(scorer, _texts(part), config.fit.max_length) for part in items
    )
    dual = DualEncoder(scorer, config.alignment, config.fit.batch_size)
    result = train_alignment(
        dual, train, held_out, config.fit, config.alignment, seed=config.seed, around=around
    )
    if result.stopped == "interrupted":
        return Learned(result, {}, "", scorer.save, [], {})
    scorer.finish()  # what is measured is what is saved
    instructions, outputs = embed_matches(scorer, held_out, config.fit.eval_batch_size)
    cosine_NN, same_NN = instructions @ outputs.T, same_matches(held_out).numpy()
    first, second = (np.ix_(half, half) for half in halves)
    slope, intercept = calibrate(cosine_NN[first], same_NN[first])
    clusters = [items[1][i].instruction for i in halves[1]]
    report = alignment_report(cosine_NN[second], same_NN[second], clusters, slope, intercept)
    settings = AlignmentSettings(
        slope=slope,
        intercept=intercept,
        max_length=limit,
        scale=float(dual.scale),
        bias=float(dual.bias),
    )

    def save(folder: Path) -> None:
        scorer.save(folder)
        settings.write(folder)

    cut = sum(match.cut for match in (*train, *held_out))
    rows = [
        {
            "id": item.id,
            "prompt": item.prompt,
            "output": item.output,
            "cosine": float(value),
            "score": settings.score(float(value)),
        }
        for item, value in zip(items[1], cosine_NN.diagonal(), strict=True)
    ]
    return Learned(
        result,
        _metrics(report),
        _describe(report, settings, f"{cut} of {2 * (len(train) + len(held_out))}")
        + of_the_choice(config),
        save,
        rows,
        report.to_dict() | {"cut_texts": cut, "best_validation": {VAL_LOSS: result.best_score}},
    )


def _halves(items: Sequence[DemonstrationItem]) -> tuple[list[int], list[int]]:
    """Positions to calibrate on and to measure on; an instruction is in one of them alone."""
    order = sorted({item.instruction for item in items}, key=lambda text: stable_hash("half", text))
    chosen = set(order[: len(order) // 2])
    first = [i for i, item in enumerate(items) if item.instruction in chosen]
    second = [i for i, item in enumerate(items) if item.instruction not in chosen]
    if len(order) < _LEAST:
        raise DataError(
            f"{len(order)} held-out instructions: expected at least {_LEAST}, half of which "
            "calibrate the score. Raise task.options.validation_fraction, or name more held-out "
            "data in task.validation."
        )
    return first, second


def _texts(items: Sequence[DemonstrationItem]) -> list[tuple[str, str]]:
    return [(render_prompt(item.prompt), item.output) for item in items]


def _metrics(report: AlignmentReport) -> dict[str, float]:
    return {
        **interval_metrics("eval/pair_accuracy", report.accuracy),
        "eval/recall_at_1": report.recall_at_1.mean,
        "eval/calibration_error": report.calibration_error,
        "eval/score_mean": report.match_score,
        "eval/score_std": report.score_std,
    }


def _describe(report: AlignmentReport, settings: AlignmentSettings, cut: str) -> str:
    rows: list[tuple[str, str]] = [
        ("held-out pairs", str(report.pairs)),
        ("own output above a mismatched one", told(report.accuracy)),
        ("own output the best of all", told(report.recall_at_1)),
        ("score of a match", f"{report.match_score:.3f} on average"),
        ("score of a mismatch", f"{report.mismatch_score:.3f} on average"),
        ("calibration error", f"{report.calibration_error:.3f} at even odds"),
        ("score", f"σ({settings.slope:.3g} · cosine {settings.intercept:+.3g})"),
        ("texts cut", cut),
    ]
    curve: list[tuple[Any, ...]] = [("share", "score", "matches")]
    curve += [tuple(f"{value:.3f}" for value in row) for row in report.calibration]
    return "\n\n".join([markdown_table(rows), "Calibration by score.", markdown_table(curve)])

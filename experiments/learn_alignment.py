"""A dual encoder from instructions with outputs: trained, calibrated, measured, told about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instructrec.envs.tasks.base import render_prompt
from instructrec.envs.tasks.partition import stable_hash
from instructrec.errors import DataError
from instructrec.experiments.alignment_stats import (
    AlignmentReport,
    against_others,
    alignment_report,
    calibrate,
)
from instructrec.experiments.learn_preferences import interval_metrics
from instructrec.experiments.preference_data import DemonstrationItem, Parts
from instructrec.experiments.reward_model_config import RewardModelConfig
from instructrec.experiments.reward_run import Learned, policy_of
from instructrec.policies.scorer import Scorer, load_scorer
from instructrec.rewards.alignment import MARKERS, AlignmentSettings
from instructrec.rl.alignment import (
    DualEncoder,
    EncodedMatch,
    embed_matches,
    encode_matches,
    same_matches,
    train_alignment,
)
from instructrec.rl.fitting import Surroundings
from instructrec.rl.reward_naming import VAL_LOSS

_LEAST = 2


def learn_alignment(
    config: RewardModelConfig, base: str, items: Parts, around: Surroundings
) -> Learned:
    """Trains a dual encoder, calibrates its score, and measures it on what did neither.

    The test rows measure it and the validation rows calibrate the score; without test rows, half
    of the validation rows do either.

    Raises:
        DataError: There are too few held-out rows to calibrate and to measure.
    """
    calibrating, measured = _held_out(items)
    scorer = load_scorer(policy_of(config, base), head="none", seed=config.seed, markers=MARKERS)
    around = replace(around, start=scorer.frozen_hash())
    (train, limit), (validation, _), (first, _), (second, _) = (
        encode_matches(scorer, _texts(part), config.fit.max_length)
        for part in (items.train, items.validation, calibrating, measured)
    )
    dual = DualEncoder(scorer, config.alignment, config.fit.batch_size)
    result = train_alignment(
        dual, train, validation, config.fit, config.alignment, seed=config.seed, around=around
    )
    if result.stopped == "interrupted":
        return Learned(result, {}, scorer.save, [], {})
    scorer.finish()  # what is measured is what is saved
    slope, intercept = calibrate(*_similarities(scorer, first, config))
    cosine_NN, same_NN = _similarities(scorer, second, config)
    clusters = [item.instruction for item in measured]
    report = alignment_report(cosine_NN, same_NN, clusters, slope, intercept)
    settings = AlignmentSettings(
        slope=slope,
        intercept=intercept,
        max_length=limit,
        scale=float(dual.scale.detach()),
        bias=float(dual.bias.detach()),
    )

    def save(folder: Path) -> None:
        scorer.save(folder)
        settings.write(folder)

    every = [*train, *first, *second]
    told = {
        **report.to_dict(),
        **{"slope": slope, "intercept": intercept},
        **{"cut_texts": sum(match.cut for match in every), "texts": 2 * len(every)},
        "train_rows": len(train),
        "best_validation": {VAL_LOSS: result.best_score},
        **items.facts(config.fit.eval_every),
    }
    rows = _rows(measured, cosine_NN, same_NN, settings)
    return Learned(result, _metrics(report), save, rows, told)


def _held_out(items: Parts) -> tuple[list[DemonstrationItem], list[DemonstrationItem]]:
    """Rows to calibrate on and rows to measure on; an instruction is in one of them alone."""
    found = (items.validation, items.test) if items.test else _halves(items.validation)
    numbers = [len({item.instruction for item in part}) for part in found]
    if min(numbers) < _LEAST:
        raise DataError(
            f"{numbers[0]} held-out instructions to calibrate the score and {numbers[1]} to "
            f"measure it: expected at least {_LEAST} of either. Raise "
            "task.options.validation_fraction and test_fraction, or name more held-out data in "
            "task.validation and task.test."
        )
    return found


def _halves(
    items: Sequence[DemonstrationItem],
) -> tuple[list[DemonstrationItem], list[DemonstrationItem]]:
    order = sorted({item.instruction for item in items}, key=lambda text: stable_hash("half", text))
    chosen = set(order[: len(order) // 2])
    first = [item for item in items if item.instruction in chosen]
    return first, [item for item in items if item.instruction not in chosen]


def _similarities(
    scorer: Scorer, matches: Sequence[EncodedMatch], config: RewardModelConfig
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cosine of each instruction with each output, and where two rows are the same: (N, N) each."""
    instructions, outputs = embed_matches(scorer, matches, config.fit.eval_batch_size)
    return instructions @ outputs.T, same_matches(matches).numpy()


def _rows(
    items: Sequence[DemonstrationItem],
    cosine_NN: NDArray[np.float64],
    same_NN: NDArray[np.bool_],
    settings: AlignmentSettings,
) -> list[dict[str, Any]]:
    above_N, best_N = against_others(cosine_NN, same_NN)
    own = zip(cosine_NN.diagonal().tolist(), above_N.tolist(), best_N.tolist(), strict=True)
    return [
        {
            "id": item.id,
            "prompt": item.prompt,
            "output": item.output,
            "cosine": cosine,
            "score": settings.score(cosine),
            "above_others": above,
            "is_best": best,
        }
        for item, (cosine, above, best) in zip(items, own, strict=True)
    ]


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

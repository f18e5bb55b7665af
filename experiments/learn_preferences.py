"""A reward model from preferences: trained, measured on held-out pairs, and told about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructrec.errors import DataError
from instructrec.experiments.preference_data import PairItem, Parts
from instructrec.experiments.preference_stats import PairReport, pair_report
from instructrec.experiments.reward_model_config import RewardModelConfig
from instructrec.experiments.reward_run import Learned, policy_of
from instructrec.experiments.stats import Interval
from instructrec.policies.scorer import load_scorer
from instructrec.rewards.learned import record_normalisation
from instructrec.rl.fitting import Surroundings
from instructrec.rl.reward_modeling import (
    PairScores,
    Preference,
    encode_preferences,
    score_pairs,
    train_reward_model,
)


def learn_preferences(
    config: RewardModelConfig, base: str, items: Parts, around: Surroundings
) -> Learned:
    """Trains a score on pairs and measures it on the test pairs, else on the validation pairs.

    Raises:
        DataError: Margins are asked for and missing, or two responses are the same to the model.
    """
    scorer = load_scorer(policy_of(config, base), head="score", seed=config.seed)
    around = replace(around, start=scorer.frozen_hash())
    train, validation, test = (
        encode_preferences(scorer, _preferences(part, config), config.fit.max_length)
        for part in (items.train, items.validation, items.test)
    )
    pairs = [*train, *validation, *test]
    cut = sum(pair.cut for pair in pairs)
    result = train_reward_model(
        scorer, train, validation, config.fit, config.preference, seed=config.seed, around=around
    )
    if result.stopped == "interrupted":
        return Learned(result, {}, scorer.save, [], {})
    scorer.finish()  # what is measured is what is saved
    measured = items.measured()
    scores = score_pairs(scorer, test or validation, config.fit.eval_batch_size)
    report = _report(measured, scores)

    def save(folder: Path) -> None:
        scorer.save(folder)
        record_normalisation(folder, [*scores.chosen.tolist(), *scores.rejected.tolist()])

    return Learned(
        result,
        _metrics(report),
        save,
        _rows(measured, scores),
        report.to_dict()
        | {"cut_texts": cut, "texts": 2 * len(pairs), "train_rows": len(train)}
        | items.facts(config.fit.eval_every),
    )


def _preferences(items: Sequence[PairItem], config: RewardModelConfig) -> list[Preference]:
    lacking = [item.id for item in items if item.margin is None]
    if config.preference.margins and lacking:
        raise DataError(
            f"preference.margins is set, but {len(lacking)} pairs have no margin, for example "
            f"{lacking[0]!r}: expected a number in the column 'margin'. Set it to false, or add "
            "the column."
        )
    return [Preference(i.prompt, i.chosen, i.rejected, i.margin or 0.0) for i in items]


def _report(items: Sequence[PairItem], scores: PairScores) -> PairReport:
    margins = [item.margin for item in items]
    known = [margin for margin in margins if margin is not None]
    return pair_report(
        scores.chosen,
        scores.rejected,
        [item.instruction for item in items],
        chosen_length=[len(item.chosen) for item in items],
        rejected_length=[len(item.rejected) for item in items],
        margins=known if len(known) == len(margins) else None,
    )


def _metrics(report: PairReport) -> dict[str, float]:
    metrics = {
        **interval_metrics("eval/pair_accuracy", report.accuracy),
        "eval/pair_loss": report.loss,
        "eval/calibration_error": report.calibration_error,
        "eval/longer_wins": report.length.longer_wins.mean,
        "eval/model_prefers_longer": report.length.model_prefers_longer.mean,
        "eval/score_mean": report.score_mean,
        "eval/score_std": report.score_std,
    }
    if report.length.correlation is not None:
        metrics["eval/length_correlation"] = report.length.correlation
    return metrics


def interval_metrics(key: str, interval: Interval) -> dict[str, float]:
    """A mean and its interval under the usual keys."""
    return {
        f"{key}/mean": interval.mean,
        f"{key}/ci_low": interval.low,
        f"{key}/ci_high": interval.high,
    }


def _rows(items: Sequence[PairItem], scores: PairScores) -> list[dict[str, Any]]:
    return [
        {
            "id": item.id,
            "prompt": item.prompt,
            "chosen": item.chosen,
            "rejected": item.rejected,
            "margin": item.margin,
            "chosen_score": chosen,
            "rejected_score": rejected,
        }
        for item, chosen, rejected in zip(
            items, scores.chosen.tolist(), scores.rejected.tolist(), strict=True
        )
    ]

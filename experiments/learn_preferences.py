"""A reward model from preferences: trained, measured on held-out pairs, and told about."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec.errors import DataError
from instructrec.experiments.listing import markdown_table
from instructrec.experiments.preference_data import PairItem
from instructrec.experiments.preference_stats import Bin, PairReport, pair_report
from instructrec.experiments.reward_model_config import RewardModelConfig
from instructrec.experiments.reward_run import Items, Learned, policy_of
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
    config: RewardModelConfig, base: str, items: Items, around: Surroundings
) -> Learned:
    """Trains a score on pairs and measures it on the held-out ones.

    Raises:
        DataError: Margins are asked for and missing, or two responses are the same to the model.
    """
    scorer = load_scorer(policy_of(config, base), head="score", seed=config.seed)
    train, held_out = (
        encode_preferences(scorer, _preferences(part, config), config.fit.max_length)
        for part in items
    )
    cut = sum(pair.cut for pair in (*train, *held_out))
    result = train_reward_model(
        scorer, train, held_out, config.fit, config.preference, seed=config.seed, around=around
    )
    if result.stopped == "interrupted":
        return Learned(result, {}, "", scorer.save, [], {})
    scorer.finish()  # what is measured is what is saved
    scores = score_pairs(scorer, held_out, config.fit.eval_batch_size)
    report = _report(items[1], scores)

    def save(folder: Path) -> None:
        scorer.save(folder)
        record_normalisation(folder, [*scores.chosen.tolist(), *scores.rejected.tolist()])

    return Learned(
        result,
        _metrics(report),
        describe(report, cut, 2 * (len(train) + len(held_out))) + of_the_choice(config),
        save,
        _rows(items[1], scores),
        report.to_dict() | {"cut_texts": cut},
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


def describe(report: PairReport, cut: int, texts: int) -> str:
    """The report in words and tables (Markdown).

    Args:
        report: The numbers.
        cut: Texts of training and validation that were too long and lost tokens.
        texts: Texts in all.
    """
    length = report.length
    rows = [
        ("held-out pairs", ""),
        ("accuracy", f"{told(report.accuracy)} of {report.accuracy.n} pairs"),
        ("loss", f"{report.loss:.3f} nats (0.693 knows nothing)"),
        ("calibration error", f"{report.calibration_error:.3f}"),
        ("longer response preferred", f"in the data {told(length.longer_wins)}"),
        ("", f"by the model {told(length.model_prefers_longer)}"),
        ("accuracy where longer wins", _share(length.accuracy_when_longer_wins)),
        ("accuracy where shorter wins", _share(length.accuracy_when_shorter_wins)),
        (
            "correlation of score and length",
            f"{_share(length.correlation)} (by ranks {_share(length.rank_correlation)})",
        ),
        ("scores", f"mean {report.score_mean:.3f}, standard deviation {report.score_std:.3f}"),
        ("texts cut", f"{cut} of {texts}"),
    ]
    blocks = [
        markdown_table(rows),
        "Calibration: how sure it is of its own preferences, and how often they are right.",
        _bins(report.calibration, "sure"),
    ]
    if report.by_margin:
        blocks += ["Accuracy by the margin of the data.", _bins(report.by_margin, "margin")]
    return "\n\n".join(blocks)


def of_the_choice(config: RewardModelConfig) -> str:
    """A sentence for weights that were chosen by the data they are measured on; else nothing."""
    if not config.fit.eval_every:
        return ""
    return (
        "\n\nThe weights are those of the best validation (fit.eval_every) on the same data, which "
        "flatters these numbers a little."
    )


def told(interval: Interval) -> str:
    """A mean with its interval."""
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _bins(bins: Sequence[Bin], name: str) -> str:
    head = (name, "pairs", "sure", "right")
    return markdown_table(
        [head]
        + [
            (f"{b.low:.3g} to {b.high:.3g}", str(b.n), f"{b.predicted:.3f}", f"{b.accuracy:.3f}")
            for b in bins
        ]
    )

"""The metric keys of reward models; `instructrec.metrics` holds all keys."""

from __future__ import annotations

from instructrec.metric_definition import Metric

REWARD_MODEL_METRICS: tuple[Metric, ...] = (
    Metric("rm/step", "steps", "Optimizer steps of a reward model finished."),
    Metric(
        "rm/loss",
        "nats",
        "Its training loss: Bradley-Terry per pair (margins and centring included), or the sigmoid "
        "alignment loss per instruction.",
    ),
    Metric(
        "rm/accuracy",
        "1",
        "Share of the step's pairs whose preferred response scores more; of the alignment, share "
        "of the instructions whose own output is the most similar in the batch.",
    ),
    Metric("rm/margin", "score", "Mean score of the step's chosen responses less the rejected."),
    Metric("rm/val_loss", "nats", "The loss on validation pairs, without margins and centring."),
    Metric("rm/val_accuracy", "1", "The accuracy on validation pairs; a tie counts one half."),
    Metric("rm/lr", "1", "Learning rate of the reward model."),
    Metric("rm/grad_norm", "1", "L2 norm of the gradient before clipping."),
    Metric(
        "eval/pair_accuracy/mean",
        "1",
        "Share of held-out pairs whose preferred response a reward model scores more (a tie counts "
        "one half); of the alignment, of matching pairs above a mismatched output.",
    ),
    Metric("eval/pair_accuracy/ci_low", "1", "Lower end of its 95 % interval, by instruction."),
    Metric("eval/pair_accuracy/ci_high", "1", "Upper end of that interval."),
    Metric("eval/pair_loss", "nats", "The loss of a reward model on held-out pairs."),
    Metric(
        "eval/calibration_error",
        "1",
        "Expected calibration error of a reward model: mean distance of the probability that it "
        "gives to its preferences and their accuracy.",
    ),
    Metric("eval/longer_wins", "1", "Share of held-out pairs whose longer response is preferred."),
    Metric(
        "eval/model_prefers_longer", "1", "Share of them whose longer response the model prefers."
    ),
    Metric("eval/length_correlation", "1", "Pearson's correlation of score and length."),
    Metric("eval/score_mean", "score", "Mean score of a reward model on held-out responses."),
    Metric("eval/score_std", "score", "Standard deviation of these scores."),
    Metric(
        "eval/recall_at_1",
        "1",
        "Share of held-out instructions whose own output is the most "
        "similar among all held-out outputs.",
    ),
)
"""Training, and what was found on held-out pairs."""

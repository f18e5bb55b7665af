"""The metric keys of training on given answers: ``sft/...`` and ``dpo/...``."""

from __future__ import annotations

from instructrec.metric_definition import Metric

SUPERVISED_METRICS: tuple[Metric, ...] = (
    Metric("sft/step", "steps", "Optimizer steps of supervised training (sft, dpo) finished."),
    Metric("sft/loss", "nats/token", "Cross-entropy of the response tokens, or of the labels."),
    Metric("sft/val_loss", "nats/token", "The same on the validation demonstrations."),
    Metric("sft/accuracy", "1", "Share of the demonstrations whose label a head of labels gives."),
    Metric("sft/val_accuracy", "1", "The same on the validation demonstrations."),
    Metric("sft/lr", "1", "Learning rate of supervised training (sft, dpo)."),
    Metric("sft/grad_norm", "1", "L2 norm of its gradient before clipping."),
    Metric("dpo/loss", "nats/pair", "Negative log-likelihood of the preferences."),
    Metric("dpo/val_loss", "nats/pair", "The same on the validation pairs."),
    Metric(
        "dpo/accuracy",
        "1",
        "Share of the pairs whose chosen response has the larger implicit reward: beta times what "
        "its log-probability gained since the start. It says nothing before the first step.",
    ),
    Metric("dpo/val_accuracy", "1", "The same on the validation pairs."),
    Metric("dpo/margin", "nats", "Implicit reward of the chosen less that of the rejected, mean."),
    Metric("dpo/val_margin", "nats", "The same on the validation pairs."),
    Metric(
        "dpo/chosen_reward",
        "nats",
        "Mean implicit reward of the chosen responses: below 0 where they became less likely.",
    ),
    Metric("dpo/val_chosen_reward", "nats", "The same on the validation pairs."),
)
"""Their keys, in the order of the page."""

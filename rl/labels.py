"""Classification: a linear head on the policy's trunk learns which label a prompt gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from instructrec.errors import DataError
from instructrec.policies.flops import ModelCost, reader_cost
from instructrec.policies.labels import LabelPolicy
from instructrec.policies.trunk import pad_right
from instructrec.rl.fit_speed import lengths_of_texts
from instructrec.rl.fitting import FitResult, Surroundings
from instructrec.rl.sft import Demonstration
from instructrec.rl.speed import Lengths
from instructrec.rl.supervised import Evaluate, Objective, TrainingRow, fit
from instructrec.rl.supervised_config import SFTConfig


class Classification(Objective):
    """Mean cross-entropy of the labels (nats); notes the accuracy."""

    notes = ("accuracy",)
    policy: LabelPolicy

    def __init__(self, policy: LabelPolicy) -> None:
        super().__init__("sft", policy)

    def collate(self, rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
        """Prompts padded on the right, their lengths, and the numbers of their labels."""
        return {
            "input_ids": pad_right([row["input_ids"] for row in rows]),
            "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
            "targets": torch.tensor([row["target"] for row in rows]),
        }

    def loss(self, inputs: dict[str, Tensor], count: Tensor | int | None) -> Tensor:
        """See Objective.loss."""
        logits_BK = self.policy.logits(inputs["input_ids"], inputs["lengths"])
        self.note("accuracy", logits_BK.argmax(-1) == inputs["targets"])
        return cross_entropy(logits_BK, inputs["targets"])

    @property
    def cost(self) -> ModelCost | None:
        """The model under the head; None for an encoder."""
        return reader_cost(self.policy.model)

    def lengths(self, rows: Sequence[TrainingRow]) -> Lengths:
        """See Objective.lengths."""
        return lengths_of_texts([row["input_ids"] for row in rows])


def run_labels(
    policy: LabelPolicy,
    demonstrations: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    config: SFTConfig,
    *,
    seed: int,
    around: Surroundings,
    evaluate: Evaluate | None = None,
) -> FitResult:
    """Trains a policy to give the labels that demonstrations show.

    Args:
        policy: The policy; its head and its trained weights change in place. It ends with the
            weights of the best validation when ``config.eval_every`` is above 0, else the last.
        demonstrations: Prompts; each response is one of the policy's labels.
        validation: Demonstrations on which loss and accuracy are watched; not trained on.
        config: Settings.
        seed: Seed of the order.
        around: Whom to report to; its ``measure`` is set here.
        evaluate: Measures the policy when ``config.best_by`` is not the loss.

    Raises:
        CheckpointError: The checkpoint to go on from belongs to another run.
        ConfigError: Dropout is asked of a model that has none.
        DataError: There are no demonstrations, a response is no label, or there is nothing to
            validate on although it was asked for.
        NumericsError: The loss is not finite.
    """
    return fit(
        policy,
        Classification(policy),
        _encode(policy, demonstrations),
        _encode(policy, validation),
        config,
        seed=seed,
        around=around,
        evaluate=evaluate,
    )


def _encode(policy: LabelPolicy, demonstrations: Sequence[Demonstration]) -> list[TrainingRow]:
    numbers = {label: number for number, label in enumerate(policy.labels)}
    for demonstration in demonstrations:
        if demonstration.response not in numbers:
            raise DataError(
                f"{demonstration.response[:80]!r} is the label of "
                f"{str(demonstration.prompt)[:80]!r}, but the policy answers one of "
                f"{', '.join(map(repr, policy.labels))[:200]}: expected one of "
                "them. Give more sft.demonstrations, or correct the data."
            )
    prompts = policy.encode([each.prompt for each in demonstrations]) if demonstrations else []
    return [
        {"input_ids": ids, "target": numbers[each.response]}
        for ids, each in zip(prompts, demonstrations, strict=True)
    ]

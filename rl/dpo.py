"""Direct preference optimisation: pairs of responses, and no reward model.

Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward
Model". The implicit reward of a response is beta times what its log-probability gained since the
start; the loss is the cross-entropy of "the chosen one has the larger reward". The reference is
the policy as it starts, so its log-probs are taken once, before the first step, and no second
copy of the model is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from instructrec.policies.base import Prompt
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.flops import ModelCost, model_cost
from instructrec.policies.trunk import Trunk, pad_right
from instructrec.rl.fit_speed import lengths_of_texts
from instructrec.rl.fitting import FitResult, Surroundings
from instructrec.rl.sft import answered
from instructrec.rl.speed import Lengths
from instructrec.rl.supervised import (
    IGNORED,
    Evaluate,
    Objective,
    TrainingRow,
    fit,
    response_logprobs,
)
from instructrec.rl.supervised_config import DPOConfig


@dataclass(frozen=True)
class Pair:
    """An instruction, and two responses of which one is better."""

    prompt: Prompt
    """The instruction."""
    chosen: str
    """The better response."""
    rejected: str
    """The other one."""


def preference_loss(margin_B: Tensor, beta: float) -> Tensor:
    """The loss of each pair in nats: ``-log sigmoid(beta * margin)``, equation 7 of the paper.

    Args:
        margin_B: What the log-probability of the chosen response gained since the start, less
            what that of the rejected one gained (nats).
        beta: Scale of the implicit reward.
    """
    return -logsigmoid(beta * margin_B)


class Preference(Objective):
    """Mean loss of the pairs; notes accuracy, margin and the chosen responses' reward."""

    notes = ("accuracy", "margin", "chosen_reward")

    def __init__(self, policy: CausalLMPolicy, config: DPOConfig) -> None:
        super().__init__("dpo", policy)
        self.trunk, self.config = Trunk(policy.model), config

    def collate(self, rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
        """The chosen sequences, then the rejected ones; ``targets`` is not counted as tokens."""
        both = [row[kind] for kind in ("chosen", "rejected") for row in rows]
        prompts = [row["prompt_tokens"] for row in rows] * 2
        targets = [
            [IGNORED] * start + ids[start:] for ids, start in zip(both, prompts, strict=True)
        ]
        batch = {
            "input_ids": pad_right(both),
            "targets": pad_right(targets, IGNORED),
        }
        if "reference" in rows[0]:
            batch["reference"] = torch.tensor([row["reference"] for row in rows]).T
        return batch

    def loss(self, inputs: dict[str, Tensor], count: Tensor | int | None) -> Tensor:
        """See Objective.loss."""
        gain_2B = self.logprobs(inputs) - inputs["reference"]
        margin_B = gain_2B[0] - gain_2B[1]
        beta = self.config.beta
        self.note("accuracy", margin_B > 0)
        self.note("margin", beta * margin_B)
        self.note("chosen_reward", beta * gain_2B[0])
        return preference_loss(margin_B, beta).mean()

    @property
    def cost(self) -> ModelCost:
        """The model that is trained; its log-probs at the start are taken before the first step."""
        return model_cost(self.trunk)

    def lengths(self, rows: Sequence[TrainingRow]) -> Lengths:
        """See Objective.lengths."""
        both = [row[kind] for kind in ("chosen", "rejected") for row in rows]
        return lengths_of_texts(both, [row["prompt_tokens"] for row in rows] * 2)

    def logprobs(self, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probability of the chosen and of the rejected responses: (2, B)."""
        logprobs_N, row_N = response_logprobs(self.trunk, inputs["input_ids"], inputs["targets"])
        rows = inputs["input_ids"].shape[0]
        return logprobs_N.new_zeros(rows).index_add(0, row_N, logprobs_N).view(2, rows // 2)

    @torch.no_grad()
    def with_reference(self, rows: Sequence[TrainingRow], size: int) -> list[TrainingRow]:
        """The rows with the log-probs of the policy as it is now.

        Args:
            rows: Encoded pairs.
            size: Pairs in one pass.
        """
        self.policy.model.eval()
        found: list[TrainingRow] = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            batch = {k: v.to(self.policy.device) for k, v in self.collate(part).items()}
            with self.policy.autocast():
                of_pair = self.logprobs(batch).T.tolist()
            found += [{**row, "reference": pair} for row, pair in zip(part, of_pair, strict=True)]
        return found


def run_dpo(
    policy: CausalLMPolicy,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    config: DPOConfig,
    *,
    seed: int,
    around: Surroundings,
    evaluate: Evaluate | None = None,
) -> FitResult:
    """Trains a policy on preferences; the reference is the policy as it is given.

    Args:
        policy: The policy; its trained weights change in place. It ends with the weights of the
            best validation when ``config.eval_every`` is above 0, else with the last ones.
        pairs: What to learn from.
        validation: Pairs on which loss and accuracy are watched; not trained on.
        config: Settings.
        seed: Seed of the order.
        around: Whom to report to; its ``measure`` is set here.
        evaluate: Measures the policy when ``config.best_by`` is not the loss.

    Raises:
        CheckpointError: The checkpoint to go on from belongs to another run.
        ConfigError: Dropout is asked of a model that has none.
        DataError: There are no pairs, none to validate on although it was asked for, or one is
            longer than the window.
        NumericsError: The loss is not finite.
    """
    objective = Preference(policy, config)
    size = config.micro_batch_size or config.batch_size
    train, watched = (
        objective.with_reference(_encode(policy, given), size) for given in (pairs, validation)
    )
    return fit(
        policy, objective, train, watched, config, seed=seed, around=around, evaluate=evaluate
    )


def _encode(policy: CausalLMPolicy, pairs: Sequence[Pair]) -> list[TrainingRow]:
    prompts = policy.encode([pair.prompt for pair in pairs]) if pairs else []
    return [
        {
            "chosen": answered(policy, pair.prompt, ids, pair.chosen),
            "rejected": answered(policy, pair.prompt, ids, pair.rejected),
            "prompt_tokens": len(ids),
        }
        for ids, pair in zip(prompts, pairs, strict=True)
    ]

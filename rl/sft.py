"""Supervised fine-tuning on demonstrations, with TRL's ``SFTTrainer``.

The loss is on the responses alone, and so is the output layer. Prompts are encoded by the policy
itself, so that training and generation see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from instructrec.errors import DataError
from instructrec.policies.base import Prompt
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.flops import ModelCost, model_cost
from instructrec.policies.trunk import Trunk, pad_right
from instructrec.rl.fit_speed import lengths_of_texts
from instructrec.rl.fitting import FitResult, Surroundings
from instructrec.rl.speed import Lengths
from instructrec.rl.supervised import (
    IGNORED,
    Evaluate,
    Objective,
    TrainingRow,
    fit,
    response_logprobs,
)
from instructrec.rl.supervised_config import SFTConfig


@dataclass(frozen=True)
class Demonstration:
    """An instruction and the response that it should get."""

    prompt: Prompt
    """The instruction."""
    response: str
    """What the policy should answer, without special tokens."""


class Imitation(Objective):
    """Mean cross-entropy of the response tokens behind one optimizer step."""

    def __init__(self, policy: CausalLMPolicy) -> None:
        super().__init__("sft", policy)
        self.trunk = Trunk(policy.model)

    def collate(self, rows: Sequence[TrainingRow]) -> dict[str, Tensor]:
        """Token ids and labels, padded on the right."""
        return {
            "input_ids": pad_right([row["input_ids"] for row in rows]),
            "labels": pad_right([row["labels"] for row in rows], IGNORED),
        }

    def loss(self, inputs: dict[str, Tensor], count: Tensor | int | None) -> Tensor:
        """See Objective.loss."""
        logprobs_N, _ = response_logprobs(self.trunk, inputs["input_ids"], inputs["labels"])
        return -logprobs_N.sum() / (count or len(logprobs_N))

    @property
    def cost(self) -> ModelCost:
        """The model that is trained."""
        return model_cost(self.trunk)

    def lengths(self, rows: Sequence[TrainingRow]) -> Lengths:
        """See Objective.lengths."""
        prompts = [row["labels"].count(IGNORED) for row in rows]
        return lengths_of_texts([row["input_ids"] for row in rows], prompts)


def run_sft(
    policy: CausalLMPolicy,
    demonstrations: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    config: SFTConfig,
    *,
    seed: int,
    around: Surroundings,
    evaluate: Evaluate | None = None,
) -> FitResult:
    """Trains a policy on demonstrations.

    Args:
        policy: The policy; its trained weights change in place. It ends with the weights of the
            best validation when ``config.eval_every`` is above 0, else with the last ones.
        demonstrations: What to imitate.
        validation: Demonstrations on which the loss is watched; not trained on.
        config: Settings.
        seed: Seed of the order.
        around: Whom to report to; its ``measure`` is set here.
        evaluate: Measures the policy when ``config.best_by`` is not the loss.

    Raises:
        CheckpointError: The checkpoint to go on from belongs to another run.
        ConfigError: Dropout is asked of a model that has none.
        DataError: There are no demonstrations, none to validate on although it was asked for, or
            one is longer than the window.
        NumericsError: The loss is not finite.
    """
    return fit(
        policy,
        Imitation(policy),
        _encode(policy, demonstrations),
        _encode(policy, validation),
        config,
        seed=seed,
        around=around,
        evaluate=evaluate,
    )


def answered(
    policy: CausalLMPolicy, prompt: Prompt, prompt_ids: list[int], response: str
) -> list[int]:
    """Token ids of a prompt and a response, with the end token that is to be learned, too.

    Raises:
        DataError: Together they do not fit into the window.
    """
    ids = policy.tokenizer(response, add_special_tokens=False, verbose=False)["input_ids"]
    whole = [*prompt_ids, *ids, policy.eos_token_ids[0]]
    if len(whole) > policy.max_length:
        raise DataError(
            f"{str(prompt)[:80]!r} has {len(whole)} tokens with its response {response[:80]!r}, "
            f"and the model's window holds {policy.max_length}: expected rows that fit. Leave "
            "longer ones out with task.options.filters (max_prompt_tokens, max_reference_tokens), "
            "shorten them, or use a model with a longer window."
        )
    return whole


def _encode(
    policy: CausalLMPolicy, demonstrations: Sequence[Demonstration]
) -> list[dict[str, list[int]]]:
    """Token ids and labels; the prompt's labels are `IGNORED`, the end token is trained."""
    if not demonstrations:
        return []
    prompts = policy.encode([demonstration.prompt for demonstration in demonstrations])
    rows = []
    for prompt_ids, demonstration in zip(prompts, demonstrations, strict=True):
        ids = answered(policy, demonstration.prompt, prompt_ids, demonstration.response)
        labels = [IGNORED] * len(prompt_ids) + ids[len(prompt_ids) :]
        rows.append({"input_ids": ids, "labels": labels})
    return rows

"""Reward models from preferences: Bradley-Terry, with TRL's ``RewardTrainer``.

Texts are tokenised by the reward `learned` itself, so that training, validation and the reward of a
later run see the same tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from instructrec.errors import DataError
from instructrec.policies.base import Prompt
from instructrec.policies.cpu_passes import CPUPasses
from instructrec.policies.flops import reader_cost
from instructrec.policies.quiet import without_wandb_note
from instructrec.policies.scorer import Scorer
from instructrec.rewards.learned import encode_pair
from instructrec.rewards.local_models import Features, agree_on_padding, run_batches, text_limit
from instructrec.rl.fit_speed import FitWork, lengths_of_texts
from instructrec.rl.fitting import Fit, FitResult, Surroundings
from instructrec.rl.reward_config import FitConfig, PreferenceConfig
from instructrec.rl.reward_naming import VAL_ACCURACY, VAL_LOSS, reward_naming
from instructrec.rl.speed import Lengths
from instructrec.rl.trained import trained_of
from instructrec.rl.trl_bridge import quiet_settings

with without_wandb_note():
    from trl import RewardConfig, RewardTrainer

_WHO = "reward model"


@dataclass(frozen=True)
class Preference:
    """Two responses to an instruction, of which one is preferred."""

    prompt: Prompt
    """The instruction."""
    chosen: str
    """The preferred response."""
    rejected: str
    """The other one."""
    margin: float = 0.0
    """By how much, on a scale of the data's own."""


@dataclass(frozen=True)
class EncodedPair:
    """A preference as token ids."""

    chosen: Features
    """Instruction and preferred response."""
    rejected: Features
    """Instruction and the other response."""
    margin: float
    """As in the preference."""
    cut: int
    """How many of the two were too long and lost tokens."""


class PairScores:
    """Scores of N pairs.

    Args:
        chosen: (N,) scores of the preferred responses.
        rejected: (N,) scores of the others.
    """

    def __init__(self, chosen: Sequence[float], rejected: Sequence[float]) -> None:
        self.chosen: NDArray[np.float64] = np.asarray(chosen, dtype=np.float64)
        self.rejected: NDArray[np.float64] = np.asarray(rejected, dtype=np.float64)

    @property
    def right(self) -> NDArray[np.float64]:
        """(N,) 1 where the preferred response scores more, 0.5 where both score the same."""
        difference = self.chosen - self.rejected
        return np.where(difference == 0, 0.5, (difference > 0).astype(np.float64))

    def loss(self) -> float:
        """Mean of -log σ(chosen - rejected), in nats."""
        return float(np.mean(np.logaddexp(0.0, self.rejected - self.chosen)))


def encode_preferences(
    scorer: Scorer, preferences: Sequence[Preference], max_length: int | None
) -> list[EncodedPair]:
    """Tokenises pairs as the reward `learned` does.

    Raises:
        DataError: The two texts of a pair are the same to the model.
        ConfigError: ``max_length`` is more than the model reads.
        PolicyError: The tokenizer has no token to pad with.
    """
    tokenizer, config = scorer.tokenizer, scorer.model.config
    agree_on_padding(tokenizer, scorer.model, _WHO, str(config.name_or_path))
    limit = text_limit(tokenizer, config, max_length, _WHO)
    pairs = []
    for preference in preferences:
        chosen, cut_chosen = encode_pair(tokenizer, preference.prompt, preference.chosen, limit)
        rejected, cut_other = encode_pair(tokenizer, preference.prompt, preference.rejected, limit)
        if chosen == rejected:
            raise DataError(
                f"chosen and rejected are the same {limit} tokens to the model: "
                f"{preference.chosen[:80]!r} and {preference.rejected[:80]!r}. Leave the pair out, "
                "or raise fit.max_length."
            )
        pairs.append(EncodedPair(chosen, rejected, preference.margin, cut_chosen + cut_other))
    return pairs


def score_pairs(scorer: Scorer, pairs: Sequence[EncodedPair], batch_size: int) -> PairScores:
    """Scores pairs with the weights as they are; the model's mode stays."""
    training = scorer.model.training
    scorer.model.eval()
    with scorer.autocast():
        scores = run_batches(
            scorer.model,
            scorer.tokenizer,
            [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs],
            batch_size,
            lambda output, batch: output.logits[:, 0],
        )
    scorer.model.train(training)
    return PairScores(scores[: len(pairs)], scores[len(pairs) :])


def train_reward_model(
    scorer: Scorer,
    train: Sequence[EncodedPair],
    validation: Sequence[EncodedPair],
    config: FitConfig,
    preference: PreferenceConfig,
    *,
    seed: int,
    around: Surroundings,
) -> FitResult:
    """Fits a score to preferences.

    Args:
        scorer: A model with a score layer; its weights change in place.
        train: What to learn from.
        validation: What the weights are chosen by, where ``config.eval_every`` is above 0.
        config: How to fit.
        preference: The loss.
        seed: Seed of the order.
        around: Whom to report to; its ``measure`` is set here.

    Raises:
        DataError: There are no pairs.
        NumericsError: The loss is not finite.
        CheckpointError: The checkpoint belongs to another run.
    """
    if not train or (config.eval_every and not validation):
        raise DataError("there are no pairs to learn from, or none to validate on.")

    def measure(step: int) -> dict[str, float]:
        scores = score_pairs(scorer, validation, config.eval_batch_size)
        return {VAL_LOSS: scores.loss(), VAL_ACCURACY: float(scores.right.mean())}

    def make_trainer(rows: list[Any], settings: Mapping[str, Any], **kwargs: Any) -> RewardTrainer:
        with quiet_settings():
            arguments = RewardConfig(
                bf16=scorer.dtype == torch.bfloat16,
                max_length=None,
                disable_dropout=False,  # off already, but for that of adapters
                center_rewards_coefficient=preference.center_coef or None,
                **settings,
            )
        return _Trainer(
            model=scorer.model,
            args=arguments,
            data_collator=_Collator(scorer.tokenizer, margins=preference.margins),
            train_dataset=Dataset.from_list(rows),
            processing_class=scorer.tokenizer,
            **kwargs,
        )

    weights = trained_of(scorer.model)
    optimizer = torch.optim.AdamW(
        weights.values(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    around = dataclasses.replace(around, measure=measure if validation else None)
    fit = Fit(weights, optimizer, config, seed, around, reward_naming(config), work=_work(scorer))
    result = fit.run([_row(pair, preference.margin_scale) for pair in train], make_trainer)
    scorer.model.eval()
    return result


class _Trainer(RewardTrainer):
    """TRL's, which enters autocast inside of the model; attention is quick there as elsewhere."""

    def compute_loss_context_manager(self) -> ExitStack:
        """Returns the context in which the loss is computed."""
        stack = super().compute_loss_context_manager()
        if self.args.bf16 and self.args.use_cpu:
            stack.enter_context(CPUPasses())
        return stack


def _row(pair: EncodedPair, margin_scale: float) -> dict[str, Any]:
    """A pair as TRL expects one that is tokenised, with all that the tokenizer gave."""
    row: dict[str, Any] = {"margin": pair.margin * margin_scale}
    for side in ("chosen", "rejected"):
        features: Features = getattr(pair, side)
        row |= {f"{side}_{name.removeprefix('input_')}": v for name, v in features.items()}
    return row


def _work(scorer: Scorer) -> FitWork:
    """A pass reads both texts of its pairs."""

    def lengths(rows: Sequence[Mapping[str, Any]]) -> Lengths:
        sides = ("chosen_ids", "rejected_ids")
        return lengths_of_texts([row[side] for side in sides for row in rows])

    return FitWork(lengths, reader_cost(scorer.model), scorer.dtype, scorer.device)


class _Collator:
    """Pads as the tokenizer does; the chosen texts come before the rejected ones."""

    def __init__(self, tokenizer: Any, *, margins: bool) -> None:
        self.tokenizer, self.margins = tokenizer, margins

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        texts = []
        for side in ("chosen_", "rejected_"):
            for row in rows:
                texts.append(
                    {
                        name.replace(f"{side}ids", "input_ids").removeprefix(side): values
                        for name, values in row.items()
                        if name.startswith(side)
                    }
                )
        batch = dict(self.tokenizer.pad(texts, padding=True, return_tensors="pt"))
        if self.margins:
            batch["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float32)
        return batch

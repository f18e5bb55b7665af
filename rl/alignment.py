"""Dual encoders that learn which output belongs to which instruction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn

from instructrec.errors import DataError
from instructrec.policies.flops import reader_cost
from instructrec.policies.quiet import without_wandb_note
from instructrec.policies.scorer import Scorer
from instructrec.rewards.alignment import MARKERS, encode_marked, marked_states
from instructrec.rewards.local_models import Features, agree_on_padding, run_batches, text_limit
from instructrec.rl.alignment_loss import same_rows, sigmoid_alignment_loss
from instructrec.rl.fit_speed import FitWork, lengths_of_texts
from instructrec.rl.fitting import Fit, FitResult, Surroundings
from instructrec.rl.reward_config import AlignmentConfig, FitConfig
from instructrec.rl.reward_naming import VAL_ACCURACY, VAL_LOSS, reward_naming
from instructrec.rl.speed import Lengths
from instructrec.rl.trained import trained_of

with without_wandb_note():
    from transformers import Trainer, TrainingArguments

_WHO = "alignment model"
_SIDES = ("instruction", "output")


@dataclass(frozen=True)
class EncodedMatch:
    """An instruction and its output as token ids."""

    instruction: Features
    """The instruction, with its marker."""
    output: Features
    """The output, with its marker."""
    instruction_group: int
    """The same for the same instruction."""
    output_group: int
    """The same for the same output."""
    cut: int
    """How many of the two were too long and lost tokens."""


class DualEncoder(nn.Module):
    """One trunk that embeds both sides, and what maps their cosine to a logit.

    Args:
        scorer: The trunk, with the markers in its vocabulary.
        config: Where scale and bias start.
        batch_size: Pairs of a batch.
    """

    def __init__(self, scorer: Scorer, config: AlignmentConfig, batch_size: int) -> None:
        super().__init__()
        self.scorer = scorer
        self.trunk = scorer.model
        self._mismatches = max(batch_size - 1, 1)
        bias = -math.log(self._mismatches) if config.bias is None else config.bias
        self.log_scale = nn.Parameter(torch.tensor(math.log(config.scale), device=scorer.device))
        self.bias = nn.Parameter(torch.tensor(float(bias), device=scorer.device))

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine, above 0."""
        return self.log_scale.exp()

    @torch.no_grad()
    def start_at_odds_of(self, cosine_NN: Tensor, same_NN: Tensor) -> None:
        """Sets the bias so that the mean mismatch has the odds of a match among a batch.

        Vectors of a causal model all point the same way before training: without this the loss
        begins tens of nats too high, and what the first steps do to the trunk is left to the seed.

        Args:
            cosine_NN: Cosine of instruction (row) and output (column).
            same_NN: True where two rows have the same instruction or the same output.
        """
        mismatched = cosine_NN[~same_NN]
        if len(mismatched):
            start = -math.log(self._mismatches) - float(self.scale) * float(mismatched.mean())
            self.bias.fill_(start)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns (b, H) vectors of length 1 of a padded batch of texts."""
        with self.scorer.autocast():
            output = self.trunk(**batch)
        vectors: Tensor = marked_states(output, batch)
        return vectors


def encode_matches(
    scorer: Scorer, pairs: Sequence[tuple[str, str]], max_length: int | None
) -> tuple[list[EncodedMatch], int]:
    """Tokenises (instruction, output) pairs as the reward `alignment` does.

    Returns:
        The pairs, and the longest text in tokens that the model is given.

    Raises:
        ConfigError: ``max_length`` is more than the model reads.
        PolicyError: The tokenizer has no token to pad with.
    """
    tokenizer, config = scorer.tokenizer, scorer.model.config
    agree_on_padding(tokenizer, scorer.model, _WHO, str(config.name_or_path))
    limit = text_limit(tokenizer, config, max_length, _WHO)
    groups: dict[str, int] = {}
    found = []
    for instruction, output in pairs:
        (first, cut), (second, cut_output) = (
            encode_marked(tokenizer, text, marker, limit)
            for text, marker in zip((instruction, output), MARKERS, strict=True)
        )
        found.append(
            EncodedMatch(
                first,
                second,
                groups.setdefault(" ".join(instruction.casefold().split()), len(groups)),
                groups.setdefault(" ".join(output.casefold().split()), len(groups)),
                cut + cut_output,
            )
        )
    return found, limit


def embed_matches(
    scorer: Scorer, matches: Sequence[EncodedMatch], batch_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Embeds both sides with the weights as they are: twice (N, H), vectors of length 1."""
    training = scorer.model.training
    scorer.model.eval()
    with scorer.autocast():
        sides = [
            run_batches(
                scorer.model,
                scorer.tokenizer,
                [getattr(match, side) for match in matches],
                batch_size,
                marked_states,
            )
            for side in _SIDES
        ]
    scorer.model.train(training)
    instructions, outputs = (np.array(side, dtype=np.float64) for side in sides)
    return instructions, outputs


def same_matches(matches: Sequence[EncodedMatch]) -> Tensor:
    """Returns (N, N): whether two pairs share the instruction or the output."""
    return same_rows(
        torch.tensor([match.instruction_group for match in matches]),
        torch.tensor([match.output_group for match in matches]),
    )


def train_alignment(
    dual: DualEncoder,
    train: Sequence[EncodedMatch],
    validation: Sequence[EncodedMatch],
    config: FitConfig,
    alignment: AlignmentConfig,
    *,
    seed: int,
    around: Surroundings,
) -> FitResult:
    """Fits a dual encoder to pairs of instruction and output.

    Args:
        dual: The encoder; its weights change in place.
        train: What to learn from.
        validation: What the weights are chosen by, where ``config.eval_every`` is above 0.
        config: How to fit.
        alignment: The rate of scale and bias.
        seed: Seed of the order.
        around: Whom to report to; its ``measure`` is set here.

    Raises:
        DataError: There are fewer than two pairs on a side that is used.
        NumericsError: The loss is not finite.
        CheckpointError: The checkpoint belongs to another run.
    """
    if len(train) < 2 or (config.eval_every and len(validation) < 2):
        raise DataError("alignment needs two pairs or more to learn from, and to validate on.")

    def make_trainer(rows: list[Any], settings: Mapping[str, Any], **kwargs: Any) -> Trainer:
        return _AlignmentTrainer(
            model=dual,
            args=TrainingArguments(**settings),
            data_collator=_Collator(dual.scorer.tokenizer),
            train_dataset=Dataset.from_list(rows),
            **kwargs,
        )

    def measure(step: int) -> dict[str, float]:
        return _measure(dual, validation, config)

    if alignment.bias is None:
        few = train[: config.batch_size]
        sides = embed_matches(dual.scorer, few, config.eval_batch_size)
        dual.start_at_odds_of(torch.tensor(sides[0] @ sides[1].T), same_matches(few))
    weights = trained_of(dual)
    own = [dual.log_scale, dual.bias]
    trunk = [p for p in weights.values() if not any(p is mine for mine in own)]
    groups: list[dict[str, Any]] = [
        {"params": trunk, "lr": config.learning_rate},
        {"params": own, "lr": alignment.learning_rate, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    around = dataclasses.replace(around, measure=measure if len(validation) > 1 else None)
    work = FitWork(_lengths, reader_cost(dual.trunk), dual.scorer.dtype, dual.scorer.device)
    fit = Fit(weights, optimizer, config, seed, around, reward_naming(config), work=work)
    result = fit.run([dataclasses.asdict(match) for match in train], make_trainer)
    dual.eval()
    return result


@torch.no_grad()
def _measure(
    dual: DualEncoder, matches: Sequence[EncodedMatch], config: FitConfig
) -> dict[str, float]:
    """Loss and accuracy on batches of the size of the training's, the last one smaller."""
    instructions, outputs = embed_matches(dual.scorer, matches, config.eval_batch_size)
    cosine_NN = torch.tensor(instructions @ outputs.T)
    same_NN = same_matches(matches)
    losses, right = [], []
    for first in range(0, len(matches), config.batch_size):
        part = slice(first, min(first + config.batch_size, len(matches)))
        cosine, same = cosine_NN[part, part], same_NN[part, part]
        loss = sigmoid_alignment_loss(cosine, same, dual.scale.cpu(), dual.bias.cpu())
        losses.append(float(loss) * len(cosine))
        right += best_is_own(cosine, same).tolist()
    return {VAL_LOSS: sum(losses) / len(matches), VAL_ACCURACY: float(np.mean(right))}


def best_is_own(cosine_BB: Tensor, same_BB: Tensor) -> Tensor:
    """Returns (B,) booleans: whether no mismatched output is as similar as the own one."""
    mismatch_BB = cosine_BB.masked_fill(same_BB, -math.inf)  # the own pair is the same, too
    return cosine_BB.diagonal() > mismatch_BB.max(1).values


def _lengths(rows: Sequence[Mapping[str, Any]]) -> Lengths:
    """What the passes over some pairs read."""
    return lengths_of_texts([row[side]["input_ids"] for side in _SIDES for row in rows])


class _Collator:
    """Pads both sides of a batch."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for side in _SIDES:
            texts = [{k: v for k, v in row[side].items() if v is not None} for row in rows]
            batch[side] = dict(self.tokenizer.pad(texts, padding=True, return_tensors="pt"))
            batch[f"{side}_group"] = torch.tensor([row[f"{side}_group"] for row in rows])
        return batch


class _AlignmentTrainer(Trainer):
    """A trainer of transformers with the sigmoid loss."""

    _accuracy = math.nan

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a batch."""
        dual: Any = self.accelerator.unwrap_model(model)
        instructions_BH, outputs_BH = (model(inputs[side]) for side in _SIDES)
        cosine_BB = instructions_BH @ outputs_BH.T
        same_BB = same_rows(inputs["instruction_group"], inputs["output_group"])
        self._accuracy = float(best_is_own(cosine_BB.detach(), same_BB).float().mean())
        loss = sigmoid_alignment_loss(cosine_BB, same_BB, dual.scale, dual.bias)
        return (loss, {"loss": loss}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the accuracy of the batch to its loss."""
        super().log(logs | ({"accuracy": self._accuracy} if "loss" in logs else {}), start_time)

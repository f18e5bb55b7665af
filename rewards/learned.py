"""A reward that a trained model gives: the logit of a sequence-classification model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructrec.errors import ConfigError, DataError
from instructrec.rewards.local_models import Features, ModelReward, TextModel, label_index
from instructrec.rewards.text import (
    completion_messages,
    completion_text,
    prompt_messages,
    prompt_text,
)
from instructrec.template_trial import try_template

NORMALISATION_FILE = "reward_normalisation.json"
"""Beside the model: the mean and standard deviation of its scores on known responses."""


class LearnedReward(ModelReward):
    """Scores an instruction and its response with a reward model or any other text classifier.

    The score is the raw logit, so it has no fixed range; or (logit - mean) / std, with a mean and
    standard deviation that were recorded once and stay the same during a run. The text is built as
    TRL's reward trainer builds it: the tokenizer's chat template where it has one; a text pair for
    encoders (tokenizers with a separator token); else instruction, response and end token in a row.

    Args:
        path: Folder of the model and its tokenizer, a run of `instructrec train-reward`, or a
            hub id.
        batch_size: Responses per forward pass.
        max_length: Longest text in tokens, at most what the model can read (the default). Longer
            texts lose their beginning (of a text pair: the end of the longer text), and are
            counted in ``truncated`` and ``reward/<name>/truncated_frac``.
        label: Whose logit is the score, as a name or an index; needed when the model has several.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        normalise: Whether to use the mean and std that `instructrec train-reward` (or
            ``record_normalisation``) wrote beside the model.
        mean: Given instead, together with ``std``.
        std: Given instead, together with ``mean``; above 0.

    Raises:
        ConfigError: When the folder or the recorded numbers do not exist, or a number is wrong.
    """

    __name__ = "learned"

    def __init__(
        self,
        path: str,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        label: str | int | None = None,
        device: str = "auto",
        normalise: bool = False,
        mean: float | None = None,
        std: float | None = None,
    ) -> None:
        super().__init__(path, batch_size, max_length, device)
        self.label = label
        self.mean, self.std = _normalisation(self.path, normalise, mean, std)
        known = (mean, std) if mean is not None and std is not None else recorded(self.path)
        self.known_scores = known and ((known[0] - self.mean) / self.std, known[1] / self.std)
        """Mean and standard deviation of its scores on responses that it knows; None where they
        were not recorded."""

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Returns the scores of B responses; ``**columns`` are not read.

        Raises:
            PolicyError: When the model cannot be loaded or has no trained classification head.
            ConfigError: When ``label`` or ``max_length`` does not fit the model.
        """
        if self._loaded is None:
            self._loaded = PairClassifier(self, self.label)
        logits = self._loaded.logits([*zip(prompts, completions, strict=True)])
        return [(logit - self.mean) / self.std for logit in logits]


class PairClassifier(TextModel):
    """A loaded sequence-classification model that reads an instruction and a response.

    Args:
        reward: The reward that it belongs to.
        label: Whose logit is read.

    Raises:
        PolicyError, ConfigError: As for ``LearnedReward``.
    """

    def __init__(self, reward: ModelReward, label: str | int | None) -> None:
        super().__init__(reward, "AutoModelForSequenceClassification")
        try_template(self.tokenizer, reward.path)
        self.column = label_index(self.model.config, label, reward)

    def logits(self, pairs: Sequence[tuple[Any, Any]]) -> list[float]:
        """Returns one logit per (prompt, completion), in the order given."""
        encoded = self.encode_pairs(pairs)
        return self.run(encoded, lambda output, batch: output.logits[:, self.column])

    def encode_pairs(self, pairs: Sequence[tuple[Any, Any]]) -> list[Features]:
        """Tokenises (prompt, completion) pairs; those that are too long are cut and counted.

        Raises:
            ValueError: When a pair holds no tokens.
        """
        found = [encode_pair(self.tokenizer, p, c, self.max_length) for p, c in pairs]
        self.reward.count_truncated([cut for _, cut in found], self.max_length)
        return [features for features, _ in found]


def encode_pair(
    tokenizer: Any, prompt: Any, completion: Any, max_length: int
) -> tuple[Features, bool]:
    """Tokenises an instruction and its response as one text (see `LearnedReward`).

    Args:
        tokenizer: The model's tokenizer.
        prompt: The instruction, as text or messages.
        completion: The response, as text or messages.
        max_length: Longest text in tokens.

    Returns:
        The tokens, and whether some had to be left out.

    Raises:
        ValueError: There are none.
    """
    features = _features(tokenizer, prompt, completion)
    size = len(features["input_ids"])
    if not size:
        raise ValueError("the instruction and the response hold no tokens.")
    if size <= max_length:
        return features, False
    if not tokenizer.chat_template and tokenizer.sep_token is not None:
        cut = _features(tokenizer, prompt, completion, truncation=True, max_length=max_length)
        return cut, True
    # The end holds the response and the token whose logit is read. A first token that marks
    # the beginning stays where the model expects it.
    head = int(features["input_ids"][0] == tokenizer.bos_token_id and max_length > 1)
    start = size - max_length + head
    return {name: values[:head] + values[start:] for name, values in features.items()}, True


def _features(tokenizer: Any, prompt: Any, completion: Any, **settings: Any) -> Features:
    encoded: Any
    if tokenizer.chat_template:
        messages = prompt_messages(prompt) + completion_messages(completion)
        encoded = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)
    elif tokenizer.sep_token is not None:
        texts = prompt_text(prompt), completion_text(completion)
        encoded = tokenizer(*texts, verbose=False, **settings)
    else:
        text, end = prompt_text(prompt) + completion_text(completion), tokenizer.eos_token or ""
        encoded = tokenizer(text if text.endswith(end) else text + end, verbose=False)
    return {name: list(values) for name, values in encoded.items()}


def record_normalisation(path: str | Path, scores: Sequence[float]) -> tuple[float, float]:
    """Writes the mean and standard deviation of a model's scores into its folder.

    Args:
        path: Folder of the model.
        scores: Its raw logits on responses that stand for what it will see, e.g. demonstrations.

    Returns:
        The mean and the (population) standard deviation.

    Raises:
        DataError: When there are fewer than two scores, or they do not differ, or one is not
            finite.
    """
    size = len(scores)
    mean = sum(scores) / size if size else math.nan
    std = math.sqrt(sum((score - mean) ** 2 for score in scores) / size) if size else math.nan
    if size < 2 or not math.isfinite(std) or std == 0:
        raise DataError(
            f"{size} scores with mean {mean:g} and standard deviation {std:g} cannot normalise a "
            "reward; expected at least two finite scores that differ."
        )
    values = {"mean": mean, "std": std, "scores": size}
    (Path(path) / NORMALISATION_FILE).write_text(json.dumps(values) + "\n", encoding="utf-8")
    return mean, std


def recorded(path: str) -> tuple[float, float] | None:
    """Mean and standard deviation that were recorded beside a model; None where none can be read.

    Args:
        path: Its folder.
    """
    try:
        return _recorded(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _recorded(path: str) -> tuple[float, float]:
    try:
        values = json.loads((Path(path) / NORMALISATION_FILE).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    mean, std = float(values["mean"]), float(values["std"])
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"mean {mean} and std {std}: expected finite numbers, std above 0")
    return mean, std


def _normalisation(
    path: str, wanted: bool, mean: float | None, std: float | None
) -> tuple[float, float]:
    if wanted and (mean is not None or std is not None):
        raise ConfigError("reward 'learned': give normalise, or mean and std, and not both.")
    if wanted:
        try:
            return _recorded(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            file = Path(path) / NORMALISATION_FILE
            raise ConfigError(
                f"reward 'learned': normalise = true needs {file} with a mean and a std "
                f"({type(error).__name__}: {error}). Write it by record_normalisation of "
                "instructrec.rewards.learned, or set mean and std."
            ) from None
    if (mean is None) != (std is None):
        raise ConfigError("reward 'learned': mean and std belong together; one of them is missing.")
    if mean is None or std is None:
        return 0.0, 1.0
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ConfigError(
            f"reward 'learned': mean = {mean}, std = {std}: expected finite numbers, std above 0."
        )
    return mean, std

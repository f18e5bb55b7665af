"""A reward that is the probability of a class, e.g. of a good mood or of toxic text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from instructrec.errors import ConfigError
from instructrec.rewards.base import FailedScore, Status
from instructrec.rewards.learned import PairClassifier
from instructrec.rewards.local_models import ModelReward
from instructrec.rewards.text import completion_text


class ClassifierReward(ModelReward):
    """The probability that a text classifier gives to one label, or one minus it.

    The softmax over the labels; the sigmoid for a classifier with one label or with labels that do
    not exclude each other (``problem_type: multi_label_classification``).

    Args:
        path: Folder of the model and its tokenizer, or a hub id.
        label: Name or index of the label; needed when the model has several.
        sense: ``positive`` rewards the label, ``negative`` its absence (for toxicity).
        with_prompt: Whether the model reads the instruction too, as ``learned`` does it. By
            default it reads the response alone.
        batch_size: Responses per forward pass.
        max_length: Longest text in tokens, at most what the model can read (the default). Longer
            responses lose their end, and are counted in ``truncated`` and
            ``reward/<name>/truncated_frac``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: When the folder does not exist or a number is not positive.
    """

    __name__ = "classifier"

    def __init__(
        self,
        path: str,
        *,
        label: str | int | None = None,
        sense: Literal["positive", "negative"] = "positive",
        with_prompt: bool = False,
        batch_size: int = 16,
        max_length: int | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(path, batch_size, max_length, device)
        self.label = label
        self.sense = sense
        self.with_prompt = with_prompt

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Returns B probabilities; a ``FailedScore`` for a response without a token.

        Raises:
            PolicyError: When the model cannot be loaded or has no trained classification head.
            ConfigError: When ``label`` or ``max_length`` does not fit the model, or the model gives
                scores and no classes.
        """
        if self._loaded is None:
            self._loaded = _Probabilities(self, self.label)
        if self.with_prompt:
            return self._loaded.of_pairs([*zip(prompts, completions, strict=True)])
        return self._loaded.of_texts([completion_text(c) for c in completions])


class _Probabilities(PairClassifier):
    def __init__(self, reward: ClassifierReward, label: str | int | None) -> None:
        super().__init__(reward, label)
        self.negative = reward.sense == "negative"
        problem = self.model.config.problem_type
        if problem == "regression":
            raise ConfigError(
                f"reward 'classifier': {reward.path!r} gives a score and no classes "
                "(problem_type: regression); use the reward 'learned'."
            )
        self.independent = self.model.config.num_labels == 1 or (
            problem is not None and (problem.startswith("multi_label"))
        )

    def of_texts(self, texts: Sequence[str]) -> list[float]:
        encoded = self.encode_texts(texts)
        filled = [i for i, features in enumerate(encoded) if features["input_ids"]]
        scores: list[float] = [
            FailedScore(Status.RAISED, "the response holds no tokens") for _ in texts
        ]
        for i, score in zip(
            filled, self.run([encoded[i] for i in filled], self._read), strict=True
        ):
            scores[i] = score
        return scores

    def of_pairs(self, pairs: Sequence[tuple[Any, Any]]) -> list[float]:
        return self.run(self.encode_pairs(pairs), self._read)

    def _read(self, output: Any, batch: Any) -> Any:
        logits = output.logits.float()
        every = logits.sigmoid() if self.independent else logits.softmax(-1)
        return 1 - every[:, self.column] if self.negative else every[:, self.column]

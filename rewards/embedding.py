"""Embeddings of texts, and a reward for saying the same in other words: the cosine of two."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, Literal

from instructrec.rewards.local_models import ModelReward, TextModel
from instructrec.rewards.text import completion_text, reference_texts


class TextEncoder(ModelReward):
    """Texts as vectors of length 1, by a local model of any kind that transformers can load.

    Args:
        path: Folder of an encoder and its tokenizer (BERT, a causal language model,
            a sentence-transformers folder with the model at its top, ...), or a hub id.
        pooling: ``mean`` of the last hidden states over the tokens, or that of the first token
            (``cls``); what the encoder was trained with.
        batch_size: Texts per forward pass.
        max_length: Longest text in tokens, at most what the model can read (the default). Longer
            texts lose their end, and are counted in ``truncated``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: When the folder does not exist or a number is not positive.
    """

    __name__ = "encoder"
    kind = "text encoder"
    role = "model"

    def __init__(
        self,
        path: str,
        *,
        pooling: Literal["mean", "cls"] = "mean",
        batch_size: int = 32,
        max_length: int | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(path, batch_size, max_length, device)
        self.pooling = pooling

    @property
    def size(self) -> int:
        """Numbers in an embedding; asking loads the model.

        Raises:
            PolicyError: When the model cannot be loaded.
        """
        return int(self._model().model.config.get_text_config().hidden_size)

    def vectors(self, texts: Sequence[str]) -> dict[str, list[float]]:
        """Returns the embedding of each text.

        Args:
            texts: Distinct texts. One without tokens gets zeros: a right angle to every other.

        Returns:
            Text -> ``size`` numbers, a vector of length 1.

        Raises:
            PolicyError: When the model cannot be loaded.
        """
        self.last_truncated = []
        if not texts:
            return {}
        encoded = self._model().encode_texts(texts)
        rows = iter(self._loaded.run([e for e in encoded if e["input_ids"]], self._pooled))
        nothing = [0.0] * self.size
        return {
            text: next(rows) if features["input_ids"] else nothing
            for text, features in zip(texts, encoded, strict=True)
        }

    def _model(self) -> TextModel:
        if self._loaded is None:
            # Its own pooling layer is not read, and many encoders come without one.
            self._loaded = TextModel(self, "AutoModel", unused=("pooler.",))
        loaded: TextModel = self._loaded
        return loaded

    def _pooled(self, output: Any, batch: Any) -> Any:
        import torch

        states = output.last_hidden_state.float()  # (b, T, H)
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(pooled, dim=-1)


class EmbeddingSimilarity(TextEncoder):
    """How similar the embedding of a response is to that of an expected answer.

    The cosine c of the two embeddings, mapped to [0, 1]: ``shift`` gives (1 + c) / 2, which never
    is flat; ``clip`` gives max(c, 0), which calls everything unrelated 0. Of several expected
    answers the most similar one counts. A blank response scores 0.

    Args:
        path: Folder of an encoder and its tokenizer (BERT, a sentence-transformers folder with the
            model at its top, ...), or a hub id.
        pooling: ``mean`` of the last hidden states over the tokens, or that of the first token
            (``cls``); what the encoder was trained with.
        scale: ``shift`` or ``clip``.
        batch_size: Texts per forward pass.
        max_length: Longest text in tokens, at most what the model can read (the default). Longer
            texts lose their end, and are counted in ``truncated`` and
            ``reward/<name>/truncated_frac``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: When the folder does not exist or a number is not positive.
    """

    __name__ = "embedding_similarity"
    role = "reward"

    def __init__(
        self,
        path: str,
        *,
        pooling: Literal["mean", "cls"] = "mean",
        scale: Literal["shift", "clip"] = "shift",
        batch_size: int = 32,
        max_length: int | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(
            path, pooling=pooling, batch_size=batch_size, max_length=max_length, device=device
        )
        self.scale = scale

    def __call__(
        self,
        completions: Sequence[Any],
        reference: Sequence[str | Sequence[str] | None],
        **columns: Any,
    ) -> list[float | None]:
        """Scores B responses.

        Args:
            completions: B responses.
            reference: B expected answers, each a string or several acceptable strings; blank ones
                are left out.
            **columns: Not read.

        Returns:
            B scores in [0, 1]; None where the sample has no expected answer that is not blank.

        Raises:
            DataError: When a reference is not text.
            PolicyError: When the encoder cannot be loaded.
        """
        texts = [completion_text(completion) for completion in completions]
        answers = [
            [a for a in reference_texts(r, self.__name__, i) or () if a.strip()]
            for i, r in enumerate(reference)
        ]
        pairs = [
            (i, a)
            for i, (text, listed) in enumerate(zip(texts, answers, strict=True))
            for a in listed
            if text.strip()
        ]
        scores: list[float | None] = [0.0 if listed else None for listed in answers]
        distinct = sorted({t for i, a in pairs for t in (texts[i], a)})
        vectors = self.vectors(distinct)
        cut = {*compress(distinct, self.last_truncated)}
        self.last_truncated = [
            not cut.isdisjoint([text, *listed]) for text, listed in zip(texts, answers, strict=True)
        ]
        for i, answer in pairs:
            known, one, other = scores[i] or 0.0, vectors[texts[i]], vectors[answer]
            cosine = sum(x * y for x, y in zip(one, other, strict=True))
            scores[i] = max(known, self._mapped(cosine))
        return scores

    def _mapped(self, cosine: float) -> float:
        value = (1 + cosine) / 2 if self.scale == "shift" else cosine
        return min(max(value, 0.0), 1.0)

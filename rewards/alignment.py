"""A reward for belonging together: the calibrated similarity of instruction and output."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from instructrec.errors import ConfigError, PolicyError
from instructrec.rewards.local_models import Features, ModelReward, TextModel
from instructrec.rewards.text import completion_text, prompt_text

ALIGNMENT_FILE = "alignment.json"
"""Beside the weights: what makes a plain text model a dual encoder."""
MARKERS = ("<|instruction|>", "<|output|>")
"""Special tokens behind an instruction and behind an output; their state is the embedding."""


@dataclass(frozen=True)
class AlignmentSettings:
    """What a dual encoder is, beside its weights."""

    slope: float
    """Factor from the cosine to the logit of the calibrated score, 0 or more."""
    intercept: float
    """What is added to it."""
    max_length: int
    """Longest text in tokens, marker included, in training."""
    scale: float
    """Factor of the cosine in the loss, as learned."""
    bias: float
    """Bias of the loss, as learned."""
    format_version: int = 1
    """Version of this file."""

    def score(self, cosine: float) -> float:
        """The probability that the output belongs to the instruction, at even odds: (0, 1)."""
        logit = self.slope * cosine + self.intercept
        return 1.0 / (1.0 + math.exp(-min(max(logit, -700.0), 700.0)))

    def write(self, folder: Path) -> None:
        """Writes them beside the weights."""
        text = json.dumps(asdict(self), indent=1) + "\n"
        (folder / ALIGNMENT_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, folder: str, who: str) -> AlignmentSettings:
        """Reads them.

        Raises:
            ConfigError: They are missing, or of another version.
        """
        file = Path(folder) / ALIGNMENT_FILE
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values["format_version"] != 1:
                raise ValueError(f"format_version is {values['format_version']}, expected 1")
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"{who}: {folder!r} is no alignment model ({type(error).__name__}: {error}): "
                f"expected a folder with {ALIGNMENT_FILE}, as `instructrec train-reward` with "
                "algorithm alignment writes it."
            ) from None


def encode_marked(tokenizer: Any, text: str, marker: str, max_length: int) -> tuple[Features, bool]:
    """Tokenises a text with a marker behind it; one that is too long loses its end.

    Returns:
        The tokens, and whether some had to be left out.
    """
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    found = tokenizer(text, verbose=False)
    cut = len(found["input_ids"]) >= max_length
    if cut:
        found = tokenizer(text, truncation=True, max_length=max_length - 1)
    filling = {"input_ids": tokenizer.convert_tokens_to_ids(marker), "attention_mask": 1}
    return {name: [*values, filling.get(name, 0)] for name, values in found.items()}, cut


def marked_states(output: Any, batch: Any) -> Any:
    """The last hidden state at the marker, as vectors of length 1.

    Args:
        output: Of a model of transformers, over texts that are padded on the right.
        batch: Its input.

    Returns:
        (b, H) float32.
    """
    import torch

    last_b = batch["attention_mask"].sum(1) - 1
    states = output.last_hidden_state[torch.arange(len(last_b), device=last_b.device), last_b]
    return torch.nn.functional.normalize(states.float(), dim=-1)


class AlignmentReward(ModelReward):
    """How well a response belongs to its instruction, by a dual encoder.

    The encoder embeds instruction and response apart; the score is the calibrated probability that
    the two belong together rather than the response to another instruction, at even odds. A blank
    response scores 0. Train one by ``instructrec train-reward`` with ``algorithm: alignment``.

    Args:
        path: Folder of the model, or the run folder that trained it.
        batch_size: Texts per forward pass.
        max_length: Longest text in tokens, marker included; None for that of the training. Longer
            texts lose their end, and are counted in ``truncated`` and
            ``reward/<name>/truncated_frac``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: The folder is no alignment model, or a number is not positive.
    """

    __name__ = "alignment"
    kind = "text encoder"

    def __init__(
        self,
        path: str,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        device: str = "auto",
    ) -> None:
        super().__init__(path, batch_size, max_length, device)
        self.settings = AlignmentSettings.read(self.path, self.who)
        self.limit = max_length or self.settings.max_length

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Returns the scores of B responses in [0, 1]; ``**columns`` are not read.

        Raises:
            PolicyError: The model cannot be loaded.
        """
        asked = [prompt_text(prompt) for prompt in prompts]
        given = [completion_text(completion) for completion in completions]
        instructions, cut_asked = self._embed(asked, MARKERS[0])
        outputs, cut_given = self._embed([text for text in given if text.strip()], MARKERS[1])
        self.last_truncated = [
            a in cut_asked or b in cut_given for a, b in zip(asked, given, strict=True)
        ]
        return [
            self.settings.score(cosine(instructions[a], outputs[b])) if b.strip() else 0.0
            for a, b in zip(asked, given, strict=True)
        ]

    def rank(self, prompt: Any, candidates: Sequence[Any]) -> list[int]:
        """Returns the positions of the candidates, the one that belongs best first.

        Args:
            prompt: An instruction, as text or messages.
            candidates: Outputs to choose from, as text or messages.
        """
        scores = self([prompt] * len(candidates), candidates)
        return sorted(range(len(scores)), key=lambda i: -scores[i])

    def embed_instructions(self, prompts: Sequence[Any]) -> list[list[float]]:
        """Returns a vector of length 1 for each instruction, to search with."""
        texts = [prompt_text(prompt) for prompt in prompts]
        found, _ = self._embed(texts, MARKERS[0])
        return [found[text] for text in texts]

    def embed_outputs(self, completions: Sequence[Any]) -> list[list[float]]:
        """Returns a vector of length 1 for each output, to be found."""
        texts = [completion_text(completion) for completion in completions]
        found, _ = self._embed(texts, MARKERS[1])
        return [found[text] for text in texts]

    def _embed(self, texts: Sequence[str], marker: str) -> tuple[dict[str, list[float]], set[str]]:
        """Text -> its vector, and the texts that were cut."""
        distinct = sorted(set(texts))
        if not distinct:
            return {}, set()
        model = self._model()
        encoded = [encode_marked(model.tokenizer, text, marker, self.limit) for text in distinct]
        cut = [was_cut for _, was_cut in encoded]
        self.count_truncated(cut, self.limit)
        rows = model.run([features for features, _ in encoded], marked_states)
        return dict(zip(distinct, rows, strict=True)), {*compress(distinct, cut)}

    def _model(self) -> TextModel:
        if self._loaded is None:
            loaded = TextModel(self, "AutoModel", unused=("pooler.",))
            known = loaded.tokenizer.get_vocab()
            if not set(MARKERS) <= known.keys():
                raise PolicyError(
                    f"{self.who}: the tokenizer in {self.path!r} lacks the special tokens "
                    f"{' and '.join(MARKERS)}: expected the one that the training wrote."
                )
            self._loaded = loaded
        model: TextModel = self._loaded
        return model


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Cosine of two vectors of length 1."""
    return sum(x * y for x, y in zip(one, other, strict=True))

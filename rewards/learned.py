"""A reward that a trained model gives: the logit of a sequence-classification model.

torch and transformers are imported when the first batch is scored, not before.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec.errors import ConfigError, PolicyError, did_you_mean
from instructrec.rewards.text import (
    completion_messages,
    completion_text,
    prompt_messages,
    prompt_text,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LearnedReward:
    """Scores an instruction and its response with a reward model or any other text classifier.

    The score is the raw logit, so it has no fixed range. The text is built as TRL's reward trainer
    builds it: the tokenizer's chat template where it has one; a text pair for encoders (tokenizers
    with a separator token); else instruction, response and end token in a row.

    The model is loaded when the first batch is scored and stays behind when the reward is pickled
    or copied.

    Args:
        path: Folder of the model and its tokenizer, or a hub id.
        batch_size: Responses per forward pass.
        max_length: Longest text in tokens, at most what the model can read (the default). Longer
            texts lose their beginning (of a text pair: the end of the longer text), and are
            counted in ``truncated``.
        label: Whose logit is the score, as a name or an index; needed when the model has several.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: When the folder does not exist or a number is not positive.
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
    ) -> None:
        self.path = _check_path(path)
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and value < 1:
                raise ConfigError(f"reward 'learned': {name} = {value}: expected at least 1.")
        self.batch_size = batch_size
        self.max_length = max_length
        self.label = label
        self.device = device
        self.truncated = 0
        """Texts that were cut so far."""
        self._loaded: _Classifier | None = None

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Returns the logits of B responses; ``**columns`` are not read.

        Raises:
            PolicyError: When the model cannot be loaded or has no trained classification head.
            ConfigError: When ``label`` or ``max_length`` does not fit the model.
        """
        if self._loaded is None:
            self._loaded = _Classifier(self.path, self.max_length, self.label, self.device)
        pairs = zip(prompts, completions, strict=True)
        encoded, cut = self._loaded.encode([*pairs])
        if cut and not self.truncated:
            warnings.warn(
                f"reward 'learned': {cut} of {len(encoded)} texts are longer than "
                f"{self._loaded.max_length} tokens and were cut.",
                stacklevel=2,
            )
        self.truncated += cut
        return self._loaded.logits(encoded, self.batch_size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}


class _Classifier:
    """A loaded model with its tokenizer."""

    def __init__(
        self, path: str, max_length: int | None, label: str | int | None, device: str
    ) -> None:
        from instructrec.devices import pick_device

        self.tokenizer, self.model = _load(path)
        self.model.to(pick_device(device))  # type: ignore[arg-type]
        self.model.eval()
        _agree_on_padding(self.tokenizer, self.model, path)
        self.column = _label_index(self.model.config, label, path)
        self.max_length = _text_limit(self.tokenizer, self.model.config, max_length)

    def encode(self, pairs: Sequence[tuple[Any, Any]]) -> tuple[list[dict[str, list[int]]], int]:
        """Tokenises (prompt, completion) pairs; returns unpadded features and how many were cut."""
        encoded, cut = [], 0
        for prompt, completion in pairs:
            features = self._features(prompt, completion)
            size = len(features["input_ids"])
            if not size:
                raise ValueError("the instruction and the response hold no tokens.")
            if size > self.max_length:
                features = self._shortened(features, prompt, completion)
                cut += 1
            encoded.append(features)
        return encoded, cut

    def logits(self, encoded: Sequence[Mapping[str, list[int]]], batch_size: int) -> list[float]:
        """Returns one logit per text, in the order given."""
        import torch

        scores = [0.0] * len(encoded)
        for rows in _similar_lengths(encoded, batch_size):
            batch = self.tokenizer.pad(
                [dict(encoded[i]) for i in rows], padding=True, return_tensors="pt"
            )
            with torch.inference_mode():
                logits = self.model(**batch.to(self.model.device)).logits[:, self.column]
            for i, score in zip(rows, logits.float().tolist(), strict=True):
                scores[i] = score
        return scores

    def _features(self, prompt: Any, completion: Any, **settings: Any) -> dict[str, list[int]]:
        tokenizer = self.tokenizer
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

    def _shortened(
        self, features: dict[str, list[int]], prompt: Any, completion: Any
    ) -> dict[str, list[int]]:
        if not self.tokenizer.chat_template and self.tokenizer.sep_token is not None:
            return self._features(prompt, completion, truncation=True, max_length=self.max_length)
        # The end holds the response and the token whose logit is read. A first token that marks
        # the beginning stays where the model expects it.
        ids = features["input_ids"]
        head = int(ids[0] == self.tokenizer.bos_token_id and self.max_length > 1)
        start = len(ids) - self.max_length + head
        return {name: values[:head] + values[start:] for name, values in features.items()}


def _load(path: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise PolicyError(
            f"reward 'learned': {path!r} cannot be loaded as a sequence-classification model: "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers fills them with random numbers, which would be a random reward
        raise PolicyError(
            f"reward 'learned': {path!r} lacks the trained weights {', '.join(missing[:5])} "
            f"({len(missing)} in all); it is no sequence-classification model. Train a reward "
            "model from it first."
        )
    return tokenizer, model


def _agree_on_padding(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: str
) -> None:
    """Makes model and tokenizer pad with one token, on the right.

    Decoder models read the logit at the last token that is not their padding token.
    """
    config = model.config.get_text_config()
    candidates = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((token for token in candidates if token is not None and token >= 0), None)
    if pad is None:
        raise PolicyError(
            f"reward 'learned': the tokenizer in {path!r} has neither a padding nor an end token; "
            "set one of them and save the tokenizer again."
        )
    config.pad_token_id = pad
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "right"


def _label_index(config: Any, label: str | int | None, path: str) -> int:
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    if isinstance(label, str) and label in names:
        return names.index(label)
    raise ConfigError(
        f"reward 'learned': label = {label!r}, but {path!r} has {len(names)} labels: "
        f"{', '.join(names)}. Set label to one of them or its index."
        f"{did_you_mean(str(label), names)}"
    )


def _text_limit(tokenizer: Any, config: Any, max_length: int | None) -> int:
    """Returns the longest text in tokens that the model reads and the user wants."""
    windows = (
        tokenizer.model_max_length,
        getattr(config.get_text_config(), "max_position_embeddings", None),
    )
    window = min((w for w in windows if w), default=max_length or 512)
    if max_length is not None and max_length > window:
        raise ConfigError(
            f"reward 'learned': max_length = {max_length}, but the model reads {window} tokens."
        )
    return max_length or window


def _check_path(path: str) -> str:
    folder = Path(path).expanduser()
    if path.strip() and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"reward 'learned': {path!r} is no model folder (it has no config.json)."
            )
        return str(folder)
    # One slash at most and nothing like a path: it may be the id of a model on the hub.
    if (
        folder.is_absolute()
        or path.startswith((".", "~"))
        or path.count("/") > 1
        or not path.strip()
    ):
        raise ConfigError(
            f"reward 'learned': no folder {path!r}; expected the folder of a "
            "sequence-classification model, or a hub id."
        )
    return path


def _similar_lengths(
    encoded: Sequence[Mapping[str, list[int]]], batch_size: int
) -> Iterator[list[int]]:
    """Yields positions in batches of similar length, so that little padding is computed."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]

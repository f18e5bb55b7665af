"""What rewards and encoders that run a model have in common: its folder, loading, batches.

torch and transformers are imported when the first batch is scored, not before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from instructrec.errors import ConfigError, PolicyError, did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Features = dict[str, list[int]]
"""One tokenised text: ``input_ids``, ``attention_mask`` and what else the tokenizer gives."""


class ModelReward:
    """Base class of a reward that a model computes.

    The model is loaded when the first batch is scored and stays behind when the reward is pickled
    or copied.

    Args:
        path: Folder of the model and its tokenizer, or a hub id.
        batch_size: Texts per forward pass.
        max_length: Longest text in tokens; None for what the model can read.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: When the folder does not exist or a number is not positive.
    """

    __name__ = "model"
    kind: ClassVar[str] = "sequence-classification model"
    """What the folder must hold, for the errors."""
    exported: ClassVar[str] = "reward_model"
    """Folder of the model in a run folder that trained one."""
    role: ClassVar[str] = "reward"
    """What it is, for the errors."""

    def __init__(self, path: str, batch_size: int, max_length: int | None, device: str) -> None:
        self.path = self.identity_path = self._check_path(path)
        for name, value in (("batch_size", batch_size), ("max_length", max_length)):
            if value is not None and value < 1:
                raise ConfigError(f"{self.who}: {name} = {value}: expected at least 1.")
        self.batch_size = batch_size
        self.max_length = max_length
        self.device = device
        self.truncated = 0
        """Texts that were cut so far."""
        self.last_truncated: list[bool] = []
        """Which texts (of an embedding: responses) of the last call were cut."""
        self._loaded: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    @property
    def who(self) -> str:
        """How errors call it."""
        return f"{self.role} {self.__name__!r}"

    def count_truncated(self, cut: list[bool], limit: int) -> None:
        """Counts texts that were cut, with a warning the first time.

        Args:
            cut: Which texts of this batch.
            limit: The longest text, in tokens.
        """
        if any(cut) and not self.truncated:
            warnings.warn(
                f"{self.who}: {sum(cut)} of {len(cut)} texts are longer than {limit} "
                "tokens and were cut.",
                stacklevel=3,
            )
        self.truncated += sum(cut)
        self.last_truncated = cut

    def _check_path(self, path: str) -> str:
        folder = Path(path).expanduser()
        if (folder / self.exported / "config.json").is_file():
            folder = folder / self.exported
        if path.strip() and folder.is_dir():
            if not (folder / "config.json").is_file():
                raise ConfigError(
                    f"{self.who}: {path!r} is no model folder (it has no config.json)."
                )
            return str(folder)
        # One slash at most and nothing like a path: it may be the id of a model on the hub.
        looks_like_path = folder.is_absolute() or path.startswith((".", "~"))
        if looks_like_path or path.count("/") > 1 or not path.strip():
            raise ConfigError(
                f"{self.who}: no folder {path!r}; expected the folder of a "
                f"{self.kind}, or a hub id."
            )
        return path


class TextModel:
    """A loaded model with its tokenizer.

    Args:
        reward: The reward that it belongs to.
        auto_class: Class of transformers that loads it.
        unused: Beginnings of the names of weights that may be missing, because they are not used.

    Raises:
        PolicyError: When it cannot be loaded or weights are missing.
        ConfigError: When the reward's ``max_length`` does not fit.
    """

    def __init__(self, reward: ModelReward, auto_class: str, unused: tuple[str, ...] = ()) -> None:
        from instructrec.devices import pick_device

        self.reward = reward
        self.tokenizer, self.model = _load(reward, auto_class, unused)
        self.model.to(pick_device(reward.device))  # type: ignore[arg-type]
        self.model.eval()
        agree_on_padding(self.tokenizer, self.model, reward.who, reward.path)
        self.max_length = text_limit(
            self.tokenizer, self.model.config, reward.max_length, reward.who
        )

    def encode_texts(self, texts: Sequence[str]) -> list[Features]:
        """Tokenises single texts; those that are too long lose their end and are counted."""
        encoded, cut = [], []
        for text in texts:
            text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
            features = self.tokenizer(text, verbose=False)
            cut.append(len(features["input_ids"]) > self.max_length)
            if cut[-1]:
                features = self.tokenizer(text, truncation=True, max_length=self.max_length)
            encoded.append({name: list(values) for name, values in features.items()})
        self.reward.count_truncated(cut, self.max_length)
        return encoded

    def run(
        self, encoded: Sequence[Features], read: Callable[[Any, Any], torch.Tensor]
    ) -> list[Any]:
        """Runs the model over tokenised texts of at least one token each.

        Args:
            encoded: N texts.
            read: From the model's output and its input to one row per text, (b, ...).

        Returns:
            N rows as plain lists or numbers, in the order given.
        """
        return run_batches(self.model, self.tokenizer, encoded, self.reward.batch_size, read)


def run_batches(
    model: Any,
    tokenizer: Any,
    encoded: Sequence[Features],
    batch_size: int,
    read: Callable[[Any, Any], torch.Tensor],
) -> list[Any]:
    """Runs a model over tokenised texts of at least one token each, shortest first.

    Args:
        model: In evaluation mode.
        tokenizer: Pads on the right with the token that the model takes for padding.
        encoded: N texts.
        batch_size: Texts per forward pass.
        read: From the model's output and its input to one row per text, (b, ...).

    Returns:
        N rows as plain lists or numbers, in the order given.
    """
    import torch

    rows: list[Any] = [None] * len(encoded)
    for chosen in _similar_lengths(encoded, batch_size):
        batch = tokenizer.pad(
            [dict(encoded[i]) for i in chosen], padding=True, return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            values = read(model(**batch), batch)
        for i, value in zip(chosen, values.float().tolist(), strict=True):
            rows[i] = value
    return rows


def label_index(config: Any, label: str | int | None, reward: ModelReward) -> int:
    """Returns the position of a label in a classifier's output.

    Raises:
        ConfigError: When there is no such label, or none is given and there are several.
    """
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, int) and 0 <= label < len(names):
        return label
    if isinstance(label, str) and label in names:
        return names.index(label)
    raise ConfigError(
        f"{reward.who}: label = {label!r}, but {reward.path!r} has {len(names)} "
        f"labels: {', '.join(names)}. Set label to one of them or its index."
        f"{did_you_mean(str(label), names)}"
    )


def _load(
    reward: ModelReward, auto_class: str, unused: tuple[str, ...]
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    import torch
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(reward.path, trust_remote_code=False)
        model, report = getattr(transformers, auto_class).from_pretrained(
            reward.path,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except Exception as error:
        raise PolicyError(
            f"{reward.who}: {reward.path!r} cannot be loaded as a {reward.kind}: "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
    if missing:  # transformers fills them with random numbers, which would be a random reward
        raise PolicyError(
            f"{reward.who}: {reward.path!r} lacks the trained weights "
            f"{', '.join(missing[:5])} ({len(missing)} in all); it is no {reward.kind}. Train one "
            "from it first."
        )
    return tokenizer, model


def agree_on_padding(tokenizer: Any, model: Any, who: str, path: str) -> None:
    """Makes model and tokenizer pad with one token, on the right.

    Decoder models read the logit at the last token that is not their padding token.

    Args:
        tokenizer: Changed in place.
        model: Its configuration is changed in place.
        who: What the model is for, for the error.
        path: Where it is from, for the error.

    Raises:
        PolicyError: The tokenizer has no token to pad with.
    """
    config = model.config.get_text_config()
    candidates = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    pad = next((token for token in candidates if token is not None and token >= 0), None)
    if pad is None:
        raise PolicyError(
            f"{who}: the tokenizer in {path!r} has neither a padding "
            "nor an end token; set one of them and save the tokenizer again."
        )
    config.pad_token_id = pad
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    tokenizer.padding_side = "right"


def text_limit(tokenizer: Any, config: Any, wanted: int | None, who: str) -> int:
    """Returns the longest text in tokens that the model reads and the user wants.

    Raises:
        ConfigError: The model does not read as many.
    """
    windows = (
        tokenizer.model_max_length,
        getattr(config.get_text_config(), "max_position_embeddings", None),
    )
    window = min((w for w in windows if w), default=wanted or 512)
    if wanted is not None and wanted > window:
        raise ConfigError(f"{who}: max_length = {wanted}, but the model reads {window} tokens.")
    return wanted or window


def _similar_lengths(
    encoded: Sequence[Mapping[str, list[int]]], batch_size: int
) -> Iterator[list[int]]:
    """Yields positions in batches of similar length, so that little padding is computed."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]

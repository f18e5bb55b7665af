"""Models that read texts instead of writing them: the trunk of any model, with or without a score.

A reward model is a sequence classifier with one label, a dual encoder is the trunk alone. Both
start from a policy's own trunk, from another decoder, or from an encoder.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from instructrec.devices import pick_device, pick_dtype
from instructrec.errors import ConfigError, PolicyError
from instructrec.policies.chat import ChatEncoder
from instructrec.policies.config import PolicyConfig
from instructrec.policies.cpu_passes import quick_passes
from instructrec.policies.loading import (
    KNOWN_NAMES,
    Loaded,
    load_source,
    put_adapter,
    reward_model_folder,
)
from instructrec.policies.model_policy import hash_of, let_others_read
from instructrec.policies.quiet import quiet_transformers
from instructrec.policies.training_parts import choose_trained_weights
from instructrec.template_trial import try_template

Head = Literal["score", "none"]
"""A sequence classifier with one label, or the trunk alone."""


@dataclass
class Scorer:
    """A model that reads texts, and how it is trained."""

    model: Any
    """On its device, in float32; wrapped by PEFT where adapters train."""
    tokenizer: Any
    """Its tokenizer; of a decoder, with a chat template that puts the system message in."""
    dtype: torch.dtype
    """Compute precision."""

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = self.model.device
        return device

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The compute precision for forward passes."""
        if self.dtype == torch.float32:
            yield
            return
        with torch.autocast(self.device.type, dtype=self.dtype), quick_passes(self.device):
            yield

    def frozen_hash(self) -> str:
        """Returns the SHA-256 of the weights that do not train, and of their names.

        What was drawn anew is left out, as not all machines draw the same; it trains.
        """
        trained = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
        return hash_of(
            {
                name: weight
                for name, weight in self.model.state_dict().items()
                if name not in trained and "original_module" not in name.split(".")
            }
        )

    def finish(self) -> None:
        """Ends training: adapters become weights, and passes are in float32, as after loading."""
        if hasattr(self.model, "merge_and_unload"):
            self.model = self.model.merge_and_unload()
        self.model.eval()
        self.dtype = torch.float32

    def save(self, folder: Path) -> None:
        """Writes a plain Hugging Face folder, adapters merged: weights, tokenizer, settings."""
        self.finish()
        folder.mkdir(parents=True, exist_ok=True)
        with quiet_transformers():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        let_others_read(folder)


def load_scorer(
    config: PolicyConfig, *, head: Head, seed: int, markers: tuple[str, ...] = ()
) -> Scorer:
    """Loads a trunk and decides what of it trains; a score layer always trains.

    Args:
        config: The base: a policy or another causal language model, a reward model (which is
            trained on), or an encoder; what trains; the system message of decoders.
        head: What stands on the trunk. A new score layer is drawn as its architecture draws it.
        seed: Seed of a new score layer and of new adapters; torch's own random state stays.
        markers: Special tokens that the vocabulary is to have; new ones start as their names read.

    Raises:
        PolicyError: There is no such model, or it cannot be trained.
        ConfigError: A setting does not fit it.
    """
    if config.quantization is not None:
        raise ConfigError(
            f"policy.quantization = {config.quantization!r}: a model that scores is trained in "
            "full precision. Set policy.quantization: null."
        )
    loaded = _load_base(config, head, seed)
    _add_markers(loaded, markers, seed)
    model = choose_trained_weights(loaded, config, seed)
    for name, parameter in model.named_parameters():
        if _is_head(name):
            parameter.requires_grad_(True)
    device = pick_device(config.device)
    model.to(device)
    return Scorer(model, loaded.tokenizer, pick_dtype(config.dtype, device))


def _add_markers(loaded: Loaded, markers: tuple[str, ...], seed: int) -> None:
    """Adds special tokens; each starts as the mean of the tokens that spell its name.

    What a drawn vector says to the layers above it would be left to the seed, and where embeddings
    do not train it would stay so.
    """
    tokenizer, model = loaded.tokenizer, loaded.model
    new = [marker for marker in markers if marker not in tokenizer.get_vocab()]
    if not new:
        return
    names = [re.sub(r"\W+", " ", marker).strip() for marker in new]
    spelled = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
    tokenizer.add_tokens([AddedToken(m, normalized=False) for m in new], special_tokens=True)
    size = max(tokenizer.get_vocab().values()) + 1
    if size > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model.resize_token_embeddings(size, mean_resizing=False)
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        for marker, ids in zip(tokenizer.convert_tokens_to_ids(new), spelled, strict=True):
            if ids:
                weight[marker] = weight[ids].mean(0)


def _is_head(name: str) -> bool:
    """Whether a weight belongs to a score layer, in one of the ways to call it."""
    parts = name.split(".")
    return "original_module" not in parts and bool({"score", "classifier"} & {*parts})


def _load_base(config: PolicyConfig, head: Head, seed: int) -> Loaded:
    folder = Path(reward_model_folder(config.model)).expanduser()
    if _is_causal(config, folder):
        loaded = load_source(config.model, revision=config.revision, seed=seed)
        model = loaded.model
        if loaded.adapter is not None:
            model = put_adapter(model, loaded.adapter, trainable=False).merge_and_unload()
        window = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 2**30)
        encoder = ChatEncoder(
            loaded.tokenizer, system_prompt=config.system_prompt, max_length=window
        )
        loaded.tokenizer.chat_template = encoder.template
        model = _with_score(model, seed) if head == "score" else model.base_model
        return Loaded(model, loaded.tokenizer, loaded.base)
    if config.system_prompt:
        raise ConfigError(
            f"policy.system_prompt = {config.system_prompt!r}, but {config.model!r} reads no chat: "
            "set it to ''."
        )
    return _load_reader(str(folder if folder.is_dir() else config.model), config, head, seed)


def _is_causal(config: PolicyConfig, folder: Path) -> bool:
    """Whether the base is a model that writes, of which the trunk is to be taken."""
    name = config.model
    if name in KNOWN_NAMES or name.partition("@")[0] in KNOWN_NAMES:
        return True
    if folder.is_dir() and not (folder / "config.json").is_file():
        return True  # a run folder or an adapter; load_source says what else is wrong
    try:
        with quiet_transformers():
            found = AutoConfig.from_pretrained(
                str(folder if folder.is_dir() else name),
                revision=config.revision or "main",
                trust_remote_code=False,
            )
    except (OSError, ValueError):
        return True  # no model at all, which load_source explains
    names: Any = getattr(found, "architectures", None) or [""]
    if names[0].endswith("ForCausalLM"):
        return True
    writes = type(found) in MODEL_FOR_CAUSAL_LM_MAPPING and not names[0]
    return writes and not found.model_type.startswith("bert")


def _with_score(causal: Any, seed: int) -> Any:
    """Puts a fresh score layer on the trunk of a causal language model."""
    config = copy.deepcopy(causal.config)
    config.num_labels, config.architectures = 1, None
    try:
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            torch.default_generator.manual_seed(seed)
            model: Any = AutoModelForSequenceClassification.from_config(config)
        prefix = model.base_model_prefix
        setattr(model, prefix, causal.base_model)
    except (ValueError, AttributeError) as error:
        raise PolicyError(
            f"transformers knows no sequence classifier for {type(causal).__name__} ({error}): "
            "expected a model such as Llama, Qwen or SmolLM."
        ) from error
    return model.eval()


def _load_reader(path: str, config: PolicyConfig, head: Head, seed: int) -> Loaded:
    """Loads an encoder, or a reward model to train on."""
    options: dict[str, Any] = {"trust_remote_code": False, "revision": config.revision or "main"}
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            try_template(tokenizer, config.model)  # a reward model that is trained on has one
            kind: Any = AutoModelForSequenceClassification if head == "score" else AutoModel
            if head == "score":
                options |= {"num_labels": 1, "ignore_mismatched_sizes": True}
            model, found = kind.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, **options
            )
    except PolicyError:
        raise
    except Exception as error:  # hub, network, file and format errors of many libraries
        raise PolicyError(
            f"policy.model = {config.model!r} cannot be loaded as a model that reads texts: "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = sorted(n for n in found["missing_keys"] if not _is_head(n) and "pooler" not in n)
    if missing:
        raise PolicyError(
            f"policy.model = {config.model!r} lacks {len(missing)} weights of its trunk, for "
            f"example {missing[0]!r}: they would be random. Expected a whole model."
        )
    return Loaded(model.eval(), tokenizer, path)

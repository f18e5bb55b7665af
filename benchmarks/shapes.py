"""Models of a published shape with random weights: enough to measure speed, and nothing to load.

Time and memory depend on the shape and on the lengths, not on what the weights know. Every shape
reads the tokens of the embedded model; a vocabulary that is larger is there in the matrices alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

from instructrec.policies.embedded import EMBEDDED_NAME
from instructrec.policies.loading import Loaded, load_source

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "model_type": "llama",
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100_000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}
"""Fields of the ``config.json`` of SmolLM2-135M-Instruct and Qwen2.5-0.5B."""


def shape_config(shape: str, **changes: Any) -> PreTrainedConfig:
    """The configuration of a shape.

    Args:
        shape: One of ``SHAPES``.
        changes: Fields that differ, such as fewer layers.
    """
    from transformers import AutoConfig

    fields = {**SHAPES[shape], **changes}
    theta = fields.pop("rope_theta")
    rope = {"rope_type": "default", "rope_theta": theta}
    return AutoConfig.for_model(fields.pop("model_type"), rope_parameters=rope, **fields)


def random_model(shape: str, *, seed: int = 0, **changes: Any) -> Loaded:
    """A model of a shape with random weights in float32, and the embedded model's tokenizer.

    Args:
        shape: One of ``SHAPES``.
        seed: Seed of the weights; the global random state stays as it was.
        changes: See ``shape_config``.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_source(EMBEDDED_NAME).tokenizer
    config = shape_config(shape, **changes)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return Loaded(model.eval(), tokenizer, f"shape:{shape}")

"""Which models can be a policy: plain decoder-only language models, whole and in full precision.

transformers builds much more from a folder without a word: an encoder that sees the text to come,
or a reward model with a random output layer. A run would train on it and explain nothing, so each
is refused here with the reason and with what to do instead.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from instructrec.errors import PolicyError

_MODALITIES = ("vision_config", "audio_config", "speech_config")
_SCORING = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
_TEXT_MODEL = "a decoder-only text model such as Llama, Qwen or SmolLM"


def check_architecture(config: Any, name: str) -> None:
    """Refuses, from its configuration alone, a model that cannot answer instructions.

    Args:
        config: Configuration of transformers.
        name: The model's name, for the error.

    Raises:
        PolicyError: It is no decoder-only text model in full precision; says which kind it is.
    """
    why_not = _why_not(config)
    if why_not is not None:
        reason, advice = why_not
        raise PolicyError(f"model {name!r} cannot be used: {reason}. {advice}")


def is_encoder(config: Any) -> bool:
    """Whether a model sees the whole text at once and writes none."""
    kind = config.model_type
    reads = type(config) in MODEL_FOR_MASKED_LM_MAPPING or kind.startswith("bert")
    writes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return reads and not writes and not any(_has(config, field) for field in _MODALITIES)


def _has(config: Any, field: str) -> bool:
    return getattr(config, field, None) is not None


def _why_not(config: Any) -> tuple[str, str] | None:
    """The reason against a model and what to do, or None."""
    kind, expected = config.model_type, f"Expected {_TEXT_MODEL}."
    architecture = next(iter(getattr(config, "architectures", None) or ()), "")
    if getattr(config, "is_encoder_decoder", False):
        return (
            f"{kind} is an encoder-decoder model: it reads the prompt with one network and writes "
            "with another, and here prompt and response are one sequence",
            expected,
        )
    sees = any(_has(config, field) for field in _MODALITIES)
    if sees or type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return (
            f"{kind} also takes images or sound, and instructions here are text",
            f"{expected} Where its language model exists on its own, name that.",
        )
    if architecture.endswith(_SCORING):
        return (
            f"{architecture} scores texts and writes none",
            f"{expected} A reward model belongs under rewards (`learned`) or in ppo.critic_model.",
        )
    if is_encoder(config):
        return (
            f"{kind} is an encoder: each token sees those behind it, so it cannot write on",
            f"{expected} (One that was trained as a decoder says is_decoder in its config.json.) "
            "An encoder can learn to answer labels: instructrec sft with sft.head: labels.",
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return f"{kind} has no language-model head in transformers", expected
    if not hasattr(config.get_text_config(decoder=True), "num_attention_heads"):
        return (
            f"{kind} has no attention, and rollouts keep its keys and values while they decode",
            expected,
        )
    if getattr(config, "quantization_config", None) is not None:
        return (
            "its weights are quantised, and training needs them in full precision",
            "Name the full-precision model; policy.quantization: nf4 keeps it in 4 bits for LoRA.",
        )
    return None


def check_complete(missing: Collection[str], model: Any, name: str) -> None:
    """Refuses a model of which weights were not in the folder and are random.

    Args:
        missing: Names of these weights.
        model: The model.
        name: Its name, for the error.

    Raises:
        PolicyError: A weight is missing.
    """
    if missing:
        saved_as = next(iter(model.config.architectures or ()), "another model")
        raise PolicyError(
            f"model {name!r} cannot be used: {len(missing)} of its weights are not there and would "
            f"be random, for example {min(missing)!r}. Expected all weights of a "
            f"{type(model).__name__}; it was saved as {saved_as}. Save it with its language-model "
            "head, or name the model that it was made from."
        )

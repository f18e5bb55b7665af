"""Which weights of a model train: all of them, its last layers, low-rank adapters, or none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from instructrec.errors import ConfigError, PolicyError
from instructrec.policies.config import LAST_LAYERS, PolicyConfig
from instructrec.policies.loading import Loaded, put_adapter


def choose_trained_weights(loaded: Loaded, config: PolicyConfig, seed: int) -> Any:
    """Sets ``requires_grad`` on every weight and puts adapters where they are asked for.

    A saved adapter is merged into the model, unless adapters are trained: then it is trained on.

    Args:
        loaded: The model in float32.
        config: Says what trains.
        seed: Seed of new adapters; the global random state of torch is left as it was.

    Returns:
        The model, wrapped by PEFT for ``lora``, with dropout off.

    Raises:
        ConfigError: More layers are asked for than the model has, or the settings contradict
            those of the saved adapter.
        PolicyError: The model's layers cannot be found, or the adapters do not fit.
    """
    model = loaded.model
    if config.train == "lora":
        if loaded.adapter is not None:
            model = _saved_adapter(model, loaded.adapter, config)
        else:
            model = _new_adapter(model, loaded.base, config, seed)
    else:
        if loaded.adapter is not None:
            model = put_adapter(model, loaded.adapter, trainable=False).merge_and_unload()
        model.requires_grad_(config.train == "full")
        if config.train == "last_layers":
            train_last_layers(model, config.num_layers or LAST_LAYERS)
    for module in model.modules():
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        if is_dropout and config.lora.dropout == 0.0:
            module.p = 0.0
    return model


def train_last_layers(model: Any, num_layers: int) -> None:
    """Lets the last decoder layers and the final norm train; embeddings and output stay frozen.

    Raises:
        ConfigError: The model has fewer layers.
        PolicyError: The model's layers cannot be found.
    """
    depth = _depth(model, num_layers, "policy.train: full")
    for module in model.base_model.modules():
        lists = [
            child
            for child in module.children()
            if isinstance(child, nn.ModuleList) and len(child) == depth
        ]
        if lists:
            norms = [child for child in module.children() if "norm" in type(child).__name__.lower()]
            for part in [*list(lists[0])[-num_layers:], *norms[-1:]]:
                part.requires_grad_(True)
            return
    raise PolicyError(
        f"cannot find the {depth} decoder layers of {type(model).__name__}. "
        "Use policy.train: full or lora."
    )


def _depth(model: Any, num_layers: int, otherwise: str) -> int:
    """Decoder layers of a model; refuses to train more of them."""
    depth = int(model.config.get_text_config().num_hidden_layers)
    if num_layers > depth:
        raise ConfigError(
            f"policy.num_layers = {num_layers}: the model has {depth} layers. Expected 1 to "
            f"{depth}, or {otherwise}."
        )
    return depth


def _new_adapter(model: Any, base: str, config: PolicyConfig, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = config.lora
    names = [part.strip() for part in settings.target_modules.split(",") if part.strip()]
    layers = _adapted_layers(model, config.num_layers)
    if names == ["all-linear"] and layers is not None:  # PEFT takes no layers beside it
        names = _linear_names_of_layers(model)
    adapter = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=names[0] if names == ["all-linear"] else names,
        layers_to_transform=layers,
        **_kind_of(model),
        revision=config.revision,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            wrapped = get_peft_model(model, adapter)
    except ValueError as error:
        raise PolicyError(
            f"policy.lora.target_modules = {settings.target_modules!r} does not fit "
            f"{type(model).__name__}: {error}"
        ) from error
    wrapped.peft_config["default"].base_model_name_or_path = base
    return wrapped


def _adapted_layers(model: Any, num_layers: int | None) -> list[int] | None:
    """Numbers of the decoder layers that get adapters; None for the whole model."""
    if num_layers is None:
        return None
    depth = _depth(model, num_layers, "null for adapters on all of them")
    return list(range(depth - num_layers, depth))


def _linear_names_of_layers(model: nn.Module) -> list[str]:
    """What the linear modules of the decoder layers are called, without the output layer."""
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and re.search(r"\.\d+\.", name)
        }
    )


def _kind_of(model: Any) -> dict[str, Any]:
    """What PEFT is told of a model: whether it writes, or has a score layer that trains whole."""
    for head in ("score", "classifier"):
        if isinstance(getattr(model, head, None), nn.Module):
            return {"task_type": "SEQ_CLS", "modules_to_save": [head]}
    writes = model.get_output_embeddings() is not None
    return {"task_type": "CAUSAL_LM" if writes else "FEATURE_EXTRACTION"}


def _saved_adapter(model: Any, folder: Path, config: PolicyConfig) -> Any:
    settings, layers = config.lora, _adapted_layers(model, config.num_layers)
    wrapped = put_adapter(model, folder, trainable=True)
    saved = wrapped.peft_config["default"]
    if (saved.r, saved.lora_alpha) != (settings.r, settings.alpha):
        raise ConfigError(
            f"policy.lora has r = {settings.r}, alpha = {settings.alpha}, but the adapter in "
            f"{folder} has r = {saved.r}, alpha = {saved.lora_alpha} and would be trained on. Set "
            "the same values, or policy.train: full to merge it."
        )
    if layers is not None and saved.layers_to_transform != layers:
        raise ConfigError(
            f"policy.num_layers = {config.num_layers}, but the adapter in {folder} is on layers "
            f"{saved.layers_to_transform or 'all'} and would be trained on. Expected the number it "
            "was made with, or null; or set policy.train: full to merge it."
        )
    return wrapped

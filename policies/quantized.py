"""A base in 4 bits for low-rank adapters (QLoRA): bitsandbytes' NF4 with double quantisation.

The matrices of the base are rounded once, while they are read, and never train. Every product
computes with the rounded weights, so a run that trained on them has to be continued and measured on
them: an adapter's folder says so, and ``policies.loading`` keeps to it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from instructrec.errors import ConfigError, PolicyError
from instructrec.policies.quiet import quiet_transformers
from instructrec.policies.trunk import base_causal_lm

NF4 = "nf4"
_MARK = "quantization.json"
_ADVICE = "Install it with `pip install 'instructrec[quantized]'`, or set policy.quantization: null"


def check_quantization(device: torch.device) -> None:
    """Tries a layer of 4 bits, forwards and backwards, before a model is loaded for it.

    Args:
        device: Where the policy will live.

    Raises:
        ConfigError: bitsandbytes is not installed, or does not work on this device.
    """
    try:
        import bitsandbytes
    except Exception as error:  # a wheel that does not fit the machine raises many kinds
        raise ConfigError(
            f"policy.quantization = {NF4!r} needs bitsandbytes, which cannot be imported here "
            f"({type(error).__name__}: {error}). {_ADVICE}."
        ) from error
    try:
        layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type=NF4, compute_dtype=torch.float32)
        _compute_in(layer, torch.float32)
        layer.to("cpu").to(device)
        states = torch.ones(2, 64, device=device, requires_grad=True)
        layer(states).sum().backward()
        works = states.grad is not None and bool(states.grad.isfinite().all())
        reason = "its gradient is not a finite number"
    except Exception as error:  # each backend fails in a way of its own
        works, reason = False, f"{type(error).__name__}: {error}"
    if not works:
        raise ConfigError(
            f"policy.quantization = {NF4!r} does not work on {device} with bitsandbytes "
            f"{bitsandbytes.__version__}: {reason}. Choose another policy.device, another version "
            "of bitsandbytes, or set policy.quantization: null."
        )


def loading_options() -> dict[str, Any]:
    """Arguments of ``from_pretrained`` that keep the matrices in 4 bits.

    Rounding on the CPU gives the same weights whatever device they move to afterwards. Embeddings,
    norms, biases and the output layer keep the precision that was asked for.
    """
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=NF4, bnb_4bit_use_double_quant=True
    )
    return {"quantization_config": settings, "device_map": {"": "cpu"}}


def quantize(model: Any) -> Any:
    """Returns a copy in 4 bits of a small float32 model that lives in memory alone."""
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder, dtype=torch.float32, **loading_options())


def dequantize(model: Any) -> Any:
    """Turns a model that is in 4 bits into a float32 one with the same, rounded weights."""
    with quiet_transformers():
        model = model.dequantize()
    model.is_loaded_in_4bit = False
    return model


def settle(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Fixes the arithmetic of the layers in 4 bits, once the adapters are in place.

    Args:
        model: The policy's model; without such layers nothing happens.
        compute_dtype: Precision of the products.
    """
    for module in model.modules():
        if is_quantized_weight(getattr(module, "weight", None)):
            _compute_in(module, compute_dtype)
    # PEFT reads this mark to choose its layers. TRL would go on to cast the adapters to bfloat16,
    # in which a small step of the optimizer is lost.
    base = base_causal_lm(model)
    if hasattr(base, "is_loaded_in_4bit"):
        base.is_loaded_in_4bit = False


def _compute_in(layer: Any, dtype: torch.dtype) -> None:
    layer.compute_dtype, layer.compute_type_is_set = dtype, True
    # On CPUs with AVX512-BF16, bitsandbytes would repack the weights in the middle of evaluation
    # and round their scales again: sampler and trainer would compute with different weights.
    layer.support_avx512bf16_for_cpu = False
    if layer.bias is not None:  # else it is cast at the first product, and the hash changes
        layer.bias.data = layer.bias.data.to(dtype)


def is_quantized_weight(weight: object) -> bool:
    """Whether a tensor holds packed codes and not numbers."""
    return getattr(weight, "quant_state", None) is not None


def is_quantized(model: nn.Module) -> bool:
    """Whether a model has weights in 4 bits."""
    return any(is_quantized_weight(parameter) for parameter in model.parameters())


def mark(folder: Path) -> None:
    """Writes down that the adapter in a folder belongs on a base in 4 bits."""
    (folder / _MARK).write_text(json.dumps({"base": NF4}) + "\n", encoding="utf-8")


def is_marked(folder: Path) -> bool:
    """Whether the adapter in a folder belongs on a base in 4 bits.

    Raises:
        PolicyError: The folder names a rounding that this version does not know.
    """
    file = folder / _MARK
    if not file.is_file():
        return False
    try:
        given = json.loads(file.read_text(encoding="utf-8"))["base"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        expected = json.dumps({"base": NF4})
        raise PolicyError(f"{file} cannot be read: {error!r}. Expected {expected}.") from error
    if given != NF4:
        raise PolicyError(
            f"{file} says that the adapter's base is rounded to {given!r}: expected {NF4!r}. Load "
            "it with the version of instructrec that wrote it."
        )
    return True

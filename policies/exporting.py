"""From a policy to a folder that any software with transformers can load and answer with."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any, Literal

import torch

from instructrec.errors import ConfigError
from instructrec.policies.causal_lm import CausalLMPolicy, load_policy
from instructrec.policies.labels import LabelPolicy
from instructrec.policies.model_policy import ModelPolicy, let_others_read
from instructrec.policies.quiet import quiet_transformers

ExportDtype = Literal["float32", "bfloat16", "float16"]
"""Precision of exported weights."""


def check_int8() -> None:
    """Refuses int8 where its library is missing.

    Raises:
        ConfigError: torchao is not installed.
    """
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(
            "quantize = 'int8' needs torchao, which is not installed: expected the extra "
            "`export`. Run: pip install 'instructrec[export]'"
        )


def write_merged(policy: ModelPolicy, folder: Path, dtype: ExportDtype = "float32") -> None:
    """Writes a whole model: adapters merged, safetensors, tokenizer, generation settings.

    The chat template of the folder puts the policy's system message in by itself, and the
    generation settings name every end token, so that other software asks and stops as we do. Of a
    policy that answers labels, the head lies beside the model, in float32.

    Args:
        policy: On the CPU; an adapter of it is merged, so do not use it afterwards.
        folder: Made when missing.
        dtype: Precision of the weights.
    """
    if policy.rounded_base:  # merging in 4 bits would round twice: read the weights as float32
        settings = dataclasses.replace(policy.config, train="full", quantization=None)
        policy = load_policy(settings, sampling=policy.sampling)
    if not isinstance(policy, LabelPolicy):
        _write_whole(policy, folder, dtype)
        return
    with policy.without_head() as reader:
        _write_whole(reader, folder, dtype)
    policy.save_head(folder)


def _write_whole(policy: ModelPolicy, folder: Path, dtype: ExportDtype) -> None:
    """Writes the model of a policy, its adapter merged."""
    model: Any = policy.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model = model.to(getattr(torch, dtype))
    if isinstance(policy, CausalLMPolicy):
        model.generation_config.eos_token_id = policy.eos_token_ids
        model.generation_config.pad_token_id = policy.pad_token_id
        policy.tokenizer.chat_template = policy.chat_template
    folder.mkdir(parents=True, exist_ok=True)
    with quiet_transformers():
        model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    let_others_read(folder)


def write_int8(source: Path, folder: Path) -> None:
    """Writes a model folder again with the matrices of its linear layers in int8 (torchao).

    Args:
        source: What `write_merged` wrote; its weights are read.
        folder: Gets the weights, the tokenizer and the settings.

    Raises:
        ConfigError: torchao is not installed.
    """
    check_int8()
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype="auto",
            quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
            trust_remote_code=False,
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    let_others_read(folder)

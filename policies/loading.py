"""From a name to a model in float32 and its tokenizer: names, run folders, folders, hub ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from instructrec.errors import PolicyError, did_you_mean
from instructrec.policies.chat import prepare_tokenizer
from instructrec.policies.embedded import EMBEDDED_NAME, embedded_folder
from instructrec.policies.quiet import quiet_transformers
from instructrec.policies.tiny import TINY_NAMES, make_tiny_model, make_tiny_tokenizer

KNOWN_NAMES = (EMBEDDED_NAME, *TINY_NAMES)
_MODALITIES = ("vision_config", "audio_config", "speech_config")


@dataclass(frozen=True)
class Loaded:
    """A model as it was found, before anything is decided about training."""

    model: Any
    """Causal language model in float32 on the CPU, without adapter."""
    tokenizer: Any
    """Tokenizer with pad token and chat template."""
    base: str
    """Where the model can be loaded from again: what an adapter of it has to name."""
    adapter: Path | None = None
    """Folder of the adapter that belongs on the model."""


def load_source(name: str, *, revision: str | None = None, seed: int = 0) -> Loaded:
    """Loads a model and its tokenizer. No code of the model's repository is ever run.

    Args:
        name: ``smollm2-135m``, ``tiny`` (``tiny@3`` fixes its seed), a run folder, a Hugging Face
            folder (of a model or of an adapter), or a hub id; known names win over folders.
        revision: Revision of a hub model.
        seed: Seed of the weights of ``tiny``.

    Raises:
        PolicyError: There is no such model, or it is no plain causal language model.
    """
    tiny, _, tiny_seed = name.partition("@")
    if tiny in TINY_NAMES:
        return _load_tiny(tiny, name, int(tiny_seed) if tiny_seed.isdigit() else seed)
    if name == EMBEDDED_NAME:
        return _load_model(str(embedded_folder()), name, None, base=name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _load_folder(folder, name, revision, seed)
    _check_not_missing(name, folder)
    return _load_model(name, name, revision, base=name)


def _load_tiny(tiny: str, name: str, seed: int) -> Loaded:
    pad_is_eos = tiny == "tiny-pad-eos"
    tokenizer = prepare_tokenizer(make_tiny_tokenizer(pad_is_eos=pad_is_eos), name)
    model = make_tiny_model(seed, pad_is_eos=pad_is_eos)
    return Loaded(model, tokenizer, f"{tiny}@{seed}")


def _load_folder(folder: Path, name: str, revision: str | None, seed: int) -> Loaded:
    folder = folder.resolve()
    if (folder / "run.json").is_file():
        if not (folder / "policy").is_dir():
            raise PolicyError(
                f"the run folder {name!r} holds no policy/ yet: the run has not finished. "
                "Finish it with --resume, or name the Hugging Face folder of another policy."
            )
        folder = folder / "policy"
    if (folder / "adapter_config.json").is_file():
        return _load_adapter_base(folder, name, seed)
    if not (folder / "config.json").is_file():
        raise PolicyError(
            f"the folder {name!r} is no model: expected a run folder (run.json and policy/) or a "
            f"Hugging Face folder (config.json or adapter_config.json in {folder})."
        )
    return _load_model(str(folder), name, revision, base=str(folder))


def _load_adapter_base(folder: Path, name: str, seed: int) -> Loaded:
    """Loads the model that an adapter belongs on; an adapter below it is merged first."""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base_name = settings.get("base_model_name_or_path")
    if not base_name:
        raise PolicyError(
            f"the adapter in {name!r} does not say which model it belongs on: "
            "set base_model_name_or_path in its adapter_config.json."
        )
    try:
        base = load_source(base_name, revision=settings.get("revision"), seed=seed)
    except PolicyError as error:
        raise PolicyError(f"the adapter in {name!r} belongs on {base_name!r}: {error}") from error
    model = base.model
    if base.adapter is not None:
        model = put_adapter(model, base.adapter, trainable=False).merge_and_unload()
    return Loaded(model, base.tokenizer, base_name, folder)


def put_adapter(model: nn.Module, folder: Path, *, trainable: bool) -> Any:
    """Puts a saved adapter on its model.

    Raises:
        PolicyError: The adapter cannot be read or does not fit the model.
    """
    from peft import PeftModel

    try:
        with torch.random.fork_rng(devices=[]):
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except Exception as error:  # peft raises many kinds for damaged folders
        raise PolicyError(
            f"cannot put the adapter in {folder} on its model: {_first_line(error)}. "
            "Check that the folder is complete and that base_model_name_or_path is its model."
        ) from error


def _load_model(path: str, name: str, revision: str | None, *, base: str) -> Loaded:
    options: dict[str, Any] = {"trust_remote_code": False, "revision": revision or "main"}
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            config = AutoConfig.from_pretrained(path, **options)
            _check_architecture(config, name)
            _switch_dropout_off(config)
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            model = AutoModelForCausalLM.from_pretrained(
                path, config=config, dtype=torch.float32, **options
            )
    except PolicyError:
        raise
    except Exception as error:  # hub, network, file and format errors of many libraries
        raise PolicyError(_why_not(name, path, error)) from error
    return Loaded(model, prepare_tokenizer(tokenizer, name), base)


def _check_architecture(config: Any, name: str) -> None:
    """Refuses what is not a plain decoder-only language model in full precision."""
    kind = config.model_type
    reason = ""
    if getattr(config, "is_encoder_decoder", False):
        reason = f"{kind} is an encoder-decoder model"
    elif any(getattr(config, field, None) is not None for field in _MODALITIES):
        reason = f"{kind} also takes images or sound"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        reason = f"{kind} has no language-model head in transformers"
    elif getattr(config, "quantization_config", None) is not None:
        reason = "its weights are quantised, and training needs them in full precision"
    if reason:
        raise PolicyError(
            f"model {name!r} cannot be a policy: {reason}. Expected a decoder-only text model "
            "such as Llama, Qwen or SmolLM."
        )


def _switch_dropout_off(config: Any) -> None:
    """Dropout makes the trainer's log-probs differ from the sampler's at every pass."""
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for field, value in list(vars(part).items()):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and ("drop" in field or field.endswith("pdrop")):
                setattr(part, field, 0.0)


def _check_not_missing(name: str, folder: Path) -> None:
    """Tells a missing folder and a misspelt name from a hub id, without asking the hub."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip():
        raise PolicyError(
            f"model {name!r}: there is no folder {folder}. Expected a known name "
            f"({', '.join(KNOWN_NAMES)}), a run folder, a Hugging Face folder or a hub id."
        )
    if "/" not in name and did_you_mean(name, KNOWN_NAMES):
        raise PolicyError(
            f"unknown model {name!r}.{did_you_mean(name, KNOWN_NAMES)} Known names: "
            f"{', '.join(KNOWN_NAMES)}; a run folder, a Hugging Face folder or a hub id works too."
        )


def _why_not(name: str, path: str, error: Exception) -> str:
    if Path(path).is_dir():
        return (
            f"cannot load the model in {path}: {_first_line(error)}. Expected config.json, "
            "safetensors weights and a tokenizer of a model that transformers knows by itself "
            "(code in the folder is never run)."
        )
    return (
        f"model {name!r} is no known name ({', '.join(KNOWN_NAMES)}) and no folder here, and the "
        f"hub did not give it: {_first_line(error)} Check the spelling, the network, "
        "HF_HUB_OFFLINE and (for gated models) `hf auth login`; models that need code of their "
        "own are refused."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

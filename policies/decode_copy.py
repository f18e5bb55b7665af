"""A copy of the policy in a cheaper precision, for decoding only.

Weights that train stay in float32, because a small step is lost in bfloat16. Decoding reads all
weights for every token, so it reads a bfloat16 copy that is refreshed after every update.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from instructrec.policies.packed import PackedLinear, can_pack


class Float32Head(nn.Linear):
    """The output layer in float32, also under autocast.

    Logits of 20 have steps of 0.125 in bfloat16, which is most of the difference between the log-
    probs of sampler and trainer. Only the last position of each row passes here.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns float32 logits."""
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.float(), self.weight, self.bias)


def keep_head_in_float32(model: Any) -> nn.Module | None:
    """Makes the output layer compute in float32; returns it where there is one."""
    head: nn.Module | None = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.__class__ = Float32Head  # same parameters, tied or not, and other arithmetic
    return head


class DecodeCopy:
    """A frozen copy of a causal language model whose matrices are in another dtype.

    It repeats the trainer's arithmetic: under ``autocast`` the trainer multiplies in bfloat16 and
    adds, normalises and embeds in float32. So does the copy, with the matrices converted once
    instead of at every pass. Adapters are merged into it, so that decoding costs the same with
    and without them.

    Args:
        model: The policy's model; a PEFT model around one is taken with its adapters.
        dtype: Dtype of the matrices. Everything else keeps float32: embeddings, norms, output
            layer, and above all the rotary frequencies.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._source = model
        self.dtype = dtype
        clone: Any = copy.deepcopy(model, _borrowed(model, dtype))
        if hasattr(model, "peft_config"):
            clone = clone.unload()  # `sync` merges, and leaves the source's weights alone
        self.model: nn.Module = clone.eval().requires_grad_(False)
        self._tied: Tensor | None = None
        head = keep_head_in_float32(clone)
        for name, module in list(self.model.named_modules()):
            wanted = torch.float32 if module is head else dtype
            if _packs(module, wanted):
                if module is head and module.weight is clone.get_input_embeddings().weight:
                    self._tied = module.weight
                self.model.set_submodule(name, PackedLinear(module, wanted))
            elif isinstance(module, nn.Linear | Conv1D) and module is not head:
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
        self._targets = dict(self.model.named_parameters())
        if hasattr(model, "peft_config"):
            self.sync()

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        packed = [m.nbytes for m in self.model.modules() if isinstance(m, PackedLinear)]
        return sum(packed) + sum(p.nbytes for p in self.model.parameters())

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context in which the copy has to run."""
        kind = next(self.model.parameters()).device.type
        return torch.autocast(kind, dtype=self.dtype, cache_enabled=False)

    @torch.no_grad()
    def sync(self) -> None:
        """Takes over the weights that train. Frozen weights were copied once, at the start."""
        for name, weight in _trained_weights(self._source):
            if name in self._targets:
                self._targets[name].copy_(weight)
                if self._targets[name] is self._tied:
                    head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
                    head.load(weight=weight)
            else:
                module, _, part = name.rpartition(".")
                layer: Any = self.model.get_submodule(module)
                layer.load(**{part: weight})


def _borrowed(model: nn.Module, dtype: torch.dtype) -> dict[int, Any]:
    """What a deep copy need not copy: id of a parameter -> a frozen view of the same memory.

    These are weights that a packed layer replaces at once, and frozen ones that stay as they are.
    What `sync` writes to, or what changes its dtype, is copied.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D)]
    of_layers = _ids(layers)
    replaced = _ids(m for m in layers if _packs(m, dtype))
    elsewhere = _ids(m for m in model.modules() if not isinstance(m, nn.Linear | Conv1D))

    def stays(parameter: nn.Parameter) -> bool:
        frozen, key = not parameter.requires_grad, id(parameter)
        return (key in replaced and (frozen or key not in elsewhere)) or (
            frozen and key not in of_layers
        )

    return {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=False)
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter and stays(parameter)
    }


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(p) for module in modules for p in module.parameters(recurse=False)}


def _packs(module: nn.Module, dtype: torch.dtype) -> TypeGuard[nn.Linear]:
    """Whether a layer becomes a packed one."""
    is_plain = type(module) in (nn.Linear, Float32Head)
    return is_plain and module.weight.device.type == "cpu" and can_pack(dtype)


def _trained_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names (without adapters) and effective values of the weights that train."""
    if not hasattr(model, "peft_config"):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                yield name, parameter
        return
    base: Any = model.get_base_model()  # type: ignore[operator]
    for name, module in base.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "get_base_layer"):
            weight = module.get_base_layer().weight
            for adapter in module.active_adapters:
                weight = weight + module.get_delta_weight(adapter)
            yield f"{name}.weight", weight

"""Tensors that say that they are on a GPU and refuse to meet those that are not.

For machines without one: numbers are computed on the CPU, but whatever would mix two devices in one
operation raises, as CUDA would. What kernels compute, precision and speed are not looked at, and
the backward pass is not checked, in which PyTorch itself makes tensors. Enter `PretendedGpu`, and
take models there by ``to(GPU)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda", 0)
_aten = torch.ops.aten
_WAITING = (_aten._local_scalar_dense.default, _aten.nonzero.default)
_INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


class MixedDevicesError(Exception):
    """An operation would have got tensors of two devices."""


class OnGpu(Tensor):
    """A tensor that says that it is on a GPU."""

    held: Tensor
    device = GPU
    is_cuda = True
    waits = 0
    """How often the CPU has waited for a result: numbers that were read, masks that chose."""
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        """Wraps a tensor of the CPU."""
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Computes on the CPU, if all tensors are of one device."""
        leaves = tree_leaves((args, kwargs))
        if torch._C._current_graph_task_id() == -1:  # else it is a backward pass
            _check(func, args, [leaf for leaf in leaves if isinstance(leaf, Tensor)])
        plain = tree_map_only(OnGpu, lambda tensor: tensor.held, (args, kwargs or {}))
        found = func(*plain[0], **plain[1])
        if func in _WAITING or (func is _aten.index.Tensor and _has_mask(plain[0][1])):
            OnGpu.waits += 1
        if func._schema.is_mutable:
            return args[0] if isinstance(args[0], Tensor) else found
        return tree_map_only(Tensor, on_gpu, found)


def on_gpu(tensor: Tensor) -> OnGpu:
    """The same tensor on the pretended GPU."""
    return tensor if isinstance(tensor, OnGpu) else OnGpu(tensor)


def _has_mask(indices: Any) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _check(func: Any, args: Any, tensors: list[Tensor]) -> None:
    """Raises where CUDA would: a number may come from the CPU, and so may what indexes."""
    if func is _aten.copy_.default:
        return
    if func in _INDEXING:
        tensors = [args[0], *(args[2:3] if func is not _aten.index.Tensor else ())]
        if not isinstance(args[0], OnGpu):
            raise MixedDevicesError(f"{func}: a tensor of the CPU is indexed by one of the GPU")
    strangers = [t.shape for t in tensors if not isinstance(t, OnGpu) and t.dim()]
    if strangers:
        raise MixedDevicesError(f"{func}: tensors of the GPU, and of the CPU {strangers}")


class PretendedGpu(TorchFunctionMode):
    """Makes on the GPU what is asked for there, and moves what is moved there or back."""

    def __enter__(self) -> Any:
        """Has modules move as tensors do: torch cannot put such tensors into a parameter."""
        self._module_to = nn.Module.to
        nn.Module.to = _move_module(self._module_to)  # type: ignore[method-assign]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Leaves modules as they were."""
        nn.Module.to = self._module_to  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Intercepts what asks for a device, and what no operation of tensors is."""
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args else None
        if name in ("to", "cpu", "cuda") and isinstance(first, Tensor):
            return _moved(name, first, args[1:], kwargs)
        if isinstance(first, OnGpu) and name in ("tolist", "data_ptr"):
            OnGpu.waits += name == "tolist"
            return func(first.held)
        if isinstance(first, OnGpu) and name == "numpy":
            raise MixedDevicesError("numpy() of a tensor on the GPU")
        if name == "pad_sequence" and isinstance(first[0], OnGpu):  # made by C++, which knows less
            return on_gpu(func([row.held for row in first], *args[1:], **kwargs))
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            return func(*args, **kwargs)
        return on_gpu(func(*args, **kwargs | {"device": "cpu"}))


def _moved(name: str, tensor: Tensor, rest: Any, options: dict[str, Any]) -> Tensor:
    """What ``to``, ``cpu`` or ``cuda`` of a tensor returns."""
    target = {"cpu": torch.device("cpu"), "cuda": GPU}.get(name, options.get("device"))
    dtype = options.get("dtype")
    for value in rest if name == "to" else ():
        if isinstance(value, str | torch.device):
            target = value
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, Tensor):
            target, dtype = value.device, value.dtype
    with torch._C.DisableTorchFunction():
        tensor = tensor if dtype is None else tensor.to(dtype)
        tensor = tensor.clone() if options.get("copy") else tensor
    if target is None or (torch.device(target).type == "cuda") == isinstance(tensor, OnGpu):
        return tensor
    OnGpu.waits += isinstance(tensor, OnGpu)
    return tensor.detach().held if isinstance(tensor, OnGpu) else OnGpu(tensor.detach())


def _move_module(own: Any) -> Any:
    def to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device = args[0] if args else kwargs.get("device")
        if not isinstance(device, torch.device) or device.type != "cuda":
            return own(self, *args, **kwargs)
        moved: dict[int, Any] = {}  # weights that are shared stay so
        for module in self.modules():
            for name, weight in module._parameters.items():
                if weight is not None and not isinstance(weight, OnGpu):
                    fresh = nn.Parameter(OnGpu(weight.detach()), weight.requires_grad)
                    module._parameters[name] = moved.setdefault(id(weight), fresh)
            for name, buffer in module._buffers.items():
                module._buffers[name] = buffer if buffer is None else on_gpu(buffer)
        return self

    return to

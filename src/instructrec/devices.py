"""Which device and which precision to compute in. Imports torch only inside its functions."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from instructrec.errors import ConfigError

if TYPE_CHECKING:
    import torch

OWNERS_RANK = "INSTRUCTREC_LOCAL_RANK"
"""Variable by which a process that scores for another one knows that one's ``LOCAL_RANK``. Under
the name of torchrun, libraries would take it for a member of the group and wait for the others."""
_DTYPES = ("auto", "float32", "bfloat16")
_OUT_OF_MEMORY = (
    *("defaultcpuallocator: can't allocate memory", "defaultcpuallocator: not enough memory"),
    *("cuda error: out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed"),
)
"""How it is said by who raises a plain RuntimeError."""
_CONTROL_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        *("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
        "total_inactive_file",
    ),
)
"""Files with limit, use and statistics, and the name of the cache that the kernel would give back,
of version 2 and version 1."""


def pick_device(name: str = "auto") -> torch.device:
    """Resolves a device name.

    Args:
        name: ``auto`` (CUDA, else Apple's MPS, else the CPU) or a name that torch knows:
            ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Returns:
        The device. Under a launcher that sets ``LOCAL_RANK``, ``auto`` and ``cuda`` are the
        process's own GPU, for processes that score for it as well.

    Raises:
        ConfigError: The name is no device, or this machine does not have it.
    """
    import torch

    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device = {name!r}: expected auto, cpu, cuda, cuda:<number> or mps."
        ) from error
    count = torch.cuda.device_count()
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= count):
        raise ConfigError(
            f"device = {name!r}: torch {torch.__version__} sees {count} CUDA devices here. "
            "Use device: cpu (or auto), or install a CUDA build of torch and check nvidia-smi."
        )
    if device.type == "mps" and not has_mps:
        raise ConfigError(
            f"device = {name!r}: this machine or this torch build has no MPS. Use device: auto."
        )
    if device == torch.device("cuda"):
        own = os.environ.get("LOCAL_RANK") or os.environ.get(OWNERS_RANK) or "0"
        return torch.device("cuda", int(own) % count)
    return device


def pick_dtype(name: str = "auto", device: torch.device | str = "cpu") -> torch.dtype:
    """Resolves the compute precision; weights that train stay float32 whatever it is.

    Args:
        name: ``auto``, ``float32`` or ``bfloat16``. ``auto`` takes bfloat16 where the hardware
            multiplies in it (CUDA from Ampere on; CPUs with AVX512-BF16 or AMX), else float32.
        device: Where the computation runs.

    Raises:
        ConfigError: The name is none of the three.
    """
    import torch

    if name not in _DTYPES:
        raise ConfigError(f"dtype = {name!r}: expected one of {', '.join(_DTYPES)}.")
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    kind = torch.device(device).type
    fast = (kind == "cuda" and _cuda_has_bfloat16()) or (kind == "cpu" and _cpu_has_bfloat16())
    return torch.bfloat16 if fast else torch.float32


def describe(device: torch.device | None = None, dtype: torch.dtype | None = None) -> str:
    """Returns one line for people: ``cpu (2 threads), bfloat16 compute, float32 weights``.

    Args:
        device: The device in use; what ``auto`` picks when None.
        dtype: The compute precision in use; what ``auto`` picks there when None.
    """
    import torch

    device = device or pick_device()
    dtype = dtype or pick_dtype("auto", device)
    detail = ""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        detail = f" ({threads} thread{'s' if threads != 1 else ''})"
    elif device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        detail = f" ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)"
    return f"{device}{detail}, {str(dtype).removeprefix('torch.')} compute, float32 weights"


def _cuda_has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_bf16_supported(including_emulation=False)


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware; False where torch cannot tell."""
    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def is_out_of_memory(error: BaseException) -> bool:
    """Says whether an error means that a device, or the machine, has no memory left."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()  # a CPU and libraries of CUDA have no class of their own for it
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)


def free_memory(device: torch.device) -> float:
    """Bytes that this process may still take on a device; infinite where nobody says.

    On the CPU that is what the machine has left or, where that is less, the container.
    """
    import torch

    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    if device.type != "cpu":
        return float("inf")
    import psutil

    return min(float(psutil.virtual_memory().available), free_in_container())


def free_in_container(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that are left of a container's limit; infinite without one.

    Args:
        root: Where the kernel shows control groups, of version 2 or 1.
    """
    for limit, used, stat, cache in _CONTROL_GROUPS:
        with suppress(OSError, ValueError):  # not there, or "max"
            left = int((root / limit).read_text()) - int((root / used).read_text())
            lines = (line.split() for line in (root / stat).read_text().splitlines())
            return float(left + {key: int(value) for key, value in lines}.get(cache, 0))
    return float("inf")


def check_only_gpu(device: torch.device) -> None:
    """Refuses a GPU beside others that this process sees.

    A trainer of transformers in a process on its own takes all of them: the model moves to the
    first one and is copied to the others, and a batch becomes as many batches.

    Args:
        device: Where training shall run.

    Raises:
        ConfigError: It is one of several GPUs.
    """
    import torch

    if device.type == "cuda" and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"there are {torch.cuda.device_count()} GPUs and one process, which transformers' "
            "trainer would spread over all of them: expected one GPU for each process. Set "
            "CUDA_VISIBLE_DEVICES to one of them, or (PPO and RAFT) launch a process for each "
            "(docs/scaling.md)."
        )


def release_memory() -> None:
    """Gives back what a GPU's allocator holds without need."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()

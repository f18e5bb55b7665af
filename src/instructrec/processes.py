"""Several processes that train one policy: who this one is, and what they tell each other.

A launcher (``torchrun``, ``accelerate launch``) starts the same command several times. Inside
``joined`` the processes form a group; outside it, and without a launcher, there is one process and
everything here is trivial. Process 0, the *main* one, is the only one that writes and speaks.
Imports torch only inside its functions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from instructrec.devices import pick_device
from instructrec.endings import Ending, portable, relayed
from instructrec.errors import ConfigError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for another one, which may be evaluating."""
BUCKET = 2**26
"""Most numbers that one sum over the processes moves at once (256 MiB in float32)."""
_ending: Ending | None = None  # of the group that this process is in
_OTHER_ENGINES = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def launched() -> int:
    """How many processes the launcher says that it started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def refuse_several(what: str) -> None:
    """Refuses to do something that only one process can do.

    Raises:
        ConfigError: A launcher started several processes.
    """
    if launched() > 1:
        raise ConfigError(
            f"{what} runs in one process, but WORLD_SIZE = {launched()}: expected a start without "
            "torchrun or accelerate launch."
        )


@contextmanager
def joined(device: str = "auto") -> Iterator[None]:
    """Joins the processes that a launcher started, if it did; leaves them when the block ends.

    Inside of a group already, nothing happens. An error that ends the block in one process ends it
    in all as soon as they notice, in its own class or as a ``ProcessError``. The main one raises
    it; the others exit with its code and without a word, but for the traceback of an error that is
    not ours. One that hears nothing of the main process tells itself.

    Args:
        device: The policy's device as configured: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ConfigError: The launcher asks for an engine or a device that does not work with several
            processes, or has not said which process this is.
        ProcessError: Another process failed, or has gone without a word.
    """
    global _ending
    _check_launch(device)
    if launched() == 1 or _dist():
        yield
        return
    import torch
    import torch.distributed as dist

    chosen = pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    dist.all_reduce(torch.zeros(1))  # one that ends at once would leave others half connected
    _ending = ending = Ending(store, number, count)
    try:
        with nullcontext() if number == 0 else warnings.catch_warnings():
            if number > 0:
                warnings.simplefilter("ignore")
            yield
        ending.well()
    except (Exception, KeyboardInterrupt) as error:
        # A launcher ends all as soon as one has ended: the main one shall have told its story.
        end = ending.of_main if number == 0 else ending.of_other
        end(error, dist.destroy_process_group)
    finally:
        _ending = None
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _in_touch() -> Iterator[None]:
    """Raises what ended another process where a call that needs it broke off."""
    try:
        yield
    except RuntimeError as error:
        import torch

        if _ending is None or isinstance(error, torch.OutOfMemoryError):
            raise
        cause = _ending.cause(error)
        if cause is error:
            raise
        raise cause from error


def _check_launch(device: str) -> None:
    """Refuses launches that would not do what they seem to."""
    environment = os.environ
    accelerated = "ACCELERATE_USE_CPU" in environment  # set where it starts a program by itself
    if accelerated and "MASTER_ADDR" in environment and "RANK" not in environment:
        raise ConfigError(
            "accelerate launch was asked for several processes and has started a single one: "
            "expected RANK and WORLD_SIZE, which it sets with --multi_gpu. Launch with --multi_gpu "
            "in place of --cpu (that is its name for torchrun, no GPU is needed), or with torchrun "
            "--nproc-per-node 2. If one process is what you want, unset MASTER_ADDR, by which it "
            "asks for several."
        )
    for variable, engine in _OTHER_ENGINES.items():
        if environment.get(variable, "false").lower() in ("true", "1"):
            raise ConfigError(
                f"the launcher asks for {engine} ({variable}): expected plain data parallelism. "
                "With weights that are split up, every forward pass needs all processes, and "
                "processes whose responses end earlier would leave the others waiting. Launch "
                "with torchrun, or with accelerate launch --multi_gpu (distributed_type "
                "MULTI_GPU), and train adapters (policy.train = 'lora') where the model is too "
                "large for that."
            )
    if launched() == 1:
        return
    missing = [v for v in ("RANK", "MASTER_ADDR", "MASTER_PORT") if v not in environment]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE = {launched()} but {', '.join(missing)} is not set: expected the "
            "variables that torchrun and accelerate launch set. Start with one of them, or unset "
            "WORLD_SIZE."
        )
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"policy.device = {device!r} with {launched()} processes: expected auto, cpu or cuda, "
            "by which every process takes a device of its own."
        )


def _dist() -> Any:
    """``torch.distributed`` inside of a group, else None."""
    if launched() == 1:
        return None
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() else None


def rank() -> int:
    """Number of this process, from 0."""
    dist = _dist()
    return dist.get_rank() if dist else 0


def world_size() -> int:
    """Number of processes."""
    dist = _dist()
    return dist.get_world_size() if dist else 1


def is_main() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def gather(value: T) -> list[T]:
    """Every process's value, by their numbers, for every process (pickled)."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _in_touch():
        _dist().all_gather_object(values, value)
    return values


def broadcast(value: T) -> T:
    """The main process's value, for every process (pickled); the others' values are ignored."""
    if world_size() == 1:
        return value
    values = [value]
    with _in_touch():
        _dist().broadcast_object_list(values, src=0)
    return values[0]


def agree_any(flag: bool) -> bool:
    """Whether the flag is true for any process."""
    return any(gather(flag))


def together(work: Callable[[], T]) -> T:
    """Runs the work in every process; returns this process's result.

    Where one process raises, all raise, so that none waits for what never comes: the failing
    process its own error, the others one that names the process.

    Raises:
        InstructRecError: An error of ours in any process, by its own class.
        ProcessError: Any other error in another process.
    """
    if world_size() == 1:
        return work()
    result: T | None = None
    own: BaseException | None = None
    try:
        result = work()
    except (Exception, KeyboardInterrupt) as error:
        own = error
    failures = gather(None if own is None else portable(own))
    if own is not None:
        raise own
    for number, failure in enumerate(failures):
        if failure is not None:
            raise relayed(*failure, number, world_size())
    return cast("T", result)


def on_main(work: Callable[[], T]) -> T | None:
    """Runs the work in the main process alone; where it raises, all raise.

    Returns:
        The result in the main process, None in the others.

    Raises:
        InstructRecError: See ``together``.
        ProcessError: See ``together``.
    """
    return together(lambda: work() if is_main() else None)


def from_main(work: Callable[[], T]) -> T:
    """Runs the work in the main process alone; returns its result in every process (pickled).

    Raises:
        InstructRecError: See ``together``.
        ProcessError: See ``together``.
    """
    return cast("T", broadcast(on_main(work)))


def own_share(items: Sequence[T]) -> Sequence[T]:
    """The neighbouring items that fall to this process: as many as to the others, or one more."""
    number, count, size = rank(), world_size(), len(items)
    return items[size * number // count : size * (number + 1) // count]


def sum_(tensors: Sequence[torch.Tensor]) -> None:
    """Adds tensors up over the processes, in place, in few large pieces.

    Args:
        tensors: Of one dtype, on one device, and of equal shapes in every process.
    """
    if world_size() == 1:
        return
    import torch

    bucket: list[torch.Tensor] = []
    for i, tensor in enumerate(tensors):
        bucket.append(tensor)
        if i + 1 == len(tensors) or sum(t.numel() for t in bucket) >= BUCKET:
            flat = torch.cat([t.reshape(-1) for t in bucket])
            with _in_touch():
                _dist().all_reduce(flat)
            for t, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                t.copy_(part.view_as(t))
            bucket = []


def broadcast_(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrites tensors with those of the main process."""
    for tensor in tensors if world_size() > 1 else ():
        with _in_touch():
            _dist().broadcast(tensor, src=0)


def broadcast_tensors(tensors: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """The main process's named tensors, for every process, without pickling them whole."""
    import torch

    held = dict(tensors or {})
    shapes = broadcast({name: (t.shape, t.dtype) for name, t in held.items()})
    for name, (shape, dtype) in shapes.items():
        tensor = held[name].contiguous() if is_main() else torch.empty(shape, dtype=dtype)
        broadcast_([tensor])
        held[name] = tensor
    return held

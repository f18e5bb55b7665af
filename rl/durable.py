"""Files that are on the disk when writing them has returned, and the sums to find damage by.

Every call that reaches the disk goes through ``Disk``, so that a test can watch their order, drop
what was not flushed, or let any of them fail.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from instructrec.crash_points import crash_point

PIECE = 2**24
"""Most bytes that are written at once; each is hashed while it is still in the cache."""
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls the types."""


class Disk:
    """The calls by which a checkpoint reaches the disk, and is held against its sums."""

    def make_folder(self, path: Path) -> None:
        """Makes a folder that its owner alone may enter."""
        os.mkdir(path, 0o700)

    def create(self, path: Path) -> int:
        """Opens a new file that its owner alone may read; a link or an older file is refused."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

    def write(self, descriptor: int, data: memoryview) -> None:
        """Writes all of the data, in as many calls as the system wants."""
        while data:
            data = data[os.write(descriptor, data) :]

    def close(self, descriptor: int, *, flush: bool) -> None:
        """Closes a file, behind forcing it to the disk."""
        try:
            if flush:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def open_to_read(self, path: Path) -> BufferedReader:
        """Opens a file that is there."""
        return path.open("rb")

    def flush_folder(self, path: Path) -> None:
        """Forces the entries of a folder to the disk."""
        self.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY), flush=True)

    def rename(self, path: Path, target: Path) -> None:
        """Gives a file or folder another name in the same folder."""
        os.rename(path, target)


@dataclass(frozen=True)
class Written:
    """What a file holds."""

    size: int
    """Bytes."""
    sha256: str
    """Their SHA-256, in hexadecimal."""


def write_file(path: Path, chunks: Iterable[bytes | memoryview], disk: Disk) -> Written:
    """Writes a new file and forces it to the disk.

    Args:
        path: A name that is not taken.
        chunks: Its content, one after the other.
        disk: Where to.

    Raises:
        OSError: The disk refused; a part of the file may be there.
    """
    digest, size = hashlib.sha256(), 0
    descriptor = disk.create(path)
    whole = False
    try:
        crash_point("checkpoint.file.opened")
        for chunk in chunks:
            view = memoryview(chunk).cast("B")
            for start in range(0, len(view), PIECE):
                piece = view[start : start + PIECE]
                disk.write(descriptor, piece)
                digest.update(piece)
            size += len(view)
            crash_point("checkpoint.file.begun")
        whole = True
    finally:
        disk.close(descriptor, flush=whole)
    crash_point("checkpoint.file.flushed")
    return Written(size, digest.hexdigest())


def sum_of(path: Path, disk: Disk) -> Written:
    """Reads a file through for its size and sum.

    Raises:
        OSError: It is not there, or cannot be read.
    """
    with disk.open_to_read(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(file.tell(), digest)


def safetensors_chunks(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The content of a safetensors file, one tensor after the other.

    Its own writer wants all tensors in main memory at once and opens the file itself. Here a tensor
    on an accelerator is copied when its turn comes, and let go of.

    Args:
        tensors: Tensors of any device and layout.
    """
    # Larger types first: every tensor then begins at a multiple of its size, as readers want it.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, offset = {}, 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data

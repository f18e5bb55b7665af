"""Folders that are whole or absent: written beside their place and renamed into it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instructrec.crash_points import crash_point


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Gives the name of a new folder to make; it becomes ``folder`` when the block ends well.

    Args:
        folder: Where it shall be; what lies there is replaced. Behind a link it is its target.

    Raises:
        OSError: The disk is full, or the like.
    """
    folder = folder.resolve()
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield staging
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        # A class of its own that stands for an error of the system, whose number it ends with.
        number = re.search(r"\(os error (\d+)\)$", str(error))
        if type(error).__name__ == "SafetensorError" and number:
            code = int(number.group(1))
            raise OSError(code, os.strerror(code), str(folder)) from error
        raise
    crash_point("export.half")
    for path in [*staging.rglob("*"), staging]:  # under its name it shall be whole
        _flush(path)
    replaced = folder.with_name(f".{folder.name}.replaced")
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
        crash_point("export.moved_aside")
    staging.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(path: Path) -> None:
    """Forces a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Keeps what other libraries say about themselves out of our own output."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

_WANDB_NOTE = "[INFO] Running in WANDB offline mode\n"

# Where bitsandbytes is installed, PEFT and TRL import it in every command, and on CPUs with
# AVX512-BF16 it then asks for a package whose kernels we never use (see policies.quantized).
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage()
)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' logging and progress bars inside the block, then restores them."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


@contextmanager
def without_wandb_note() -> Iterator[None]:
    """Drops the line that transformers' trainer prints when it is imported under W&B offline.

    Everything else that is printed inside the block comes out at its end.
    """
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        print(printed.getvalue().replace(_WANDB_NOTE, ""), end="")

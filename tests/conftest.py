"""What every test process starts with: one thread, no network, tracking that stays on disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Set before anything imports torch, transformers or wandb, which read them once.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "agg"

# A deadline would measure how busy the machine is, not what the code does.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Several test processes share the machine; torch is not imported for tests without it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _wandb_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs that a test opens are written to a temporary folder, not to the working tree."""
    folder = tmp_path_factory.mktemp("wandb")
    os.environ["WANDB_DIR"] = str(folder)
    yield folder
    del os.environ["WANDB_DIR"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent

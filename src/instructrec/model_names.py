"""Which folder a model's name stands for, also for packages that know nothing of policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

EMBEDDED = "smollm2-135m"
"""Name of the embedded model."""
FOLDERS: dict[str, Callable[[], Path]] = {}
"""What finds the folder of a model that has a name; the package's front door enters it here."""


def model_folder(name: str) -> str:
    """Returns where a tokenizer or model of this name is loaded from.

    Args:
        name: One of `FOLDERS`; the folder of a run, which stands for the policy that it trained; or
            the folder or hub id of a model.

    Returns:
        A folder, or the name itself.

    Raises:
        PolicyError: The embedded model is named, and its wheel is missing or damaged.
    """
    if name in FOLDERS:
        return str(FOLDERS[name]())
    trained = Path(name) / "policy"
    return str(trained) if trained.is_dir() else name

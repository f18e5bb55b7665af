"""Which folder a model's name stands for, also for packages that know nothing of policies."""

from __future__ import annotations

from pathlib import Path

EMBEDDED = "smollm2-135m"
"""Name of the embedded model."""


def model_folder(name: str) -> str:
    """Returns where a tokenizer or model of this name is loaded from.

    Args:
        name: `EMBEDDED`; the folder of a run, which stands for the policy that it trained; or the
            folder or hub id of a model.

    Returns:
        A folder, or the name itself.

    Raises:
        PolicyError: The embedded model is named, and its wheel is missing or damaged.
    """
    if name == EMBEDDED:
        from instructrec.policies.embedded import embedded_folder  # only who names it needs it

        return str(embedded_folder())
    trained = Path(name) / "policy"
    return str(trained) if trained.is_dir() else name

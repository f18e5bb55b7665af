"""Are these the weights? Hashes hold what is measured against what was trained.

A run that evaluates, exports or loads other weights than it trained looks just like one that
learned nothing, or like one that learned. Hashes are over the float32 weights with adapters, so
they do not depend on the compute precision or the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from instructrec.errors import PolicyError
from instructrec.experiments.jsonl import read_json

if TYPE_CHECKING:
    from instructrec.experiments.runfolder import RunFolder


def check_evaluated(policy_hash: str, rows: Path, what: str) -> None:
    """Checks that an evaluation scored the given weights.

    Args:
        policy_hash: Hash of the weights that the run is about to record.
        rows: The evaluation's JSONL file; one that is not there was not made, and passes.
        what: What the weights should be, for the message.

    Raises:
        PolicyError: It scored other weights.
    """
    side = rows.with_suffix(".json")
    scored = read_json(side).get("weights_hash") if side.exists() else None
    if scored is not None and scored != policy_hash:
        raise PolicyError(
            f"the policy has the weights {policy_hash[:12]}…, but {rows} scored {scored[:12]}…: "
            f"expected {what}. The numbers of this run cannot be trusted; delete that evaluation "
            "and continue the run with --resume, or run it again with --overwrite."
        )


def unchanged(start_hash: str, policy_hash: str, trained: dict[str, Any]) -> str | None:
    """The warning where training left the weights as they were, else None.

    Args:
        start_hash: Hash before training.
        policy_hash: Hash after it.
        trained: The summary of the training, with ``updates`` and ``best_update``.
    """
    if policy_hash != start_hash:
        return None
    first = "the trained policy has the very weights that it started with: "
    if trained["updates"] == 0:
        return f"{first}no step was asked for."
    if trained["best_update"] == 0:
        return f"{first}no validation was better than the one before the first step."
    return (
        f"{first}every step was left out or had no gradient. Look at ppo/grad_norm and "
        "ppo/skipped_frac, and with `instructrec probe` whether responses to one instruction get "
        "different rewards."
    )


def check_loaded(weights_hash: str, run: RunFolder) -> None:
    """Checks that a policy loaded from a run folder is the one that the run recorded.

    Args:
        weights_hash: Hash of the loaded policy.
        run: Its run folder; a run that is not finished has recorded nothing, and passes.

    Raises:
        PolicyError: It has other weights.
    """
    recorded = run.summary().get("policy_hash")
    if recorded is not None and recorded != weights_hash:
        raise PolicyError(
            f"the weights in {run.policy} have the hash {weights_hash[:12]}…, but the run recorded "
            f"{recorded[:12]}… for its policy: they were changed, or their base model was. "
            "Put the recorded weights back, or name the folder policy/ itself to measure these."
        )

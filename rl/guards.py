"""What keeps an update from doing harm: steps that are left out, work that is cut smaller.

A step whose loss or gradient is no finite number is not taken: one such entry would spread over
all weights through the clipping, and stay in the optimizer's moments. A micro-batch that the memory
does not hold is halved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from instructrec.devices import is_out_of_memory, release_memory
from instructrec.errors import InstructRecError, NumericsError, PolicyError
from instructrec.faults import Fault, note
from instructrec.rl.checkpoint import is_finite
from instructrec.rl.micro_batches import MicroBatch

T = TypeVar("T")


class StepGuard:
    """Says which steps may be taken, and counts the others.

    Args:
        most: Steps in a row that may be left out before it gives up.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.left_out = 0
        """Steps left out since ``begin``."""
        self.in_a_row = 0
        """Steps left out since the last one that was taken."""
        self.reason = ""
        """Why the last one was left out."""

    @property
    def gave_up(self) -> bool:
        """Whether too many steps in a row were left out."""
        return self.in_a_row >= self.most

    @property
    def diagnosis(self) -> str:
        """Why it gave up, and what to do."""
        return (
            f"{self.in_a_row} optimizer steps in a row were left out, ppo.max_bad_steps = "
            f"{self.most}; of the last one {self.reason}. The weights are those of the last step "
            "that was finite. Look at the rewards and at ppo/kl_ref of the last updates, then "
            "start from an earlier checkpoint with a lower ppo.learning_rate."
        )

    def state_dict(self) -> dict[str, Any]:
        """What it counts beyond an update, and why."""
        return {"in_a_row": self.in_a_row, "reason": self.reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned; whoever goes on behind the most begins anew."""
        self.in_a_row, self.reason = state.get("in_a_row", 0), state.get("reason", "")
        if self.gave_up:
            self.in_a_row = 0

    def begin(self) -> None:
        """Starts the count of an update.

        Raises:
            NumericsError: It gave up in the update before.
        """
        if self.gave_up:
            raise NumericsError(self.diagnosis)
        self.left_out = 0

    def allows(
        self,
        norm: Tensor,
        sums: Mapping[str, float],
        weights: Callable[[], Mapping[str, nn.Parameter]],
    ) -> bool:
        """Says whether a step may be taken, by the numbers that all processes share.

        Args:
            norm: L2 norm of the gradient before clipping.
            sums: Statistics of the loss.
            weights: Gives what trains, by name, with gradients that were not clipped.
        """
        found = _not_finite(norm, sums, weights)
        if found is None:
            self.in_a_row = 0
            return True
        kind, name, self.reason = found
        self.left_out += 1
        self.in_a_row += 1
        note(Fault("numerics", kind, name, f"a step was left out: {self.reason}"))
        return False


def _not_finite(
    norm: Tensor, sums: Mapping[str, float], weights: Callable[[], Mapping[str, nn.Parameter]]
) -> tuple[str, str, str] | None:
    """Kind, name and sentence of the first number that is not finite."""
    for name, value in sums.items():
        if not math.isfinite(value):
            return "loss", name, f"{name} of the loss is {value}"
    if torch.isfinite(norm):
        return None
    for name, weight in weights().items():
        if weight.grad is not None and not torch.isfinite(weight.grad).all():
            return "gradient", name, f"the gradient of {name} is not finite"
    return "gradient", "norm", f"the gradient norm is {float(norm)}"


def check_finite(weights: Mapping[str, Tensor], what: str) -> None:
    """Refuses weights that hold something else than finite numbers.

    Args:
        weights: Tensors by name.
        what: What would be done with them, for the error.

    Raises:
        NumericsError: Names the first of them.
    """
    for name, weight in weights.items():
        if not is_finite(weight):
            raise NumericsError(
                f"{name} holds numbers that are not finite: expected finite weights, so {what}. "
                "Go on from the newest checkpoint with --resume and a lower ppo.learning_rate in a "
                "new run if it happens again."
            )


class MemoryGuard:
    """Cuts work smaller when the memory does not hold it.

    Nothing random is drawn inside of the work, so repeating it in smaller parts gives the same
    numbers but for rounding.

    Args:
        most: What one part takes at the start.
    """

    def __init__(self, most: MicroBatch) -> None:
        self._first = most
        self.most = most
        """What one part takes, now."""

    @property
    def size(self) -> int:
        """Most episodes in one part, now."""
        return self.most.episodes

    def state_dict(self) -> dict[str, Any]:
        """What one part takes, and took at the start."""
        return {"most": list(self.most), "first": list(self._first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned, unless it is to begin with something else now."""
        if state.get("first") == list(self._first):
            self.most = MicroBatch(*state["most"])

    def run(self, work: Callable[[MicroBatch], T], name: str) -> T:
        """Does the work in parts of ``most``, or in ever smaller ones.

        Args:
            work: Gets the most that a part may be; begins anew when it is called again.
            name: What the work is called in the record.

        Raises:
            PolicyError: The memory does not hold a single episode.
        """
        while True:
            try:
                return work(self.most)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise PolicyError(
                        f"out of memory in the {name} with one episode at a time. Lower "
                        "ppo.response_length, train fewer weights (policy.train = 'lora' or "
                        "'last_layers'), or use a smaller model or a larger machine."
                    ) from error
            # Outside of the handler: the frames that failed, and what they held, are gone.
            release_memory()
            self.most = self.most.halved()
            message = f"out of memory in the {name}: {self.size} episodes at a time from now on"
            note(Fault("memory", "out_of_memory", name, message))


@contextmanager
def enough_memory(
    what: str = "the optimizer, which keeps two numbers for each trained weight",
    advice: str = "Train fewer weights (policy.train: lora or last_layers; ppo.critic: shared)",
) -> Iterator[None]:
    """Around what cannot be done in halves, as a step of the optimizer.

    Args:
        what: Names it.
        advice: What lowers its need, without a full stop.

    Raises:
        PolicyError: The memory does not hold it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # What a validation inside of it lacks has its own words already.
        if isinstance(error, InstructRecError) or not is_out_of_memory(error):
            raise
        raise PolicyError(
            f"out of memory in {what}. {advice}, or use a smaller model or a larger machine, on "
            "which --resume goes on from the newest checkpoint, if there is one."
        ) from error

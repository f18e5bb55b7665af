"""Ends each response of transformers' ``generate`` at a length of its own.

Needs only torch and transformers: peers run where instructrec is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList


class AtTarget(StoppingCriteria):
    """Ends each row of a batch behind so many new tokens.

    No token is forced, so log-probs are those of the policy. What follows in a row that has ended
    is padding.

    Args:
        targets_B: New tokens of each row, (B,).
        width: Tokens of the padded prompts.
    """

    eos_token_id = None
    """``generate`` pads rows that have ended where a criterion has an attribute of this name."""

    def __init__(self, targets_B: Tensor, width: int) -> None:
        self.targets_B, self.width = targets_B, width

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Says which rows have ended, (B,)."""
        return input_ids.shape[1] - self.width >= self.targets_B


def end_at_targets(model: Any, targets: Mapping[tuple[int, ...], int]) -> None:
    """Has a model's ``generate`` end the response to each prompt at its target.

    Args:
        model: Causal language model whose ``generate`` gets ``input_ids`` and ``attention_mask``.
        targets: Tokens of a response, by the tokens of its prompt.
    """
    generate = model.generate

    def ending(*, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        rows = zip(input_ids, attention_mask.bool(), strict=True)
        lengths = [targets[tuple(ids[mask].tolist())] for ids, mask in rows]
        targets_B = torch.tensor(lengths, device=input_ids.device)
        criteria = StoppingCriteriaList([AtTarget(targets_B, input_ids.shape[1])])
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        return generate(**batch, stopping_criteria=criteria, **kwargs)

    model.generate = ending

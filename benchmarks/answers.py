"""Which responses are right, where nothing of instructrec is installed; needs only torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Answers:
    """Reads responses, and knows what was expected.

    Args:
        tokenizer: Of the policy; its pad token is no token of any text.
        rows: Instructions: ``ids`` (tokens of the prompt) and ``reference``.
    """

    def __init__(self, tokenizer: Any, rows: list[dict[str, Any]]) -> None:
        self._tokenizer = tokenizer
        self._expected = {tuple(row["ids"]): row["reference"] for row in rows}
        self._pad = int(tokenizer.pad_token_id)

    def scores(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """1 for an answer that equals the reference but for outer white space, (B,).

        Args:
            prompts: (B, P) token ids, padded on the left.
            responses: (B, R) token ids; what follows the first end token does not count.
        """
        eos, found = self._tokenizer.eos_token_id, []
        for prompt, response in zip(prompts.tolist(), responses.tolist(), strict=True):
            ids = response[: response.index(eos)] if eos in response else response
            text = self._tokenizer.decode([t for t in ids if t != self._pad])
            expected = self._expected[tuple(t for t in prompt if t != self._pad)]
            found.append(float(text.strip() == expected.strip()))
        return torch.tensor(found, device=prompts.device)

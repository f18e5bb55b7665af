"""What every policy offers: answers to a batch of prompts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from instructrec.policies.config import Sampling

Message = Mapping[str, str]
"""One chat message: ``{"role": ..., "content": ...}``."""
Prompt = str | Sequence[Message]
"""A plain instruction (becomes one user message) or a whole conversation."""


class StopReason(StrEnum):
    """Why a response ended."""

    EOS = "eos"
    """The policy sampled an end token (it is part of the response's ids)."""
    STOP_STRING = "stop_string"
    """The text contains a stop string (kept in the ids, cut from the text)."""
    LENGTH = "length"
    """The token budget cut the response."""


@dataclass
class Responses:
    """Answers to B prompts, with everything that training needs; lists are aligned by position."""

    texts: list[str]
    """Decoded responses without special tokens, stripped of outer white space."""
    prompt_ids: list[list[int]] = field(default_factory=list)
    """Token ids that the policy was given, unpadded. Empty for policies without tokens."""
    response_ids: list[list[int]] = field(default_factory=list)
    """Token ids as sampled, end token included, unpadded."""
    logprobs: list[list[float]] = field(default_factory=list)
    """Log-probs of response_ids under the distribution that sampled them (nats)."""
    stop_reasons: list[StopReason] = field(default_factory=list)
    """Why each response ended."""
    states: list[Any] = field(default_factory=list)
    """Hidden states of prompts and responses (``TokenStates``), where the policy keeps them."""

    def __len__(self) -> int:
        return len(self.texts)


class Policy(Protocol):
    """Anything that answers prompts."""

    name: str

    def respond(
        self,
        prompts: Sequence[Prompt],
        columns: Mapping[str, Sequence[Any]] | None = None,
        sampling: Sampling | None = None,
    ) -> Responses:
        """Answers each prompt once.

        Args:
            prompts: B prompts.
            columns: The instructions' other columns as lists of length B (scripted policies such
                as the oracle need them).
            sampling: How to draw; the policy's own default when None.
        """
        ...


class TokenPolicy(Policy, Protocol):
    """A policy that carries a conversation on behind the very tokens that it sampled."""

    @property
    def max_length(self) -> int:
        """Most tokens of a conversation, the answer to come included."""
        ...

    def respond_ids(
        self, prompt_ids: Sequence[list[int]], sampling: Sampling | None = None
    ) -> Responses:
        """Answers B conversations that are given as token ids, each once."""
        ...

    def follow_up(self, response_ids: Sequence[int], message: str) -> list[int]:
        """Token ids that stand between a sampled response and the answer to the next message."""
        ...

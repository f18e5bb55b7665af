"""How much one forward/backward takes: episodes of their real lengths, by what the memory holds.

The estimate is meant to be above what is needed and is used coarsely: tokens are halved until they
fit, so that a little more or less free memory changes no run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from instructrec import processes
from instructrec.devices import free_memory

if TYPE_CHECKING:
    from instructrec.policies.model_policy import ModelPolicy
    from instructrec.rl.config import PPOConfig

_MOST = {"cuda": 16_384}
_MOST_ELSEWHERE = 4_096
"""Tokens of a micro-batch where memory sets no limit: products of more rows are hardly faster."""
_FEWEST = 256
"""Tokens below which nothing is halved any more: a sequence has to fit."""
_SHARE = 0.7
"""Share of the memory left over that activations may take; rollouts need some, too."""
_PER_HIDDEN, _PER_INTERMEDIATE, _PER_LOGIT = 44, 4, 16
"""Bytes that a token leaves for the backward pass: per layer and hidden number; per layer,
intermediate number and byte of the precision; per logit of an action token, all in float32.
Counted with ``torch.autograd.graph.saved_tensors_hooks`` on Llama shapes, both precisions."""


class MicroBatch(NamedTuple):
    """The most that one forward/backward takes."""

    episodes: int
    """Most episodes."""
    tokens: int | None = None
    """Most tokens, padding included, unless a single episode has more; None sets no limit."""

    @classmethod
    def of(cls, config: PPOConfig) -> MicroBatch:
        """What the settings say, with the micro-batch filled in."""
        assert config.micro_batch_size is not None, "with_micro_batch has filled it in"
        return cls(config.micro_batch_size, config.micro_batch_tokens)

    def cut(self, rows: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Cuts episodes into micro-batches.

        Args:
            rows: Numbers of the episodes, the shortest first.
            lengths: Tokens of each of them, in the same order.
        """
        batch: list[int] = []
        for row, length in zip(rows, lengths, strict=True):
            padded = (len(batch) + 1) * length
            full = len(batch) == self.episodes or (self.tokens is not None and padded > self.tokens)
            if batch and full:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def halved(self) -> MicroBatch:
        """Half as much, of one episode or more."""
        tokens = None if self.tokens is None else max(self.tokens // 2, 1)
        return MicroBatch(max(self.episodes // 2, 1), tokens)


def with_micro_batch(policy: ModelPolicy, config: PPOConfig, max_turns: int = 1) -> PPOConfig:
    """Fills in a micro-batch that the settings leave open, alike in all processes.

    Args:
        policy: The policy, as yet without gradients, moments and reference.
        config: Settings; a ``micro_batch_size`` that was given stays as it is.
        max_turns: Most responses in one episode.
    """
    if config.micro_batch_size is not None:
        return config
    tokens = config.micro_batch_tokens or min(processes.gather(most_tokens(policy, config)))
    return config.with_micro_batch(tokens, max_turns, processes.world_size())


def most_tokens(policy: ModelPolicy, config: PPOConfig, free: float | None = None) -> int:
    """Tokens of a micro-batch that this machine has the memory for.

    Args:
        policy: The policy, as yet without gradients, moments and reference.
        config: Settings.
        free: Bytes that are free for this process; asks the machine when None.
    """
    tokens = _MOST.get(policy.device.type, _MOST_ELSEWHERE)
    if free is None:
        free = free_memory(policy.device)
        if policy.device.type == "cpu":  # which all processes of the run share
            free /= processes.world_size()
    if not hasattr(policy.model, "config"):
        return tokens  # a model that does not tell its shape
    left = _SHARE * (free - _still_to_come(policy, config))
    needed = bytes_per_token(policy, config)
    while tokens > _FEWEST and tokens * needed > left:
        tokens //= 2
    return tokens


def bytes_per_token(policy: ModelPolicy, config: PPOConfig) -> float:
    """Bytes of activations and logits that a token of a micro-batch leaves, roughly."""
    model: Any = policy.model.config.get_text_config()
    hidden = int(model.hidden_size)
    intermediate = int(getattr(model, "intermediate_size", None) or 4 * hidden)
    layer = _PER_HIDDEN * hidden
    layer += _PER_INTERMEDIATE * policy.compute_dtype.itemsize * intermediate
    models = 1 + (config.critic == "separate")
    # The number of episodes sees to it that no more of the tokens are action tokens.
    action_share = config.response_length / config.tokens_per_turn
    logits = _PER_LOGIT * action_share * int(model.vocab_size)
    return models * int(model.num_hidden_layers) * layer + logits


def _still_to_come(policy: ModelPolicy, config: PPOConfig) -> float:
    """Bytes of gradients, two moments, the reference, and a critic with its own."""
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    models = 1 + (config.critic == "separate")
    return 4.0 * trained * (3 * models + (models - 1) + bool(config.kl_coef))

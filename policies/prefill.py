"""The first pass of decoding: prompts in, cache and next-token logits out.

Three things save work, and none changes a result beyond float noise: tokens that all prompts
begin with (the chat template's opening) run once; identical prompts run once; prompts of similar
length run together, so that little padding is computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from instructrec.policies.kv_cache import join_at_right, new_cache, select_rows
from instructrec.policies.tape import StateProbe, Tape
from instructrec.policies.trunk import Trunk, base_causal_lm

SHORTEST_SHARED_PREFIX = 4
"""A shorter common opening is not worth a pass of its own."""


@dataclass
class Prefilled:
    """A batch of B prompts, ready to decode."""

    cache: DynamicCache
    """Keys and values of W columns."""
    logits: Tensor
    """Logits of the first new token (B, V)."""
    token_mask: Tensor
    """Which columns hold a token of the row (B, W), bool."""
    tapes: list[Tape] | None = None
    """The states of each row's tokens, when they are kept."""


class Forward:
    """One pass of a causal language model that returns the last position's logits.

    Models differ in the arguments that they take; those that a model lacks are left out.
    """

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.model: nn.Module = model
        self.pad_token_id = pad_token_id
        plain = base_causal_lm(model)
        self.config: Any = plain.config
        accepted = inspect.signature(plain.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_logits_to_keep = "logits_to_keep" in accepted
        self.device = next(model.parameters()).device
        self._head: nn.Module | None = plain.get_output_embeddings()
        self._base: nn.Module = plain.base_model
        self.probe: StateProbe | None = None
        """Holds the states of the newest pass while they are kept."""

    @contextmanager
    def compact_head_input(self) -> Iterator[None]:
        """Lets the output layer see its input in one piece of memory.

        The last position is a strided view; multiplied by weights that need no gradient, torch
        takes the view as a batch of vectors and copies the weights once for each row.
        """
        if self._head is None:
            yield
            return
        handle = self._head.register_forward_pre_hook(
            lambda _module, inputs: (inputs[0].contiguous(), *inputs[1:])
        )
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def keeping_states(self, layer: int | None) -> Iterator[None]:
        """Keeps the states of every pass within the block in ``probe``; None keeps none."""
        if layer is None:
            yield
            return
        with StateProbe(self._base, layer).listening() as self.probe:
            try:
                yield
            finally:
                self.probe = None

    def __call__(self, ids_BT: Tensor, token_mask_BW: Tensor, cache: DynamicCache) -> Tensor:
        """Runs the newest T columns.

        Args:
            ids_BT: Token ids of the newest columns; padding where the mask says so.
            token_mask_BW: Which columns hold a token, the cached ones included.
            cache: Holds the W - T columns before; the new ones are added.

        Returns:
            Logits after the last column (B, V).
        """
        options: dict[str, Any] = {}
        if self._takes_positions:
            positions_BW = token_mask_BW.long().cumsum(-1) - 1
            options["position_ids"] = positions_BW[:, -ids_BT.shape[1] :].clamp(min=0)
        if self._takes_logits_to_keep:
            options["logits_to_keep"] = 1
        padded = not bool(token_mask_BW.all())
        output = self.model(
            input_ids=ids_BT,
            attention_mask=token_mask_BW.long() if padded else None,
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        return output.logits[:, -1]


def prefill(forward: Forward, prompts: Sequence[Sequence[int]], *, rows_at_once: int) -> Prefilled:
    """Runs prompts up to their first new token.

    Args:
        forward: The model.
        prompts: Token ids, sorted by length, identical prompts side by side.
        rows_at_once: Prompts in one pass; fewer mean less padding.
    """
    unique = [p for i, p in enumerate(prompts) if i == 0 or p != prompts[i - 1]]
    cache, plain = new_cache(forward.config)
    if not plain:
        batch = _run(forward, unique, cache)
    else:
        batch = _run_shared(forward, unique, rows_at_once)
    if len(unique) < len(prompts):
        row, rows = -1, []
        for i, prompt in enumerate(prompts):
            row += i == 0 or prompt != prompts[i - 1]
            rows.append(row)
        select_rows(batch.cache, rows)
        tapes = batch.tapes and [batch.tapes[row].copy() for row in rows]
        batch = Prefilled(batch.cache, batch.logits[rows], batch.token_mask[rows], tapes)
    return batch


def _run_shared(forward: Forward, prompts: list[Sequence[int]], rows_at_once: int) -> Prefilled:
    """Runs the common opening once, then the rest in groups of similar length."""
    prefix = common_prefix(prompts)
    prefix = prefix if prefix >= SHORTEST_SHARED_PREFIX else 0
    shared, _ = new_cache(forward.config)
    opening = Tape()
    if prefix:
        ids = torch.tensor([prompts[0][:prefix]], device=forward.device)
        forward(ids, torch.ones_like(ids, dtype=torch.bool), shared)
        if forward.probe is not None:
            opening.add(forward.probe.newest(), row=0)
    groups = [prompts[i : i + rows_at_once] for i in range(0, len(prompts), rows_at_once)]
    parts = []
    for group in groups:
        cache = _repeated(shared, len(group), forward.config) if prefix else None
        cache = cache or new_cache(forward.config)[0]
        parts.append(_run(forward, group, cache, prefix, opening))
    if len(parts) == 1:
        return parts[0]
    width = max(part.token_mask.shape[1] for part in parts) - prefix
    masks = [
        torch.cat(
            [
                part.token_mask[:, :prefix],
                part.token_mask.new_zeros(
                    part.token_mask.shape[0], prefix + width - part.token_mask.shape[1]
                ),
                part.token_mask[:, prefix:],
            ],
            dim=1,
        )
        for part in parts
    ]
    return Prefilled(
        join_at_right([part.cache for part in parts], prefix, width),
        torch.cat([part.logits for part in parts]),
        torch.cat(masks),
        None if forward.probe is None else [tape for part in parts for tape in part.tapes or []],
    )


def _run(
    forward: Forward,
    prompts: list[Sequence[int]],
    cache: DynamicCache,
    prefix: int = 0,
    opening: Tape | None = None,
) -> Prefilled:
    """Runs the prompts behind their shared prefix, padded on the left of what is their own.

    Args:
        forward: The model.
        prompts: Token ids.
        cache: Holds the shared prefix.
        prefix: Its number of tokens.
        opening: Its states, when states are kept.
    """
    width = max(map(len, prompts)) - prefix
    own = [list(prompt[prefix:]) for prompt in prompts]
    padding = [width - len(ids) for ids in own]
    ids = [[forward.pad_token_id] * n + row for n, row in zip(padding, own, strict=True)]
    columns = torch.arange(-prefix, width, device=forward.device)
    padding_B1 = torch.tensor(padding, device=forward.device)[:, None]
    token_mask = (columns[None] < 0) | (columns[None] >= padding_B1)
    logits = forward(torch.tensor(ids, device=forward.device), token_mask, cache)
    if forward.probe is None:
        return Prefilled(cache, logits, token_mask)
    tapes = [(opening or Tape()).copy() for _ in prompts]
    for row, tape in enumerate(tapes):
        tape.add(forward.probe.newest(), row, start=padding[row])
    return Prefilled(cache, logits, token_mask, tapes)


def _repeated(shared: DynamicCache, rows: int, config: Any) -> DynamicCache:
    """A new cache whose rows all hold the one row of ``shared``."""
    cache, _ = new_cache(config)
    layers: Sequence[Any] = shared.layers
    for i, layer in enumerate(layers):
        keys, values = layer.keys, layer.values
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), i)
    return cache


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all prompts begin with, one fewer than the shortest at most.

    A single prompt shares nothing with others: 0.
    """
    if len(prompts) < 2:
        return 0
    # In lexical order the first and the last differ the most.
    first, last = min(map(list, prompts)), max(map(list, prompts))
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)


def shared_columns(trunk: Trunk, ids_BL: Tensor, most: int) -> int:
    """First columns that are the same in all rows and are worth to be run once.

    Args:
        trunk: What runs them.
        ids_BL: Token ids, padded on the right.
        most: Columns that may be shared at the most.
    """
    same_L = (ids_BL[:, :most] == ids_BL[:1, :most]).all(0)
    shared = int(same_L.long().cumprod(0).sum())
    return shared if trunk.can_share and shared >= SHORTEST_SHARED_PREFIX else 0

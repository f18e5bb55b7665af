"""Key/value caches of the rollout engine: room to grow, and rows joined at their right ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from instructrec.policies.cpu_passes import attention_dtype


class RoomyLayer(DynamicLayer):
    """A cache layer that writes new tokens in place while there is room.

    The plain layer copies the whole cache for every new token; with long contexts that copy is
    the largest part of decoding on a CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self._key_buffer: Tensor | None = None
        self._value_buffer: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends keys and values (B, heads, new, D); returns all of them (B, heads, all, D)."""
        # Under autocast, rotary embeddings make float32 of bfloat16 keys (adapters do so with the
        # values as well). Kept in the precision of the attention, the cache is not cast for every
        # new token, and keys are those that the trainer sees.
        dtype = attention_dtype(value_states.device) or value_states.dtype
        key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys, self._key_buffer = _append(self.keys, self._key_buffer, key_states)
        self.values, self._value_buffer = _append(self.values, self._value_buffer, value_states)
        return self.keys, self.values


def _append(old: Tensor, buffer: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
    """Writes ``new`` behind ``old``, in the buffer under ``old`` when that is possible."""
    length = old.shape[-2] if old.numel() else 0
    needed = length + new.shape[-2]
    # Rows that were selected or repeated live in fresh memory, which is no view of the buffer.
    fits = buffer is not None and old.data_ptr() == buffer.data_ptr()
    if buffer is None or not fits or buffer.shape[-2] < needed:
        shape = (*new.shape[:-2], needed + needed // 4 + 16, new.shape[-1])
        buffer = new.new_empty(shape)
        if length:
            buffer[..., :length, :] = old
    buffer[..., length:needed, :] = new
    return buffer[..., :needed, :], buffer


def new_cache(config: Any) -> tuple[DynamicCache, bool]:
    """Makes an empty cache for a model.

    Args:
        config: The model's configuration.

    Returns:
        The cache, and whether all its layers are plain attention over the whole context. Only
        then may padding stand anywhere and may rows be joined; sliding windows and recurrent
        layers count positions.
    """
    cache = DynamicCache(config=config)
    plain = all(type(layer) is DynamicLayer for layer in cache.layers)
    if plain:
        cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache, plain and bool(cache.layers)


def attention_widths(config: Any) -> tuple[int, int]:
    """Numbers of a model's attention for one token in one layer.

    Args:
        config: The configuration of its text model.

    Returns:
        Those of the query over all heads, and those that the cache holds: keys and values.
    """
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(heads * head_size), int(2 * kv_heads * head_size)


def join_at_right(caches: Sequence[DynamicCache], prefix: int, width: int) -> DynamicCache:
    """Joins the rows of several caches of plain layers into one.

    Every cache holds ``prefix`` tokens that all rows share, then its own tokens. The own tokens
    end up at the right end of ``width`` columns; the columns between are zero and belong to no
    token (the attention mask hides them).

    Args:
        caches: Caches with the same layers and the same prefix.
        prefix: Number of shared tokens.
        width: Columns after the prefix, at least the largest number of own tokens.
    """
    joined = DynamicCache()
    joined.layers = [
        _join_layers([cache.layers[i] for cache in caches], prefix, width)
        for i in range(len(caches[0].layers))
    ]
    return joined


def _join_layers(parts: Sequence[Any], prefix: int, width: int) -> RoomyLayer:
    layer = RoomyLayer()
    layer.lazy_initialization(parts[0].keys, parts[0].values)
    layer.keys = _join_tensors([part.keys for part in parts], prefix, width)
    layer.values = _join_tensors([part.values for part in parts], prefix, width)
    return layer


def _join_tensors(parts: Sequence[Tensor], prefix: int, width: int) -> Tensor:
    rows = sum(part.shape[0] for part in parts)
    heads, _, size = parts[0].shape[1:]
    joined = parts[0].new_zeros(rows, heads, prefix + width, size)
    start = 0
    for part in parts:
        stop = start + part.shape[0]
        own = part.shape[-2] - prefix
        joined[start:stop, :, :prefix] = part[:, :, :prefix]
        joined[start:stop, :, prefix + width - own :] = part[:, :, prefix:]
        start = stop
    return joined


def select_rows(cache: DynamicCache, rows: Sequence[int]) -> None:
    """Keeps (and may repeat) rows of the batch, in the given order, in place."""
    layers: Sequence[Any] = cache.layers
    device = next((layer.device for layer in layers if hasattr(layer, "device")), None)
    cache.batch_select_indices(torch.tensor(rows, dtype=torch.long, device=device))

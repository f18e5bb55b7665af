"""The memory that decoding keeps of what it has read."""

from __future__ import annotations

import torch

from instructrec.policies.kv_cache import RoomyLayer


def test_under_bfloat16_autocast_the_cache_keeps_float32_keys_bit_for_bit() -> None:
    """The trainer attends to keys that rotary embeddings left in float32; so must decoding."""
    keys, values = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4).bfloat16()
    layer = RoomyLayer()
    with torch.autocast("cpu", torch.bfloat16):
        for part in (slice(0, 3), slice(3, 4), slice(4, 5)):
            kept_keys, kept_values = layer.update(keys[:, :, part], values[:, :, part])
    assert kept_keys.dtype == kept_values.dtype == torch.float32
    assert torch.equal(kept_keys, keys) and torch.equal(kept_values, values.float())


def test_without_autocast_the_cache_keeps_what_it_is_given() -> None:
    keys = torch.randn(2, 3, 5, 4).bfloat16()
    kept_keys, kept_values = RoomyLayer().update(keys, keys)
    assert torch.equal(kept_keys, keys) and torch.equal(kept_values, keys)

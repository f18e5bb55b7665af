"""Token embeddings whose gradient costs as much as the tokens that were looked up.

PyTorch's own gradient of a look-up is a tensor of the size of the whole vocabulary, almost all of
it zeros, which is filled, and added to the gradient of the output layer where the two share their
weights. On a CPU that was a sixth of the time of an update with all weights trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def quick_embedding(base: Any) -> nn.Embedding | None:
    """The embedding of a transformer where ``look_up`` may stand in for it, else None.

    It has to be a plain one that trains, on a CPU (on a GPU the zeros cost little, and PyTorch's
    own gradient adds up in a fixed order), and the transformer has to use its token ids for
    nothing else, which is tried out.
    """
    embedding = base.get_input_embeddings()
    if not _is_plain(embedding):
        return None
    ids_BL = torch.arange(14).reshape(2, 7) % embedding.num_embeddings
    with torch.no_grad():
        expected = base(input_ids=ids_BL, use_cache=False).last_hidden_state
        found = base(inputs_embeds=embedding(ids_BL), use_cache=False).last_hidden_state
    scale = expected.abs().max().clamp(min=1.0)
    return embedding if bool((found - expected).abs().max() <= 1e-3 * scale) else None


def _is_plain(embedding: Any) -> bool:
    return (
        type(embedding) is nn.Embedding
        and embedding.weight.requires_grad
        and embedding.weight.device.type == "cpu"
        and embedding.max_norm is None
        and not embedding.scale_grad_by_freq
        and not embedding.sparse
    )


def look_up(embedding: nn.Embedding, ids_BL: Tensor) -> Tensor:
    """Returns what ``embedding(ids_BL)`` returns: (B, L, H).

    ``backward()`` adds to ``embedding.weight.grad`` without the autograd engine, so hooks of the
    weight do not see that part, and ``torch.autograd.grad`` does not return it.
    """
    weight, ids_N = embedding.weight, ids_BL.flatten()

    def add_to_weight(gradient_BLH: Tensor) -> None:
        rows_NH = gradient_BLH.reshape(len(ids_N), -1).to(weight.dtype)
        if embedding.padding_idx is not None:  # as PyTorch: looked up, this row never trains
            rows_NH = rows_NH * (ids_N != embedding.padding_idx)[:, None]
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids_N, rows_NH)

    rows_BLH = weight.detach()[ids_BL].requires_grad_()
    rows_BLH.register_hook(add_to_weight)
    return rows_BLH

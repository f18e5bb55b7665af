"""What is known of torch's ``fully_shard``, which the launcher refuses (docs/scaling.md)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from instructrec import processes
from instructrec.policies.tiny import make_tiny_model

IDS = torch.arange(24).reshape(4, 6)
"""Four sequences, two for each process."""


def forward_backward(model: Any, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and loss of some sequences; the gradient stays on the weights."""
    output = model(input_ids=ids_BL, labels=ids_BL, use_cache=False)
    output.loss.backward()
    return output.logits.detach(), output.loss.detach()


def sharded_run() -> dict[str, Any]:
    """One pass with weights that are split over the processes, each with half of the sequences."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model: Any = make_tiny_model(0)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    parameters = dict(model.named_parameters())
    whole = sum(p.numel() for p in parameters.values())
    own = sum(p.to_local().numel() for p in parameters.values())
    assert all(isinstance(p, DTensor) for p in parameters.values())
    rank = processes.rank()
    logits, loss = forward_backward(model, IDS[2 * rank : 2 * rank + 2])
    gradients = {name: p.grad.full_tensor() for name, p in parameters.items()}
    return {"logits": logits, "loss": loss, "gradients": gradients, "share": own / whole}


@pytest.mark.slow
def test_a_pass_over_split_weights_equals_that_of_whole_ones(in_two_processes) -> None:
    both = in_two_processes(sharded_run)
    for found in both:
        if isinstance(found, BaseException):
            raise found
    whole = make_tiny_model(0)
    logits, loss = forward_backward(whole, IDS)
    torch.testing.assert_close(torch.cat([found["logits"] for found in both]), logits)
    torch.testing.assert_close(sum(found["loss"] for found in both) / 2, loss)
    for found in both:
        assert found["share"] == pytest.approx(0.5, abs=0.02)  # half of the weights each
        for name, parameter in whole.named_parameters():
            torch.testing.assert_close(found["gradients"][name], parameter.grad)

"""TRL's trainer on our instructions leaves a policy that ours can measure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.crosscheck import main, rows_of
from instructrec.policies.loading import load_source

torch.set_num_threads(1)


def test_the_prompts_are_those_that_our_policies_get() -> None:
    row = rows_of("parity", 3)[0]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["prompt"][0]["content"] == "" and row["reference"] in ("even", "odd")


@pytest.mark.slow
def test_trl_trains_the_last_half_and_the_policy_loads(tmp_path: Path) -> None:
    out = tmp_path / "policy"
    size = ["--updates", "1", "--episodes", "8", "--mini-batches", "2", "--response-length", "4"]
    rate = ["--learning-rate", "0.01", "--task", "parity"]
    main(["tiny@1", "--out", str(out), *size, *rate])
    before, after = load_source("tiny@1").model, load_source(str(out)).model
    assert list(after.state_dict()) == list(before.state_dict())
    first = next(iter(before.parameters()))
    assert torch.equal(first, next(iter(after.parameters())))  # the embedding does not train

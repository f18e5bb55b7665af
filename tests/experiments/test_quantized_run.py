"""Whole commands with a base in 4 bits, where bitsandbytes is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructrec.experiments.cli import main
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.probe import memory_by_part
from instructrec.experiments.runfolder import RunFolder
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig

pytest.importorskip("bitsandbytes")

NF4: dict[str, Any] = {"train": "lora", "quantization": "nf4", "dtype": "bfloat16", "device": "cpu"}


def test_the_probe_counts_packed_weights_and_no_decode_copy() -> None:
    config = TrainConfig(policy=PolicyConfig(model="tiny", **NF4))
    packed = memory_by_part(load_policy(config.policy), config)
    plain = PolicyConfig(model="tiny", **(NF4 | {"quantization": None}))
    whole = memory_by_part(load_policy(plain), TrainConfig(policy=plain))
    assert packed["decode copy"] == 0 < whole["decode copy"]
    matrices = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)  # two layers of the tiny model
    assert whole["weights"] - packed["weights"] == matrices * (4 - 0.5)
    assert packed["optimizer"] == whole["optimizer"]


@pytest.mark.slow
def test_a_run_trains_resumes_and_is_measured_on_the_base_that_it_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("letters.py").write_text(
        "def score(completions, **columns):\n    return [len(set(c)) / 9 for c in completions]\n"
    )
    train = ["train", "tiny_smoke", "--policy.train", "lora", "--policy.quantization", "nf4"]
    train += ["--rewards.letters", "letters.py:score"]
    assert main(train) == 0
    assert main([*train, "--ppo.num_updates", "3", "--resume"]) == 0
    folder = RunFolder.open("runs/tiny-smoke-s0")
    assert json.loads((folder.policy / "quantization.json").read_text()) == {"base": "nf4"}
    assert main(["evaluate", "runs/tiny-smoke-s0", "--limit", "10"]) == 0
    assert main(["evaluate", "runs/tiny-smoke-s0/policy", "--limit", "10"]) == 0
    assert main([*train, "--policy.train", "full", "--overwrite"]) == 2
    assert "Set policy.train: lora" in capsys.readouterr().err

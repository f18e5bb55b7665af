"""The GPU check on a CPU and the tiny model: its parts run, and a failing one does not end it."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from instructrec.experiments import gpu_check
from instructrec.experiments.config import TaskConfig
from instructrec.experiments.quickstart_config import QuickstartConfig, QuickstartEval
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import PPOConfig, SFTConfig

CONFIG = QuickstartConfig(
    policy=PolicyConfig(model="tiny", device="cpu", dtype="float32"),
    task=TaskConfig(options={"size": 60}),
    sft=SFTConfig(demonstrations=8, max_steps=1, batch_size=4),
    best_sft=SFTConfig(demonstrations=8, max_steps=1, batch_size=4),
    ppo=PPOConfig(num_updates=5, episodes_per_update=8, num_mini_batches=2, kl_coef=0.0),
    eval=QuickstartEval(limit=10),
)


@pytest.mark.slow
def test_every_part_reports() -> None:
    said: list[str] = []
    found = gpu_check.check(CONFIG, updates=2, batches=(2, 4), say=said.append)
    json.dumps(found)
    assert found["tests"] == {"skipped": "these tests need a GPU"}
    assert found["learning"]["first"]["reward/total/mean"] is not None
    assert all(value is not None for value in found["learning"]["last"].values())
    assert [row["batch"] for row in found["decoding"]] == [2, 4]
    assert all(row["tokens_per_s"] > 0 for row in found["decoding"])
    assert sum(line.startswith(("tests", "learning", "decoding")) for line in said) == 3


def test_a_part_that_fails_is_recorded_and_the_next_one_runs() -> None:
    broken = replace(CONFIG, policy=replace(CONFIG.policy, model="no-such-model"))
    found = gpu_check.check(broken, updates=1, batches=(2,), say=lambda text: None)
    for part in ("learning", "decoding"):
        assert "PolicyError" in found[part]["error"] and "no-such-model" in found[part]["error"]


def test_the_check_ends_in_time_and_says_what_it_left_out() -> None:
    start = time.perf_counter()
    found = gpu_check.check(CONFIG, batches=(2,), limit_s=0.2, say=lambda text: None)
    assert time.perf_counter() - start < 60
    for part in ("learning", "decoding"):
        assert "TimeIsUpError" in found[part]["error"]
    with gpu_check.time_limit(5.0):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_device_that_is_not_there_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert gpu_check.main(["--device", "cuda:99", "--out", str(out)]) == 2
    assert "cuda:99" in capsys.readouterr().err and not out.exists()

"""A quickstart that is stopped: what it says about going on."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructrec.errors import RunInterrupted
from instructrec.experiments import quickstart
from instructrec.experiments.config import OutputConfig
from instructrec.experiments.quickstart_config import QuickstartConfig
from instructrec.policies.config import PolicyConfig


@pytest.mark.parametrize(
    ("stopped", "command"), [("sft", "sft"), ("sft-best", "sft"), ("ppo", "train")]
)
def test_a_stop_in_any_stage_says_what_can_be_done(
    stopped: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stage(run: object, name: str, settings: object) -> str:
        if name == stopped:
            raise RunInterrupted("stopped. The same command with --resume goes on.")
        return name

    monkeypatch.setattr(quickstart, "_base", lambda run: None)
    monkeypatch.setattr(quickstart, "train_stage", stage)
    policy = PolicyConfig(model="tiny", device="cpu")
    config = QuickstartConfig(policy=policy, name="q", output=OutputConfig(dir=str(tmp_path)))
    file = tmp_path / "q" / stopped / "config.yaml"
    with pytest.raises(RunInterrupted, match=f"start it again.*instructrec {command} {file} --res"):
        quickstart.run_quickstart(config, say=lambda _: None)

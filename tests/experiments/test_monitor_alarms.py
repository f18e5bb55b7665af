"""The script that plays the monitors over runs of the past."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from instructrec.errors import DataError
from instructrec.experiments.jsonl import read_json
from instructrec.rl.monitors import MONITORS

Script = Callable[[str], ModuleType]


def write_updates(run: Path, **changed: list[float]) -> Path:
    """Three updates of a healthy run, some of whose numbers are others."""
    healthy = {
        **{"ppo/approx_kl": 0.01, "ppo/entropy": 1.0, "ppo/drift_mean": 0.001},
        **{"rollout/response_len": 10.0, "rollout/truncated_frac": 0.0, "rollout/masked_frac": 0.0},
        **{"reward/total/mean": 0.5, "reward/total/std": 0.1, "ppo/kl_ref": 2.0},
    }
    rows = [
        {"train/update": i + 1, **healthy, **{key: values[i] for key, values in changed.items()}}
        for i in range(3)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_trouble_and_the_worst_number_are_counted_by_monitor(
    tmp_path: Path,
    write_run: Callable[..., Path],
    script_of: Script,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script = script_of("monitor_alarms")
    good = write_updates(write_run(tmp_path / "good"))
    near = write_updates(
        write_run(tmp_path / "near"),
        **{"ppo/approx_kl": [0.01, 0.2, 0.3], "ppo/entropy": [1.0, 0.5, 0.4]},
    )
    assert script.main([str(good), str(near), "--out", str(tmp_path / "out.json")]) == 0
    told = capsys.readouterr().out
    assert "| large_step | 0.1 | 0.3 | 2 of 6 | 1 of 2 |" in told
    assert "| entropy_collapse | 0.1 | 0.4 | 0 of 6 | 0 of 2 |" in told
    assert "repetition" not in told  # no run has it
    numbers = read_json(tmp_path / "out.json")
    assert numbers["runs"] == ["good", "near"]
    assert numbers["monitors"]["large_step"]["ringing"] == ["near"]
    assert numbers["monitors"]["kl_budget"]["worst"] == 2.0


def test_every_monitor_is_played(script_of: Script) -> None:
    assert script_of("monitor_alarms").WATCHED.keys() == MONITORS.keys()


def test_a_number_beyond_its_threshold_is_trouble_of_the_monitor(
    tmp_path: Path, write_run: Callable[..., Path], script_of: Script
) -> None:
    """Gold falls while the total rises, and scores leave what the reward model knows."""
    run = write_run(tmp_path / "hacked")
    healthy = {
        **{"ppo/approx_kl": 0.01, "ppo/entropy": 1.0, "ppo/drift_mean": 0.001},
        **{"rollout/response_len": 10.0, "rollout/truncated_frac": 0.0, "rollout/masked_frac": 0.0},
        **{"reward/total/std": 0.1, "reward/gold/std": 0.2},
    }
    rows = [
        healthy
        | {"train/update": u, "reward/total/mean": 0.1 * u, "reward/gold/mean": 1 - 0.1 * u}
        | {"reward/proxy/ood_frac": 0.02 * u}
        for u in range(1, 11)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard = script_of("monitor_alarms").listen([run])
    gap, ood = heard["proxy_gold_gap"], heard["reward_ood"]
    assert gap.worst("proxy_gold_gap") == pytest.approx(0.5 / 0.2)  # means of updates 1-5, 6-10
    assert (gap.updates, gap.trouble) == (6, 5)
    assert (ood.worst("reward_ood"), ood.trouble) == (0.2, 5)


def test_a_run_without_updates_is_refused(
    tmp_path: Path, write_run: Callable[..., Path], script_of: Script
) -> None:
    run = write_run(tmp_path / "sft")
    (run / "metrics.jsonl").write_text(json.dumps({"sft/step": 1, "sft/loss": 1.0}) + "\n")
    with pytest.raises(DataError, match="has no updates"):
        script_of("monitor_alarms").main([str(run)])

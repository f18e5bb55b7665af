"""A comparison in W&B: off unless asked for, and with the tables of its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instructrec.experiments.compare import CompareConfig
from instructrec.experiments.compare_tracking import final, tables, track
from instructrec.experiments.tracking import TrackingConfig

PAIR = {"a": "ppo", "b": "sft", "mean": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.01, "wins": 3}
MEANS = {
    "ppo": {"mean": 0.7, "low": 0.6, "high": 0.8, "runs": None},
    "sft": {"mean": 0.5, "low": 0.4, "high": 0.6, "runs": [0.1, 0.9]},
}
RESULTS: dict[str, Any] = {
    "metric": "total",
    "task": "parity",
    "split": "test",
    "instructions": 40,
    "policies": {
        name: {"algorithm": name, "runs": [{}, {}], "response_len": 3.0, "kl_per_token": None}
        for name in ("ppo", "sft")
    },
    "parts": {
        "total": {
            "policies": MEANS,
            "pairs": [PAIR],
            "tasks": {"odd": {"n": 20, "policies": MEANS}},
        },
        "style": {"policies": MEANS, "pairs": [PAIR], "tasks": {}},
    },
    "verdicts": ["ppo is better than sft by 0.200."],
    "warnings": ["ppo has 2 runs."],
}


def test_nothing_is_sent_unless_asked_for() -> None:
    assert CompareConfig().tracking.mode == "disabled"


def test_the_tables_hold_numbers() -> None:
    found = tables(RESULTS)
    assert found["policies"][0] == {
        **{"policy": "ppo", "algorithm": "ppo", "runs": 2, "tokens": 3.0, "kl": None},
        **{"total": 0.7, "total low": 0.6, "total high": 0.8},
        **{"style": 0.7, "style low": 0.6, "style high": 0.8},
    }
    assert found["policies"][1]["total of other runs low"] == 0.1
    assert found["policies"][1]["total of other runs high"] == 0.9
    assert [row["reward"] for row in found["differences"]] == ["total", "style"]
    assert found["differences"][0] == {"reward": "total", **PAIR}
    assert found["tasks"] == [{"task": "odd", "instructions": 20, "ppo": 0.7, "sft": 0.5}]
    assert [row["kind"] for row in found["notes"]] == ["verdict", "warning"]


def test_the_summary_says_who_won() -> None:
    found = final(RESULTS)
    assert found["verdict"].startswith("ppo is better") and found["instructions"] == 40
    assert (found["ppo/mean"], found["sft/high"]) == (0.7, 0.6)


def test_a_comparison_is_a_run_of_its_own(tmp_path: Path, fake_wandb: Any) -> None:
    wandb, said = fake_wandb, list[str]()
    track(RESULTS, tmp_path, TrackingConfig(mode="offline"), say=said.append, wandb=wandb)
    assert wandb.opened["job_type"] == "compare" and wandb.opened["name"] == tmp_path.name
    assert set(wandb.run.tables) == {"policies", "differences", "tasks", "notes"}
    assert wandb.run.tables["tasks"].data == [("odd", 20, 0.7, 0.5)]
    assert wandb.run.summary["final/ppo/mean"] == 0.7 and wandb.run.summary["exit_code"] == 0
    assert len(said) == 1 and "wandb sync" in said[0]

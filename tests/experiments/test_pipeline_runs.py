"""The whole loop on the tiny model: every stage, going on after each, and a person in between."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import ConfigError
from instructrec.experiments import pipeline_stages, pipeline_tracking
from instructrec.experiments.child_runs import is_finished
from instructrec.experiments.config import EvalConfig, OutputConfig, TaskConfig
from instructrec.experiments.jsonl import read_json, read_rows
from instructrec.experiments.label_commands import LabelConfig, label
from instructrec.experiments.pipeline import run_pipeline
from instructrec.experiments.pipeline_config import (
    ChoiceConfig,
    LearnedRewardConfig,
    MentorConfig,
    PipelineConfig,
    SamplesConfig,
)
from instructrec.experiments.pipeline_stages import MentorAwaited
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.tracking import TrackingConfig
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import PPOConfig, SFTConfig
from instructrec.rl.reward_config import FitConfig

pytestmark = pytest.mark.slow

GOLD = '''
def digest(completions, **columns):
    """A number of the text, which hardly any two share."""
    return [sum(i * ord(c) for i, c in enumerate(text, 1)) % 101 / 100 for text in completions]
'''
STAGES = ["base", "sft", "samples-1", "reward-model-1", "start-1", "ppo-1", "best-of-1"]


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    """A pipeline of seconds."""
    (tmp_path / "gold.py").write_text(GOLD)
    return PipelineConfig(
        name="loop",
        policy=PolicyConfig(model="tiny", device="cpu", dtype="float32"),
        task=TaskConfig(options={"size": 60}),
        gold={"digest": f"{tmp_path / 'gold.py'}:digest"},
        sft=SFTConfig(demonstrations=4, max_steps=1, batch_size=4),
        samples=SamplesConfig(limit=20, n=3),
        mentor=MentorConfig(noise=0.2, select="all"),
        reward_model=LearnedRewardConfig(
            validation_fraction=0.4, fit=FitConfig(max_steps=2, batch_size=8)
        ),
        ppo=PPOConfig(
            num_updates=2,
            episodes_per_update=8,
            num_mini_batches=2,
            response_length=6,
            eval_every=1,
        ),
        best_of=3,
        eval=EvalConfig(limit=12, validation_limit=6),
        tracking=TrackingConfig(mode="disabled"),
        output=OutputConfig(dir=str(tmp_path / "runs")),
    )


def quiet(config: PipelineConfig, *, resume: bool = False) -> list[str]:
    """Runs it; returns the stages that were not found finished."""
    return run_pipeline(config, resume=resume, say=lambda text: None).made


def test_all_stages_leave_their_folders_their_lineage_and_one_report(
    config: PipelineConfig,
) -> None:
    assert quiet(config) == STAGES
    path = config.folder
    parents = {name: RunFolder.open(path / name).info().parent for name in STAGES}
    sft = str(path / "sft")
    assert parents == {
        "base": None,
        "sft": None,
        **dict.fromkeys(("samples-1", "reward-model-1", "start-1", "ppo-1", "best-of-1"), sft),
    }
    found = read_json(path / "pipeline.json")
    best = "best of 3 SFT responses by the reward model"
    assert list(found["policies"]) == ["untouched model", "SFT", "PPO, round 1", best]
    assert all(0 <= p["gold"]["mean"] <= 1 for p in found["policies"].values())
    assert found["policies"][best]["proxy"] > found["policies"]["SFT"]["proxy"]
    (first,) = found["rounds"]
    assert first["turned_round"] == round(0.2 * first["preferences"]) > 0
    assert [point["update"] for point in first["points"]] == [0, 1, 2]
    for row in read_metrics(path / "ppo-1"):
        assert row["reward/total/mean"] == pytest.approx(row["reward/proxy/mean"])
        assert row["reward/gold/mean"] >= 0 and "eval/gold/mean" in row
    pairs = read_rows(path / "preferences" / "up-to-1.jsonl")
    assert {"margin", "chosen_score", "rejected_score"}.isdisjoint(pairs[0])
    report = (path / "report.md").read_text()
    assert "known here alone" in report and "gold against SFT" in report
    assert (path / "overoptimisation-1.png").stat().st_size > 0


def test_it_goes_on_after_any_stage_and_adds_rounds(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(pipeline_tracking, "track", lambda found, *_, **__: sent.append(found))
    for stage in ("measure", "train_sft", "prefer", "train_reward", "train_ppo"):
        real: Callable[..., object] = getattr(pipeline_stages, stage)

        def stopped(*given: object, real: Callable[..., object] = real, **named: object) -> None:
            real(*given, **named)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(pipeline_stages, stage, stopped)
            quiet(config, resume=True)
        record = RunFolder.open(config.folder).record()
        assert record["status"] == "interrupted"
        done = [name for name in STAGES if is_finished(config.folder / name)]
    assert done == STAGES[:-1]
    assert quiet(config, resume=True) == ["best-of-1"] and len(sent) == 1
    assert quiet(config, resume=True) == [] and len(sent) == 1  # nothing new was found
    more = replace(config, rounds=2)
    again = ["samples-2", "reward-model-2", "start-2", "ppo-2", "best-of-2"]
    assert quiet(more, resume=True) == again and len(sent) == 2
    assert len(pipeline_tracking.tables(sent[1])["points"]) == 2 * 3
    folders = [RunFolder.open(config.folder / name) for name in ("samples-2", "ppo-2")]
    assert {folder.info().parent for folder in folders} == {str(config.folder / "ppo-1")}
    first, both = (read_rows(config.folder / "preferences" / f"up-to-{i}.jsonl") for i in (1, 2))
    assert both[: len(first)] == first and len(both) > len(first)
    with pytest.raises(ConfigError, match=r"best_of: 3 -> 4"):
        quiet(replace(config, best_of=4), resume=True)


def test_a_person_is_awaited_and_what_they_said_is_learned_from(config: PipelineConfig) -> None:
    config = replace(config, mentor=MentorConfig(kind="human"))
    with pytest.raises(MentorAwaited, match="instructrec label") as awaited:
        quiet(config)
    labels = config.folder / "labels-1"
    samples = next((config.folder / "samples-1" / "eval").glob("*.jsonl"))
    assert f"label {samples} --out {labels}" in str(awaited.value)
    said = LabelConfig(
        out=str(labels),
        from_reward=str(config.gold["digest"]),
        annotator="someone",
    )
    label([str(samples)], said, say=lambda text: None)
    assert quiet(config, resume=True) == ["reward-model-1", "start-1", "ppo-1", "best-of-1"]
    rows = read_rows(config.folder / "preferences" / "round-1.jsonl")
    assert rows and {row["annotator"] for row in rows} == {"someone"}


def test_ppo_ends_where_gold_falls_under_a_rising_proxy(
    config: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = ChoiceConfig(stop_at_overoptimisation=True, patience=1, kl_budget=100.0)
    config = replace(config, choice=choice)

    def seen(points: list, patience: int) -> object:
        return points[0] if len(points) == 2 and patience == 1 else None

    monkeypatch.setattr(pipeline_stages, "overoptimised", seen)
    quiet(config)
    summary = RunFolder.open(config.folder / "ppo-1").summary()
    assert (summary["updates"], summary["stopped"]) == (1, "pruned")
    assert "was ended there" in (config.folder / "report.md").read_text()
    shutil.rmtree(config.folder)

"""Several seeds of a pipeline: gold of SFT and of PPO, and what PPO gained, over all seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from instructrec.envs.tasks.base import make_task
from instructrec.experiments.cli import main
from instructrec.experiments.contenders import read_policy
from instructrec.experiments.evaluation import Evaluation, evaluate
from instructrec.experiments.jsonl import read_json
from instructrec.experiments.pipeline_config import PipelineConfig
from instructrec.experiments.pipeline_seeds import outcome_of, report
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.seeds import SeedRun
from instructrec.experiments.stats import Difference, SeedInterval
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.policies.scripted import RandomPolicy
from instructrec.rewards.combine import make_rewards

GOLD = '''
def digest(completions, **columns):
    """A number of the text, which hardly any two share."""
    return [sum(i * ord(c) for i, c in enumerate(text, 1)) % 101 / 100 for text in completions]
'''


def write_stage(folder: Path, seed: int) -> Evaluation:
    """A finished stage that answered by chance."""
    info = RunInfo("train", "ppo", folder.name, seed, "none", "parity")
    run = RunFolder.create(folder, info, {})
    file = run.eval_path("parity", "test", "greedy", 0)
    task, gold = make_task("parity", split="test", size=20), make_rewards({"gold": "exact_match"})
    greedy = Sampling(temperature=0.0)
    found = evaluate(RandomPolicy(seed), task, gold, sampling=greedy, out=file)
    run.finish("finished", {"eval_file": f"eval/{file.name}"})
    return found


def write_pipeline(folder: Path, seed: int) -> SeedRun:
    """A finished pipeline of one round, as far as its seeds are told from it."""
    sft, ppo = write_stage(folder / "sft", seed), write_stage(folder / "ppo-1", seed + 100)
    golds = {"SFT": sft.interval("gold"), "PPO, round 1": ppo.interval("gold")}
    summary = {
        "policies": {
            name: {"gold": {"mean": found.mean, "low": found.low, "high": found.high}}
            for name, found in golds.items()
        },
        "differences_to_sft": {"PPO, round 1": {"mean": 0.125, "low": -0.5, "high": 0.75}},
        "rounds": [{}],
    }
    return SeedRun(seed, RunFolder(folder), summary)


def test_the_gain_of_ppo_is_paired_by_seed_and_speaks_of_other_seeds(tmp_path: Path) -> None:
    runs = [write_pipeline(tmp_path / f"s{seed}", seed) for seed in range(3)]
    outcome = outcome_of(runs)
    means = {
        name: [run.summary["policies"][name]["gold"]["mean"] for run in runs]
        for name in ("SFT", "PPO, round 1")
    }
    for name, of_runs in means.items():
        assert outcome.scores[name].mean == pytest.approx(np.mean(of_runs))
    gain = outcome.scores["difference"]
    assert isinstance(gain, SeedInterval)
    gains = np.subtract(means["PPO, round 1"], means["SFT"])
    assert gain.seed_means == pytest.approx(gains) and len(set(gains)) > 1
    told = report(outcome)
    assert "gold on held-out instructions" in told and "of all: other seeds on other items" in told
    assert f"{gain.mean:.3f} [{gain.low:.3f}, {gain.high:.3f}]" in told
    assert "0.125 [-0.500, 0.750]" in told
    _, _, command = told.partition("compare  instructrec compare ")
    sft, ppo = ([str(run.folder.path / of) for run in runs] for of in ("sft", "ppo-1"))
    assert command == f"sft={','.join(sft)} ppo={','.join(ppo)} --metric gold"
    assert len(read_policy([Path(path) for path in sft]).ids) == gain.n


def test_two_seeds_tell_of_other_instructions_alone(tmp_path: Path) -> None:
    outcome = outcome_of([write_pipeline(tmp_path / f"s{seed}", seed) for seed in range(2)])
    assert isinstance(outcome.scores["difference"], Difference)
    assert "for other items (other seeds: from 3 on)" in report(outcome)


def test_the_seed_stands_in_the_model_of_each_pipeline() -> None:
    config = PipelineConfig(seed=7, policy=PolicyConfig(model="starts/s{seed}/policy"))
    assert config.resolved().policy.model == "starts/s7/policy"
    assert config.resolved().folder == config.folder


def test_the_command_refuses_what_contradicts_several_seeds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for flags, message in (
        (["--keep_going"], "--keep_going is about several seeds"),
        (["--seeds", "1", "2", "--seed", "3"], "leave --seed out"),
        (["--seeds", "1", "2", "--name", "mine"], "Give variant instead"),
    ):
        assert main(["pipeline", "rlhf_simulated", *flags]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_pipelines_of_several_seeds_are_run_resumed_and_told_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gold.py").write_text(GOLD)
    ppo = {"num_updates": 1, "episodes_per_update": 4, "num_mini_batches": 1, "eval_every": 1}
    settings = {
        "algorithm": "pipeline",
        "variant": "loop",
        "policy": {"model": "tiny", "device": "cpu", "dtype": "float32"},
        "task": {"options": {"size": 60}},
        "gold": {"digest": "gold.py:digest"},
        "sft": {"demonstrations": 4, "max_steps": 1, "batch_size": 4},
        "samples": {"limit": 12, "n": 3},
        "mentor": {"select": "all"},
        "reward_model": {"validation_fraction": 0.4, "fit": {"max_steps": 1, "batch_size": 4}},
        "ppo": {**ppo, "response_length": 6},
        "best_of": 2,
        "eval": {"limit": 8, "validation_limit": 4},
        "tracking": {"mode": "disabled"},
    }
    Path("loop.yaml").write_text(yaml.safe_dump(settings))
    assert main(["pipeline", "loop.yaml", "--seeds", "0", "1"]) == 0
    told = capsys.readouterr().out
    assert "seed 1, number 2 of 2" in told and "\nall " in told
    record = read_json(Path("runs/loop-s1/run.json"))
    assert record["command"] == ["instructrec", "pipeline", "loop.yaml", "--seed", "1"]
    assert record["seed"] == 1
    again = ["pipeline", "loop.yaml", "--seeds", "0", "1", "--resume"]
    assert main(again) == 0 and capsys.readouterr().out.count("is finished already") == 2
    assert main([*again, "--best_of", "4"]) == 2
    assert "started with other settings" in capsys.readouterr().err

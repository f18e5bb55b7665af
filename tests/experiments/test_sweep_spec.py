"""Sweep files: what is read, what is refused before anything runs, and the file for W&B."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from instructrec.errors import ConfigError
from instructrec.experiments import command_line
from instructrec.experiments.cli import command_parser, main
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.sweep_spec import Kind, check_runs, parse_spec, read_spec
from instructrec.experiments.sweep_wandb import wandb_sweep

SPACE: dict[str, Any] = {
    "ppo.learning_rate": {"log_uniform": ["1e-5", 1e-2]},
    "ppo.num_ppo_epochs": {"integer": [1, 3]},
    "ppo.entropy_coef": {"uniform": [0.0, 0.1]},
    "ppo.target_kl": {"choice": [None, 0.1]},
    "rewards.exact_match": {"choice": [1.0, 2.0]},
}
SETTINGS = {"ppo.num_updates": 4, "tracking.mode": "disabled"}


def given(**changes: Any) -> dict[str, Any]:
    return {"recipe": "tiny_smoke", "space": SPACE, **changes}


def checked(**changes: Any) -> None:
    check_runs(parse_spec(given(**changes)))


def test_a_file_says_what_is_searched(tmp_path: Path) -> None:
    file = tmp_path / "rates.yaml"
    file.write_text(yaml.safe_dump(given(trials=7, seeds=[1, 2])), encoding="utf-8")
    spec = read_spec(file)
    check_runs(spec)
    assert (spec.name, spec.recipe, spec.trials, spec.seeds) == (
        "rates",
        ("tiny_smoke",),
        7,
        (1, 2),
    )
    ranges = {d.key: d.values for d in spec.space}
    assert ranges["ppo.learning_rate"] == (1e-5, 1e-2)  # YAML reads 1e-5 as text
    assert parse_spec(spec.to_dict()) == spec
    values = {"ppo.learning_rate": 0.001, "ppo.target_kl": None, "rewards.exact_match": 2.0}
    run = spec.config(values)
    assert (run.ppo.learning_rate, run.ppo.target_kl) == (0.001, None)
    assert run.reward_value() == {"exact_match": 2.0}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trails": 3}, "unknown key 'trails'. Did you mean 'trials'?"),
        ({"space": None}, "space missing"),
        ({"sampler": "tpee"}, "Did you mean 'tpe'?"),
        ({"pruner": "medium"}, "Did you mean 'median'?"),
        ({"trials": 0}, "trials = 0"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": 1.5}, "seeds = 1.5: expected different whole numbers"),
        ({"seeds": None}, "seeds = None"),
        ({"recipe": 5}, "recipe = 5: expected a name or path"),
        ({"recipe": [["tiny_smoke"]]}, "expected a name or path"),
        ({"settings": ["ppo.gamma"]}, "expected dotted keys and their values"),
        ({"name": "../elsewhere"}, "name = '../elsewhere': expected letters"),
        ({"name": None}, "name = None"),
        ({"metric": 3}, "metric = 3"),
        ({"sampler": "grid"}, "expected choices only"),
        ({"settings": {"seed": 3}}, "seed is given to each run by the sweep"),
        ({"space": {"name": {"choice": ["a"]}}}, "name is given to each run"),
        ({"space": {"ppo.gamma": {"unifrom": [0, 1]}}}, "Did you mean 'uniform'?"),
        ({"space": {"ppo.gamma": 3}}, "space.ppo.gamma = 3: expected one of log_uniform"),
        ({"space": {"ppo.gamma": {"uniform": [1, 0]}}}, "the lower number first"),
        ({"space": {"ppo.gamma": {"log_uniform": [0, 1]}}}, "numbers above 0"),
        ({"space": {"ppo.gamma": {"integer": [0.5, 1]}}}, "whole numbers"),
        ({"space": {"ppo.gamma": {"uniform": [0.5]}}}, "two numbers"),
        ({"space": {"ppo.gamma": {"choice": [[1]]}}}, "plain values"),
    ],
)
def test_a_wrong_file_is_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_spec(given(**changes))
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"recipe": "tiny_smoek"}, "Did you mean 'tiny_smoke'?"),
        ({"settings": {"ppo.num_update": 3}}, "Did you mean 'ppo.num_updates'?"),
        ({"space": {"ppo.gama": {"uniform": [0, 1]}}}, "Did you mean 'ppo.gamma'?"),
        ({"space": {"ppo.gamma": {"uniform": [0.5, 1.5]}}}, "space.ppo.gamma: 1.5 cannot be used"),
        ({"space": {"ppo.advantage": {"choice": ["gae", "rlo"]}}}, "'rlo' cannot be used"),
        ({"metric": "eval/exact_mach/mean"}, "Did you mean 'exact_match'?"),
        ({"metric": "eval/total/maen"}, "eval/<reward>/mean"),
        ({"settings": {"ppo.eval_every": 0}}, "ppo.eval_every = 0"),
        ({"recipe": "short_answers_sft", "space": {"sft.batch_size": {"choice": [8]}}}, "sft.eval"),
    ],
)
def test_what_its_runs_would_refuse_is_refused_first(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(**changes)
    assert expected in str(refused.value)


def test_supervised_training_is_swept_by_its_loss_without_pruning() -> None:
    settings = {"sft.eval_every": 4}
    space = {"sft.learning_rate": {"log_uniform": [1e-5, 1e-3]}}
    sft: dict[str, Any] = {"recipe": "short_answers_sft", "settings": settings, "space": space}
    with pytest.raises(ConfigError, match=r"sft.best_by = 'reward'"):
        checked(**sft)
    sft |= {"metric": "sft/val_loss", "direction": "minimize"}
    with pytest.raises(ConfigError, match="supervised runs are not pruned"):
        checked(**sft)
    checked(**sft, pruner="none")


def test_the_agent_of_wandb_trains_with_our_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the agent makes of the file is what the command line takes."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    spec = parse_spec(given(settings=SETTINGS, seeds=[1, 2]), name="rates")
    sweep = yaml.safe_load(yaml.safe_dump(wandb_sweep(spec)))
    assert sweep["method"] == "bayes" and sweep["metric"]["goal"] == "maximize"
    assert sweep["parameters"]["ppo.learning_rate"]["distribution"] == "log_uniform_values"
    drawn = {"ppo.learning_rate": 1e-05, "ppo.num_ppo_epochs": 2, "ppo.entropy_coef": 0.05}
    drawn |= {"ppo.target_kl": sweep["parameters"]["ppo.target_kl"]["values"][0]}
    drawn |= {"rewards.exact_match": 2.0, "seed": 2}
    assert drawn.keys() == sweep["parameters"].keys()
    args = create_sweep_command_args({"args": {k: {"value": v} for k, v in drawn.items()}})
    (place,) = (i for i, word in enumerate(sweep["command"]) if word == "${args}")
    words = create_sweep_command(sweep["command"])
    words[place : place + 1] = args["args"]

    fake = tmp_path / "instructrec"
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("WANDB_RUN_ID", "x7")
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    train, recipe, *options = done.stdout.splitlines()
    assert (train, recipe) == ("train", "tiny_smoke")
    assert all(option.startswith("--") or "=" not in option for option in options)
    config = train_config_of(options)
    assert (config.name, config.variant, config.seed) == ("rates-x7", "rates", 2)
    assert config.tracking.mode == "online"  # else nobody would hear of the run
    assert config.ppo.learning_rate == 1e-5 and config.ppo.target_kl is None
    assert (config.ppo.num_updates, config.reward_value()) == (4, {"exact_match": 2.0})


def train_config_of(options: list[str]) -> TrainConfig:
    given = command_line.recipes_to_config(["tiny_smoke", *options])
    values = command_line.parse(command_parser("train"), given)
    config: TrainConfig = command_line.as_dataclass(TrainConfig, values)
    return config


def test_the_command_writes_the_file_for_wandb_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rates.yaml").write_text(yaml.safe_dump(given()), encoding="utf-8")
    assert main(["sweep", "rates.yaml", "--write_wandb", "new/wandb.yaml", "--trials", "5"]) == 0
    assert yaml.safe_load(Path("new/wandb.yaml").read_text())["run_cap"] == 5
    assert not Path("runs").exists()
    Path("rates.yaml").write_text(yaml.safe_dump(given(trails=3)), encoding="utf-8")
    capsys.readouterr()
    assert main(["sweep", "rates.yaml"]) == 2
    assert "Did you mean 'trials'?" in capsys.readouterr().err
    assert main(["sweep", "missing.yaml"]) == 2


def test_the_sweep_in_the_documentation_can_be_run(root: Path) -> None:
    page = (root / "docs" / "launching.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n# lr.yaml\n(.*?)```", page, flags=re.DOTALL)
    spec = parse_spec(yaml.safe_load(block), name="lr")
    check_runs(spec)
    table = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))))
    assert {field.name for field in dataclasses.fields(spec)} == table
    kinds = {word for word in get_args(Kind) if f"`{word}`" in page}
    assert kinds == set(get_args(Kind))

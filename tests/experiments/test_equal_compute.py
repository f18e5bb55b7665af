"""PPO beside what the same compute buys: what is run, and that it can be compared in the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from instructrec.experiments import command_line
from instructrec.experiments.cli import command_parser, main
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.evaluation import load_evaluation
from instructrec.experiments.runfolder import RunFolder


@pytest.fixture
def script(script_of: Callable[[str], ModuleType]) -> ModuleType:
    return script_of("equal_compute")


def config(arguments: list[str]) -> TrainConfig:
    command, *rest = arguments
    values = command_line.parse(command_parser(command), command_line.recipes_to_config(rest))
    made: TrainConfig = command_line.as_dataclass(TrainConfig, values)
    return made


@pytest.mark.parametrize("recipe", ["translation", "calculator", "short_answers", "constraints"])
def test_raft_spends_as_many_rollouts_with_settings_that_it_takes(
    script: ModuleType, recipe: str, tmp_path: Path
) -> None:
    more = ["--ppo.learning_rate", "5e-5"]
    study = script.Study(recipe, None, "tiny", tmp_path, 8, more)
    ppo, raft = (config(script.ppo_command(study, arm, 3)) for arm in ("ppo", "raft"))
    assert (ppo.algorithm, raft.algorithm) == ("ppo", "raft")
    assert raft.ppo.num_generations >= 2 and raft.ppo.learning_rate == ppo.ppo.learning_rate == 5e-5
    for key in ("num_updates", "episodes_per_update", "response_length", "num_mini_batches"):
        assert getattr(raft.ppo, key) == getattr(ppo.ppo, key)
    assert (raft.task, raft.rewards, raft.eval) == (ppo.task, ppo.rewards, ppo.eval)
    assert raft.policy == ppo.policy and ppo.policy.model == "tiny" and ppo.seed == raft.seed == 3


def test_the_start_is_measured_as_the_recipe_measures_its_policy(script: ModuleType) -> None:
    settings = script.evaluation_settings(config(["train", "calculator"]))
    assert settings["task"] == "calculations" and settings["env"] == "tool"
    assert settings["env_options"] == {"tools": ["calculator"]} and settings["max_turns"] == 3
    assert settings["max_new_tokens"] == 32 and settings["limit"] == 200


def test_neither_a_start_nor_sft_is_refused(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        script.main(["translation"])
    assert stopped.value.code == 2 and "--sft RECIPE, --start MODEL" in capsys.readouterr().err


LETTERS = "def score(completions, **columns):\n    return [len(set(c)) / 9 for c in completions]\n"


@pytest.mark.slow
def test_all_arms_train_once_and_are_compared(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "letters.py").write_text(LETTERS)
    shared = f"""
task: {{name: closed_answers, options: {{size: 64}}}}
policy: {{model: tiny, train: full, device: cpu, dtype: float32}}
rewards: {{letters: {{use: '{tmp_path / "letters.py"}:score'}}}}
eval: {{limit: 12, max_new_tokens: 4, validation_limit: 8}}
tracking: {{mode: disabled}}
"""
    (tmp_path / "learn.yaml").write_text(
        shared + "ppo: {num_updates: 2, episodes_per_update: 8, num_mini_batches: 2, "
        "response_length: 4, kl_coef: 0.02}\n"
    )
    (tmp_path / "show.yaml").write_text(
        "algorithm: sft\n" + shared + "sft: {demonstrations: 16, max_steps: 2, batch_size: 4}\n"
    )
    ran: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        ran.append(arguments)
        return main(arguments)

    recipes = [str(tmp_path / "learn.yaml"), "--sft", str(tmp_path / "show.yaml")]
    command = [*recipes, "--seeds", "0", "1", "--n", "3", "--dir", str(tmp_path / "out")]
    assert script.main(command, run=run, say=lambda text: None) == 0
    kinds = [words[0] for words in ran]
    once = ["sft", "train", "train", "sft", "sft", "evaluate", "evaluate"]
    both = [kind for kind in once for _ in range(2)]
    assert kinds == [*both, "compare"]
    results = json.loads((tmp_path / "out/compare-learn/compare.json").read_text())
    names = list(results["policies"])
    assert names == ["ppo", "start", "raft", "sft-best", "sft-long", "best-of-3"]

    folder = tmp_path / "out/learn-best-of-3-s1"
    sampled = load_evaluation(folder / RunFolder.open(folder).summary()["eval_file"])
    best = load_evaluation(folder / "eval/best.jsonl")
    assert len(sampled.rows) == 36 and len(best.rows) == 12
    for row in best.rows:
        assert row["total"] == max(r["total"] for r in sampled.rows if r["id"] == row["id"])

    ran.clear()
    assert script.main(command, run=run, say=lambda text: None) == 0
    assert [words[0] for words in ran] == ["compare"]

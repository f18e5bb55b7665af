"""What is refused before anything is spent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from instructrec.envs.tasks.base import make_task
from instructrec.envs.tool_use import ToolVectorEnv
from instructrec.errors import ConfigError, DataError, PolicyError
from instructrec.experiments import setup_run
from instructrec.experiments.config import OutputConfig, TaskConfig, TrainConfig
from instructrec.experiments.train import run_training
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.policies.scripted import EmptyPolicy
from instructrec.rewards import RewardSpec
from instructrec.rl.config import PPOConfig


class Narrow(EmptyPolicy):
    """Has a window of ten characters."""

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        for i, prompt in enumerate(prompts):
            if len(prompt) > 10:
                raise PolicyError(f"prompt {i} has {len(prompt)} tokens, but the window holds 10.")
        return [[0] for _ in prompts]


def write(path: Path, prompts: Sequence[str]) -> str:
    rows = [{"id": f"n{i}", "prompt": p, "reference": "a"} for i, p in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_prompt_beyond_the_window_is_named_by_its_instruction(tmp_path: Path) -> None:
    prompts = ["short"] * 2500
    fine = make_task(write(tmp_path / "fine.jsonl", prompts), split="all")
    prompts[2107] = "far too long a prompt"
    task = make_task(write(tmp_path / "data.jsonl", prompts), split="all")
    setup_run.check_prompts(Narrow(), [fine])
    setup_run.check_prompts(EmptyPolicy(), [task])  # no tokens, no window
    with pytest.raises(DataError, match="'n2107' of the all split: its prompt has 21 tokens"):
        setup_run.check_prompts(Narrow(), [fine, task])


def test_a_response_that_would_not_fit_behind_its_prompt_is_refused(tmp_path: Path) -> None:
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    task = make_task(write(tmp_path / "data.jsonl", ["short", "x" * 200]), split="all")
    longest = max(map(len, policy.encode([task[0].prompt, task[1].prompt])))
    setup_run.check_prompts(policy, [task], policy.max_length - longest)
    with pytest.raises(DataError, match=r"'n1' of the all split: .* Lower ppo.response_length"):
        setup_run.check_prompts(policy, [task], policy.max_length - longest + 1)


def test_the_tools_before_an_instruction_are_a_part_of_its_prompt() -> None:
    config = TrainConfig(
        task=TaskConfig("arithmetic", options={"size": 40}, env="tool"),
        rewards={"exact_match": 1.0},
        ppo=PPOConfig(response_length=8),
    )
    materials = setup_run.make_materials(config)
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    seen = ToolVectorEnv(40, task=materials.train, reward=materials.reward)
    seen.reset(options={"index": list(range(40))})
    longest = max(map(len, policy.encode([item.prompt for item in seen.instructions])))
    assert longest > 2 * max(map(len, policy.encode([item.prompt for item in materials.train])))
    policy.max_length = longest + 64  # more than the prompts alone would take
    setup_run.check_all_prompts(policy, materials, config)
    policy.max_length = longest + 7
    with pytest.raises(DataError, match=rf"its prompt of {longest} tokens \(what the environment"):
        setup_run.check_all_prompts(policy, materials, config)


def test_a_token_without_an_embedding_is_refused() -> None:
    policy = load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))
    highest = max(policy.encode(["zebra"])[0])
    policy.model.resize_token_embeddings(highest)
    with pytest.raises(PolicyError, match=f"has {highest} embeddings, .* id {highest}: the token"):
        policy.encode(["zebra"])


def test_a_task_smaller_than_a_rollout_leaves_no_folder(tmp_path: Path) -> None:
    config = TrainConfig(
        task=TaskConfig(options={"size": 40}),
        ppo=PPOConfig(episodes_per_update=64),
        output=OutputConfig(dir=str(tmp_path)),
    )
    with pytest.raises(DataError, match="40 instructions, fewer than the 64 of one rollout"):
        run_training(config)
    assert not list(tmp_path.iterdir())
    PPOConfig(episodes_per_update=64, num_generations=4, advantage="rloo").check_task(40, ())
    with pytest.raises(ConfigError, match=r"episodes_per_update = 1: expected 2 or more"):
        PPOConfig(episodes_per_update=1, num_mini_batches=1).check_task(40, ())


def test_the_rewards_of_a_task_judge_its_training() -> None:
    materials = setup_run.make_materials(TrainConfig(task=TaskConfig(name="relation_extraction")))
    item = materials.test[0]
    batch = materials.reward.score(
        [item.prompt] * 2,
        [str(item.columns["reference"]), "nobody"],
        {name: [value] * 2 for name, value in item.columns.items()},
    )
    assert batch.total.tolist() == [1.0, 0.0]


def test_a_filter_by_a_column_that_is_missing_leaves_no_folder(tmp_path: Path) -> None:
    config = TrainConfig(
        ppo=PPOConfig(prompt_filter="famliy"), output=OutputConfig(dir=str(tmp_path))
    )
    with pytest.raises(DataError, match=r"'famliy'.*Expected one of id, reference, family, item"):
        run_training(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "env", "generations", "message"),
    [
        ("group", "instruction", 1, "a group of one response has no spread"),
        ("batch", "refine", 1, "expected normalise none or clip"),
    ],
)
def test_rewards_are_not_normalised_where_that_leaves_nothing_to_learn(
    how: str, env: str, generations: int, message: str
) -> None:
    config = TrainConfig(
        task=TaskConfig(env=env),  # type: ignore[arg-type]
        rewards={"exact_match": RewardSpec(normalise=how)},  # type: ignore[arg-type]
        ppo=PPOConfig(num_generations=generations),
    )
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        setup_run.training_env(config, setup_run.make_materials(config))
    fine = dataclasses.replace(config, rewards={"exact_match": RewardSpec(normalise="none")})
    setup_run.training_env(fine, setup_run.make_materials(fine))

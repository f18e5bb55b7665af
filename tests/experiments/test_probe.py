"""The probe: what the rewards offer to learn from, and when it says no."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from instructrec.errors import ConfigError, RewardError
from instructrec.experiments import setup_run
from instructrec.experiments.cli import main
from instructrec.experiments.config import EvalConfig, TaskConfig, TrainConfig
from instructrec.experiments.evaluation import Evaluation
from instructrec.experiments.probe import (
    ProbeConfig,
    Signal,
    memory_by_part,
    report,
    run_probe,
    signals_of,
    verdict,
)
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.rl import PPOLearner
from instructrec.rl.config import PPOConfig, SFTConfig


def rows(scores: dict[str, Sequence[float | None]], family: str | None = None) -> list[Any]:
    return [
        {
            "id": name,
            "prompt": f"prompt of {name}",
            "response": "an answer",
            "reference": "another",
            "total": total,
            "family": family,
            "stop_reason": "length" if total == 0.0 else "eos",
        }
        for name, totals in scores.items()
        for total in totals
    ]


def test_signals_by_hand() -> None:
    sampled = Evaluation(rows({"a": [1.0, 0.0, 0.0, 1.0], "b": [1.0, 1.0, None, 1.0]}))
    greedy = Evaluation(rows({"a": [1.0], "b": [0.0]}))
    assert signals_of(greedy, sampled) == {
        "all": Signal(2, 0.5, pytest.approx(5 / 7), 1.0, 0.25, 0.5, 0.25)
    }


def test_families_are_told_apart() -> None:
    sampled = Evaluation([*rows({"a": [1.0, 0.0]}, "easy"), *rows({"b": [0.0, 0.0]}, "hard")])
    signals = signals_of(sampled, sampled)
    assert list(signals) == ["easy", "hard", "all"]
    assert (signals["easy"].flat, signals["hard"].flat, signals["all"].flat) == (0.0, 1.0, 0.5)


CONFIG = TrainConfig(
    task=TaskConfig(options={"size": 40}),
    policy=PolicyConfig(model="tiny", device="cpu", dtype="float32"),
    rewards={"exact_match": 1.0},
    ppo=PPOConfig(
        num_updates=7, episodes_per_update=8, num_mini_batches=2, response_length=4, kl_coef=0.1
    ),
    eval=EvalConfig(limit=4),
)
PROBE = ProbeConfig(instructions=10, samples=4)


def check(scores: dict[str, Sequence[float | None]]) -> str:
    sampled = Evaluation(rows(scores))
    return verdict(signals_of(sampled, sampled)["all"], sampled, CONFIG)


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_equal_rewards_are_nothing_to_learn_from(score: float) -> None:
    with pytest.raises(RewardError, match=f"the reward was {score:g} for all 4 responses"):
        check({"a": [score, score], "b": [score, score]})


def test_where_nothing_is_right_the_cut_responses_are_named_as_well() -> None:
    with pytest.raises(RewardError, match=r"100% of the responses were cut .* warm start"):
        check({"a": [0.0, 0.0]})
    with pytest.raises(RewardError, match=r"warm start") as refused:
        check({"a": [1.0, 1.0]})
    assert "cut" not in str(refused.value)


def test_no_usable_reward_is_nothing_to_learn_from() -> None:
    with pytest.raises(RewardError, match="none of 2 responses has a usable reward"):
        check({"a": [None, None]})


def test_what_single_responses_do_not_tell_is_left_open() -> None:
    sampled = Evaluation(rows({"a": [1.0, None], "b": [0.0, None]}))
    signals = signals_of(sampled, sampled)
    assert "nan" not in (printed := report(signals, 2)) and " - " in printed
    assert "it is unknown how they differ" in verdict(signals["all"], sampled, CONFIG)


def test_little_spread_and_cut_responses_are_named() -> None:
    flat: dict[str, Sequence[float | None]] = {f"n{i}": [0.0, 0.0] for i in range(19)}
    text = check(flat | {"m": [1.0, 0.0]})
    assert "5% of the instructions" in text and "little to learn" in text
    assert "ppo.response_length = 4" in text
    assert "There is something to learn" in check({"a": [1.0, 0.5]})


def test_the_untouched_tiny_model_has_nothing_to_learn_from_exact_match() -> None:
    said: list[str] = []
    ppo = replace(CONFIG.ppo, eval_every=2, early_stopping_patience=2, critic_warmup_updates=1)
    stops_early = replace(CONFIG, ppo=ppo)
    with pytest.raises(RewardError, match="the reward was 0 for all 40 responses"):
        run_probe(stops_early, PROBE, say=said.append)
    text = "\n".join(said)
    assert all(family in text for family in ("category", "parity", "all"))
    assert "one update" in text and "for 7 updates; evaluations and checkpoints come on top" in text
    assert "spread (std)" in text and "activations and the libraries included" in text
    assert all(part in text for part in ("weights", "gradients", "optimizer", "reference", "peak"))


class Counting:
    """A decoder that counts its calls."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.sizes: list[int] = []

    def generate(self, prompt_ids: Any, sampling: Any, generator: Any) -> Any:
        self.sizes.append(len(prompt_ids))
        return self.decoder.generate(prompt_ids, sampling, generator)


def test_several_tries_are_probed_as_they_are_trained() -> None:
    policies = []

    def load(*settings: Any) -> Any:
        policies.append(setup_run.load(*settings))
        policies[0].decoder = Counting(policies[0].decoder)
        return policies[0]

    config = replace(CONFIG, task=replace(CONFIG.task, env="refine", max_turns=3))
    with pytest.raises(RewardError, match="the reward was 0 for all 40 responses"):
        run_probe(config, replace(PROBE, update=False), load_policy=load, say=lambda text: None)
    assert policies[0].decoder.sizes == [10] * 3 + [40] * 3  # greedy, sampled: never right


def test_a_run_without_rewards_is_refused() -> None:
    config = TrainConfig(algorithm="sft", sft=SFTConfig())
    with pytest.raises(ConfigError, match="the probe looks at the rewards of a PPO run"):
        run_probe(config, PROBE)


@pytest.mark.parametrize("settings", [{"instructions": 0}, {"samples": 1}])
def test_impossible_probes_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected at least"):
        ProbeConfig(**settings)


def test_the_command_probes_a_recipe(capsys):
    few = ["--probe.instructions", "2", "--probe.samples", "2", "--probe.update", "false"]
    assert main(["probe", "tiny_smoke", *few]) == RewardError.exit_code
    printed = capsys.readouterr()
    assert "no spread" in printed.out
    assert "nothing to learn from" in printed.err


@pytest.mark.parametrize("train", ["full", "last_layers"])
def test_memory_is_that_of_the_modules_that_a_run_holds(train: str) -> None:
    policy_config = PolicyConfig(
        model="tiny", dtype="bfloat16", device="cpu", train=train, num_layers=1
    )
    policy = load_policy(policy_config)
    ppo = PPOConfig(critic="separate", kl_coef=0.1)
    parts = memory_by_part(policy, TrainConfig(policy=policy_config, ppo=ppo))
    weights = dict(policy.model.named_parameters())
    trained = {name: p.numel() for name, p in weights.items() if p.requires_grad}
    matrices = sum(
        p.numel() for name, p in weights.items() if "proj" in name and name.endswith("weight")
    )
    assert parts["weights"] == 4 * sum(p.numel() for p in weights.values())
    assert parts["gradients"] == 4 * sum(trained.values())
    reference = PPOLearner(policy, ppo).reference
    assert reference is not None
    of_policy = {p.data_ptr() for p in weights.values()}
    copied = [p for p in reference.trunk.model.parameters() if p.data_ptr() not in of_policy]
    assert parts["reference"] == sum(p.nbytes for p in copied) < parts["gradients"]
    assert parts["decode copy"] == parts["weights"] - 2 * matrices  # these alone are in bfloat16
    without_head = sum(number for name, number in trained.items() if "lm_head" not in name)
    assert parts["critic"] == 16 * (without_head + 64 + 1)
    plain = replace(ppo, critic="shared", kl_coef=0.0)
    without = memory_by_part(policy, TrainConfig(policy=policy_config, ppo=plain))
    assert without["critic"] == without["reference"] == 0

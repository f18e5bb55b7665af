"""PPO on the tiny model: it learns, repeats itself, resumes exactly, and refuses what is wrong."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import CheckpointError, DataError, RewardError
from instructrec.metrics import lookup
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig
from instructrec.rl.config import PPOConfig
from instructrec.rl.ppo import Hooks, PPOTrainer, train_ppo

FAST = PPOConfig(
    num_updates=4,
    episodes_per_update=32,
    num_mini_batches=2,
    num_ppo_epochs=2,
    micro_batch_size=8,
    response_length=4,
    learning_rate=3e-3,
    critic_learning_rate=3e-3,
    kl_coef=0.0,
)


def early_letters(completions, **columns):
    """Share of characters from the first half of the alphabet."""
    return [sum("a" <= c <= "m" for c in text) / max(len(text), 1) for text in completions]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "task.jsonl"
    rows = [{"prompt": "write " * (i % 3) + str(i), "reference": "a"} for i in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_policy(seed=0, **changes):
    return load_policy(
        PolicyConfig(model="tiny", dtype="float32", device="cpu", **changes), seed=seed
    )


def make_env(task, config, reward=early_letters):
    return InstructionVectorEnv(
        config.episodes_per_update, task=task, split="all", reward=reward, autoreset_mode="DISABLED"
    )


def train(task, config=FAST, *, seed=0, policy=None, reward=early_letters, **options):
    policy = policy or make_policy(seed)
    log = []
    result = train_ppo(
        policy,
        make_env(task, config, reward),
        config,
        seed=seed,
        on_update=lambda metrics, rows: log.append((metrics, rows)),
        **options,
    )
    return policy, result, log


def trained_weights(policy):
    return {name: p.detach() for name, p in policy.model.named_parameters() if p.requires_grad}


def assert_same_weights(one, other):
    ours, theirs = trained_weights(one), trained_weights(other)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def without_times(log):
    return [
        {k: v for k, v in metrics.items() if not k.startswith("time/") and "_per_s" not in k}
        | {k: "" for k in metrics if k.endswith("/seconds")}
        for metrics, _ in log
    ]


def test_it_learns_a_toy_task_on_five_of_five_seeds(task):
    config = dataclasses.replace(FAST, num_updates=25, episodes_per_update=64, lr_schedule="linear")
    for seed in range(5):
        _, _, log = train(task, config, seed=seed)
        rewards = [metrics["reward/total/mean"] for metrics, _ in log]
        assert sum(rewards[:2]) / 2 < 0.2
        assert sum(rewards[-3:]) / 3 > 0.8, f"seed {seed}: {rewards}"


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(task):
    one, _, first = train(task, seed=1)
    other, _, second = train(task, seed=1)
    assert one.weights_hash() == other.weights_hash()
    assert without_times(first) == without_times(second)
    third, _, _ = train(task, seed=2)
    assert third.weights_hash() != one.weights_hash()


@pytest.mark.parametrize(
    "settings",
    [{}, {"train": "last_layers", "num_layers": 1}, {"train": "lora", "lora": LoraSettings(r=4)}],
    ids=["full", "last_layers", "lora"],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(task, tmp_path, settings):
    config = dataclasses.replace(FAST, kl_coef=0.05, lr_schedule="linear", warmup_steps=5)
    whole, _, log = train(task, config, policy=make_policy(**settings))
    stopped = iter([False, True])
    _, result, head = train(
        task,
        config,
        policy=make_policy(**settings),
        checkpoint_dir=tmp_path,
        should_stop=lambda: next(stopped),
    )
    assert (result.updates, result.stopped) == (2, "interrupted")
    resumed, result, tail = train(
        task,
        config,
        policy=make_policy(**settings),
        checkpoint_dir=tmp_path,
        resume_from=tmp_path / "update-000002",
    )
    assert (result.updates, result.stopped) == (4, "finished")
    assert_same_weights(resumed, whole)
    assert without_times(head + tail) == without_times(log)


def test_a_finished_run_can_be_extended(task, tmp_path):
    longer = dataclasses.replace(FAST, num_updates=6)
    whole, _, _ = train(task, longer)
    train(task, FAST, checkpoint_dir=tmp_path)
    latest = tmp_path / "update-000004"
    extended, result, log = train(task, longer, checkpoint_dir=tmp_path, resume_from=latest)
    assert [metrics["train/update"] for metrics, _ in log] == [5, 6]
    assert_same_weights(extended, whole)
    _, result, log = train(task, FAST, checkpoint_dir=tmp_path, resume_from=latest)
    assert (result.updates, log) == (4, [])


def test_frozen_weights_stay_and_their_shortcut_changes_nothing(task):
    policy = make_policy(train="last_layers", num_layers=1)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    _, _, log = train(task, policy=policy)
    moved = {
        name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])
    }
    assert moved == set(trained_weights(policy))
    assert all(metrics["ppo/drift_mean"] < 1e-5 for metrics, _ in log)


class GradientRecorder(PPOTrainer):
    """Keeps the gradient of the first optimizer step."""

    def _clip_grad_norm(self, model):
        if not self.grad_norms:
            self.first_gradient = torch.cat([p.grad.flatten() for p in self.trained_parameters()])
        return super()._clip_grad_norm(model)


def test_gradients_do_not_depend_on_the_micro_batch(task):
    gradients = []
    for micro_batch_size in (16, 4, 1):
        config = dataclasses.replace(FAST, num_updates=1, micro_batch_size=micro_batch_size)
        hooks = Hooks(lambda metrics, rows: None, None, "eval/total/mean", lambda: False)
        trainer = GradientRecorder(
            make_policy(), make_env(task, config), config, seed=0, hooks=hooks
        )
        trainer.train()
        gradients.append(trainer.first_gradient)
    assert gradients[0].abs().max() > 0.01
    for other in gradients[1:]:
        assert torch.allclose(other, gradients[0], atol=1e-6)


def test_sampler_and_trainer_agree_also_at_another_temperature(task):
    config = dataclasses.replace(FAST, num_updates=2, temperature=0.7)
    _, _, log = train(task, config)
    assert all(metrics["ppo/drift_mean"] < 1e-5 for metrics, _ in log)


def test_the_reference_is_the_policy_at_the_start(task):
    for settings in ({}, {"train": "lora"}):
        config = dataclasses.replace(FAST, kl_coef=0.1)
        _, _, log = train(task, config, policy=make_policy(**settings))
        kl = [metrics["ppo/kl_ref"] for metrics, _ in log]
        assert abs(kl[0]) < 1e-5
        assert abs(kl[-1]) > 1e-4


def test_a_strong_penalty_keeps_the_policy_near_its_start(task):
    divergence = {}
    for kl_coef in (0.001, 1.0):
        config = dataclasses.replace(FAST, num_updates=12, kl_coef=kl_coef)
        _, _, log = train(task, config)
        divergence[kl_coef] = log[-1][0]["ppo/kl_ref"]
    assert divergence[1.0] < 0.5 * divergence[0.001]


def test_no_reference_is_loaded_without_a_penalty(task):
    _, _, log = train(task)
    assert "ppo/kl_ref" not in log[0][0]


def test_the_critic_learns_and_is_used_once_it_explains_something(task):
    def by_length(prompts, completions, **columns):
        return [float(len(prompt) > 8) for prompt in prompts]  # V depends on the prompt alone

    config = dataclasses.replace(FAST, num_updates=25, critic_detach=False, vf_coef=1.0)
    _, _, log = train(task, config, reward=by_length)
    assert log[0][0]["ppo/critic_used"] == 0.0
    assert log[-1][0]["ppo/explained_variance"] > 0.5
    assert log[-1][0]["ppo/critic_used"] == 1.0


def test_the_best_evaluation_is_kept_and_training_stops_without_gain(task, tmp_path):
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.3])
    hashes = []
    policy = make_policy()

    def evaluate():
        hashes.append(policy.weights_hash())
        return {"eval/total/mean": next(scores)}

    config = dataclasses.replace(
        FAST, num_updates=9, eval_every=1, early_stopping_patience=2, keep_checkpoints=1
    )
    _, result, log = train(task, config, policy=policy, evaluate=evaluate, checkpoint_dir=tmp_path)
    assert (result.updates, result.best_update, result.best_score) == (4, 2, 0.9)
    assert result.stopped == "early_stopping"
    assert policy.weights_hash() == hashes[1]
    assert [metrics["eval/total/mean"] for metrics, _ in log] == [0.1, 0.9, 0.5, 0.4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000002", "update-000004"]


def test_failed_rewards_leave_the_update(task):
    def sometimes(completions, **columns):
        if len(completions) > 1:
            raise ValueError("batch of trouble")
        if completions[0][:1] < "a":
            raise ValueError("one of them")
        return [1.0]

    config = dataclasses.replace(FAST, num_updates=1, max_error_frac=0.9)
    _, _, log = train(task, config, reward=sometimes)
    metrics, rows = log[0]
    failed = metrics["reward/sometimes/error_frac"]
    assert 0 < failed < 0.9
    assert metrics["rollout/masked_frac"] == failed
    assert sum(row["total"] is None for row in rows) == round(failed * 32)
    with pytest.raises(RewardError, match="max_error_frac"):
        train(task, dataclasses.replace(config, max_error_frac=0.0), reward=sometimes)


@pytest.mark.parametrize("huge", [1e38, -1e9])
def test_a_reward_beyond_all_bounds_stops_the_run_before_it_does_harm(task, huge):
    policy = make_policy()
    before = policy.weights_hash()
    with pytest.raises(RewardError, match="max_reward"):
        train(task, policy=policy, reward=lambda completions, **columns: [huge] * len(completions))
    assert policy.weights_hash() == before


def test_a_task_smaller_than_a_rollout_is_an_error(task):
    config = dataclasses.replace(FAST, episodes_per_update=128)
    with pytest.raises(DataError, match="64 instructions, fewer than"):
        train(task, config)


def test_a_resumed_run_refuses_other_settings_and_another_policy(task, tmp_path):
    train(task, dataclasses.replace(FAST, num_updates=1), checkpoint_dir=tmp_path)
    checkpoint = tmp_path / "update-000001"
    with pytest.raises(CheckpointError, match="gamma"):
        train(task, dataclasses.replace(FAST, gamma=0.5), resume_from=checkpoint)
    with pytest.raises(CheckpointError, match="different weights"):
        train(task, policy=make_policy(train="lora"), resume_from=checkpoint)


def test_stop_strings_end_responses(task):
    config = dataclasses.replace(FAST, num_updates=1, stop_strings=("e", "t", "a"))
    _, _, log = train(task, dataclasses.replace(config, response_length=40))
    assert not any(set("eta") & set(row["response"]) for row in log[0][1])
    assert any(row["stop_reason"] == "stop_string" for row in log[0][1])


def test_every_logged_number_is_finite_and_every_key_is_defined(task):
    def always(completions, **columns):
        return [1.0] * len(completions)

    for reward, kl_coef in ((early_letters, 0.1), (always, 0.0)):
        _, _, log = train(task, dataclasses.replace(FAST, kl_coef=kl_coef), reward=reward)
        for metrics, _ in log:
            assert all(math.isfinite(value) for value in metrics.values())
            for key in metrics:
                assert lookup(key).meaning
    assert "ppo/explained_variance" not in log[0][0]  # all returns are equal


def test_pad_equal_to_eos_trains_the_end_token(task):
    def ends(completions, completion_ids, **columns):
        return [float(ids[-1] == 257 and len(ids) < 12) for ids in completion_ids]

    config = dataclasses.replace(
        FAST, num_updates=25, episodes_per_update=64, response_length=12, learning_rate=5e-3
    )
    policy = load_policy(PolicyConfig(model="tiny-pad-eos", dtype="float32", device="cpu"), seed=0)
    assert policy.pad_token_id in policy.eos_token_ids
    _, _, log = train(task, config, policy=policy, reward=ends)
    assert log[-1][0]["rollout/truncated_frac"] < 0.3 < log[0][0]["rollout/truncated_frac"]

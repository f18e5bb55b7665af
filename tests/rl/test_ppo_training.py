"""PPO on the tiny model: it learns, repeats itself, resumes exactly, and refuses what is wrong."""

from __future__ import annotations

import dataclasses
import math
import string

import pytest
import torch

from instructrec.errors import CheckpointError, DataError, RewardError
from instructrec.metrics import lookup
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import LoraSettings, PolicyConfig
from instructrec.rl.learner import PPOLearner


def trained_weights(policy):
    return {name: p.detach() for name, p in policy.model.named_parameters() if p.requires_grad}


def assert_same_weights(one, other):
    ours, theirs = trained_weights(one), trained_weights(other)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_learns_a_toy_task_on_five_of_five_seeds(toy):
    config = dataclasses.replace(
        toy.fast, num_updates=25, episodes_per_update=64, lr_schedule="linear"
    )
    for seed in range(5):
        _, _, log = toy.train(config, seed=seed)
        rewards = [metrics["reward/total/mean"] for metrics, _ in log]
        assert sum(rewards[:2]) / 2 < 0.2
        assert sum(rewards[-3:]) / 3 > 0.8, f"seed {seed}: {rewards}"


def test_the_same_seed_gives_the_same_run_and_another_one_does_not(toy):
    one, _, first = toy.train(seed=1)
    other, _, second = toy.train(seed=1)
    assert one.weights_hash() == other.weights_hash()
    assert toy.without_times(first) == toy.without_times(second)
    third, _, _ = toy.train(seed=2)
    assert third.weights_hash() != one.weights_hash()


@pytest.mark.parametrize(
    "settings",
    [{}, {"train": "last_layers", "num_layers": 1}, {"train": "lora", "lora": LoraSettings(r=4)}],
    ids=["full", "last_layers", "lora"],
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(toy, tmp_path, settings):
    config = dataclasses.replace(toy.fast, kl_coef=0.05, lr_schedule="linear", warmup_steps=5)
    whole, _, log = toy.train(config, policy=toy.policy(**settings))
    stopped = iter([False, True])
    _, result, head = toy.train(
        config,
        policy=toy.policy(**settings),
        checkpoint_dir=tmp_path,
        should_stop=lambda: next(stopped),
    )
    assert (result.updates, result.stopped) == (2, "interrupted")
    resumed, result, tail = toy.train(
        config,
        policy=toy.policy(**settings),
        checkpoint_dir=tmp_path,
        resume_from=tmp_path / "update-000002",
    )
    assert (result.updates, result.stopped) == (4, "finished")
    assert_same_weights(resumed, whole)
    assert toy.without_times(head + tail) == toy.without_times(log)


def test_a_finished_run_can_be_extended(toy, tmp_path):
    longer = dataclasses.replace(toy.fast, num_updates=6)
    whole, _, _ = toy.train(longer)
    toy.train(toy.fast, checkpoint_dir=tmp_path)
    latest = tmp_path / "update-000004"
    extended, result, log = toy.train(longer, checkpoint_dir=tmp_path, resume_from=latest)
    assert [metrics["train/update"] for metrics, _ in log] == [5, 6]
    assert_same_weights(extended, whole)
    _, result, log = toy.train(toy.fast, checkpoint_dir=tmp_path, resume_from=latest)
    assert (result.updates, log) == (4, [])


def test_frozen_weights_stay_and_their_shortcut_changes_nothing(toy):
    policy = toy.policy(train="last_layers", num_layers=1)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    _, _, log = toy.train(policy=policy)
    moved = {
        name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])
    }
    assert moved == set(trained_weights(policy))
    assert all(metrics["ppo/drift_mean"] < 1e-5 for metrics, _ in log)


class GradientRecorder(PPOLearner):
    """Keeps the gradient of the first optimizer step."""

    def clip(self):
        if not self.grad_norms:
            self.first_gradient = torch.cat(
                [p.grad.flatten() for group in self.trained_parameters() for p in group]
            )
        return super().clip()


def test_gradients_do_not_depend_on_the_micro_batch(toy):
    # Responses of different lengths: with equal ones, a mean of means would be the mean.
    stops = tuple(string.ascii_uppercase + string.digits + string.punctuation)
    gradients, lengths = [], []
    for micro_batch_size in (16, 4, 1):
        config = dataclasses.replace(
            toy.fast, num_updates=1, micro_batch_size=micro_batch_size, stop_strings=stops
        )
        trainer = toy.trainer(config, GradientRecorder)
        trainer.train()
        gradients.append(trainer.learner.first_gradient)
        lengths.append(trainer.learner.experience.action_mask_BT.sum(1).tolist())
    assert lengths[0] == lengths[1] == lengths[2] and len(set(lengths[0])) == 4
    assert gradients[0].abs().max() > 0.01
    for other in gradients[1:]:
        assert torch.allclose(other, gradients[0], atol=1e-6)


def test_sampler_and_trainer_agree_also_at_another_temperature(toy):
    config = dataclasses.replace(toy.fast, num_updates=2, temperature=0.7)
    _, _, log = toy.train(config)
    assert all(metrics["ppo/drift_mean"] < 1e-5 for metrics, _ in log)


def test_the_reference_is_the_policy_at_the_start(toy):
    for settings in ({}, {"train": "lora"}):
        config = dataclasses.replace(toy.fast, kl_coef=0.1)
        _, _, log = toy.train(config, policy=toy.policy(**settings))
        kl = [metrics["ppo/kl_ref"] for metrics, _ in log]
        assert abs(kl[0]) < 1e-5
        assert abs(kl[-1]) > 1e-4


def test_a_strong_penalty_keeps_the_policy_near_its_start(toy):
    divergence = {}
    for kl_coef in (0.001, 1.0):
        config = dataclasses.replace(toy.fast, num_updates=12, kl_coef=kl_coef)
        _, _, log = toy.train(config)
        divergence[kl_coef] = log[-1][0]["ppo/kl_ref"]
    assert divergence[1.0] < 0.5 * divergence[0.001]


def test_no_reference_is_loaded_without_a_penalty(toy):
    _, _, log = toy.train()
    assert "ppo/kl_ref" not in log[0][0]


def test_the_critic_learns_and_is_used_once_it_explains_something(toy):
    def by_length(prompts, completions, **columns):
        return [float(len(prompt) > 8) for prompt in prompts]  # V depends on the prompt alone

    config = dataclasses.replace(toy.fast, num_updates=25, critic_detach=False, vf_coef=1.0)
    _, _, log = toy.train(config, reward=by_length)
    assert log[0][0]["ppo/critic_used"] == 0.0
    assert log[-1][0]["ppo/explained_variance"] > 0.5
    assert log[-1][0]["ppo/critic_used"] == 1.0


def test_the_best_evaluation_is_kept_and_training_stops_without_gain(toy, tmp_path):
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.3])
    hashes = []
    policy = toy.policy()

    def evaluate():
        hashes.append(policy.weights_hash())
        return {"eval/total/mean": next(scores)}

    config = dataclasses.replace(
        toy.fast, num_updates=9, eval_every=1, early_stopping_patience=2, keep_checkpoints=1
    )
    _, result, log = toy.train(config, policy=policy, evaluate=evaluate, checkpoint_dir=tmp_path)
    assert (result.updates, result.best_update, result.best_score) == (4, 2, 0.9)
    assert result.stopped == "early_stopping"
    assert policy.weights_hash() == hashes[1]
    assert [metrics["eval/total/mean"] for metrics, _ in log] == [0.1, 0.9, 0.5, 0.4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-000002", "update-000004"]


def test_a_run_is_pruned_behind_an_evaluation_with_the_best_weights(toy, tmp_path):
    scores = iter([0.9, 0.5, 0.4])
    asked, hashes = [], []
    policy = toy.policy()

    def evaluate():
        hashes.append(policy.weights_hash())
        return {"eval/total/mean": next(scores)}

    def should_prune(update, metrics):
        asked.append((update, metrics["eval/total/mean"]))
        return update == 4

    config = dataclasses.replace(toy.fast, num_updates=9, eval_every=2)
    _, result, log = toy.train(
        config, policy=policy, evaluate=evaluate, should_prune=should_prune, checkpoint_dir=tmp_path
    )
    assert asked == [(2, 0.9), (4, 0.5)]  # nobody asks where nothing was evaluated
    assert (result.updates, result.best_update, result.stopped) == (4, 2, "pruned")
    assert policy.weights_hash() == hashes[0] and len(log) == 4


def test_a_run_that_is_done_cannot_be_pruned(toy):
    config = dataclasses.replace(toy.fast, num_updates=2, eval_every=2)
    _, result, _ = toy.train(
        config,
        evaluate=lambda: {"eval/total/mean": 0.0},
        should_prune=lambda update, metrics: True,
    )
    assert (result.updates, result.stopped) == (2, "finished")


def test_failed_rewards_leave_the_update(toy):
    def sometimes(completions, **columns):
        if len(completions) > 1:
            raise ValueError("batch of trouble")
        if completions[0][:1] < "a":
            raise ValueError("one of them")
        return [1.0]

    config = dataclasses.replace(toy.fast, num_updates=1, max_error_frac=0.9)
    _, _, log = toy.train(config, reward=sometimes)
    metrics, rows = log[0]
    failed = metrics["reward/sometimes/error_frac"]
    assert 0 < failed < 0.9
    assert metrics["rollout/masked_frac"] == failed
    assert sum(row["total"] is None for row in rows) == round(failed * 32)
    with pytest.raises(RewardError, match="max_error_frac"):
        toy.train(dataclasses.replace(config, max_error_frac=0.0), reward=sometimes)


@pytest.mark.parametrize("huge", [1e38, -1e9])
def test_a_reward_beyond_all_bounds_stops_the_run_before_it_does_harm(toy, huge):
    policy = toy.policy()
    before = policy.weights_hash()
    with pytest.raises(RewardError, match="max_reward"):
        toy.train(policy=policy, reward=lambda completions, **columns: [huge] * len(completions))
    assert policy.weights_hash() == before


def test_a_task_smaller_than_a_rollout_is_an_error(toy):
    config = dataclasses.replace(toy.fast, episodes_per_update=128)
    with pytest.raises(DataError, match="64 instructions, fewer than"):
        toy.train(config)


def test_a_resumed_run_refuses_other_settings_and_another_policy(toy, tmp_path):
    toy.train(dataclasses.replace(toy.fast, num_updates=1), checkpoint_dir=tmp_path)
    checkpoint = tmp_path / "update-000001"
    with pytest.raises(CheckpointError, match="gamma"):
        toy.train(dataclasses.replace(toy.fast, gamma=0.5), resume_from=checkpoint)
    with pytest.raises(CheckpointError, match="different weights"):
        toy.train(policy=toy.policy(train="lora"), resume_from=checkpoint)


def test_stop_strings_end_responses(toy):
    config = dataclasses.replace(toy.fast, num_updates=1, stop_strings=("e", "t", "a"))
    _, _, log = toy.train(dataclasses.replace(config, response_length=40))
    assert not any(set("eta") & set(row["response"]) for row in log[0][1])
    assert any(row["stop_reason"] == "stop_string" for row in log[0][1])


def test_every_logged_number_is_finite_and_every_key_is_defined(toy):
    def always(completions, **columns):
        return [1.0] * len(completions)

    for reward, kl_coef in ((toy.reward, 0.1), (always, 0.0)):
        _, _, log = toy.train(dataclasses.replace(toy.fast, kl_coef=kl_coef), reward=reward)
        for metrics, _ in log:
            assert all(math.isfinite(value) for value in metrics.values())
            for key in metrics:
                assert lookup(key).meaning
    assert "ppo/explained_variance" not in log[0][0]  # all returns are equal


def test_pad_equal_to_eos_trains_the_end_token(toy):
    def ends(completions, completion_ids, **columns):
        return [float(ids[-1] == 257 and len(ids) < 12) for ids in completion_ids]

    config = dataclasses.replace(
        toy.fast, num_updates=25, episodes_per_update=64, response_length=12, learning_rate=5e-3
    )
    policy = load_policy(PolicyConfig(model="tiny-pad-eos", dtype="float32", device="cpu"), seed=0)
    assert policy.pad_token_id in policy.eos_token_ids
    _, _, log = toy.train(config, policy=policy, reward=ends)
    assert log[-1][0]["rollout/truncated_frac"] < 0.3 < log[0][0]["rollout/truncated_frac"]

"""Episodes whose reward failed leave everything: losses, whitening, and every baseline."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from instructrec.errors import RewardError
from instructrec.policies.base import StopReason
from instructrec.rewards import make_rewards
from instructrec.rl.checkpoint import read_checkpoint
from instructrec.rl.config import PPOConfig
from instructrec.rl.estimation import estimate_advantages
from instructrec.rl.experience import tensors_of
from instructrec.rl.losses import LossSettings, ppo_loss
from instructrec.rl.rollout import Rollout

SETTINGS = LossSettings(cliprange=0.2, cliprange_high=0.3, cliprange_value=0.2, vf_coef=0.5)
LENGTHS = [3, 5, 2, 4, 6, 3, 4, 5]
FAILED = [1, 4]  # in two groups of four, each keeps three
GENERATOR = torch.Generator().manual_seed(3)
NOISE = torch.randn(5, len(LENGTHS), max(LENGTHS), generator=GENERATOR)


def gradients(rows, failed, **settings):
    """Gradients of the loss with respect to log-probs and values of the rows that count."""
    config = PPOConfig(episodes_per_update=8, **settings)
    scored = [i not in failed for i in rows]
    rollout = Rollout(
        instruction_ids=[str(i) for i in rows],
        prompts=["p"] * len(rows),
        texts=["t"] * len(rows),
        prompt_ids=[[9]] * len(rows),
        response_ids=[[1] * LENGTHS[i] for i in rows],
        action_mask=[[True] * LENGTHS[i] for i in rows],
        sampler_logprobs=[NOISE[0, i, : LENGTHS[i]].tolist() for i in rows],
        turn_rewards=[
            [(LENGTHS[i] - 1, float(NOISE[1, i, 0]))] if ok else []
            for i, ok in zip(rows, scored, strict=True)
        ],
        stop_reasons=[StopReason.EOS] * len(rows),
        scored=scored,
        groups=[i // 4 for i in rows],
        unfinished=[False] * len(rows),
        kept=scored,
    )
    experience = tensors_of(rollout, torch.device("cpu"))
    mask = experience.action_mask_BT
    width = mask.shape[1]
    # The trainer's pass writes nothing where the mask is False.
    experience.old_logprobs_BT = torch.where(mask, NOISE[0, rows, :width] + 0.01, 0.0)
    experience.values_BT = torch.where(mask, NOISE[2, rows, :width], 0.0)
    experience.ref_logprobs_BT = torch.where(mask, NOISE[3, rows, :width], 0.0)
    metrics = estimate_advantages(experience, config, kl_coef=0.1)
    logprobs = (experience.old_logprobs_BT + 0.1 * NOISE[4, rows, :width])[mask]
    values = (experience.values_BT + 0.1)[mask]
    logprobs.requires_grad_(), values.requires_grad_()
    batch = experience.loss_batch(range(len(rows)))
    loss, _ = ppo_loss(
        batch, logprobs, values, torch.zeros_like(logprobs), SETTINGS, experience.num_tokens
    )
    return metrics, loss.item(), torch.autograd.grad(loss, [logprobs, values])


@pytest.mark.parametrize("advantage", ["gae", "rloo", "group", "batch_mean"])
@pytest.mark.parametrize("whitening", ["none", "scale", "whiten"])
def test_the_gradient_is_that_of_the_batch_without_them(advantage, whitening):
    settings = {"advantage": advantage, "whiten_advantages": whitening}
    if advantage in ("rloo", "group"):
        settings["num_generations"] = 4
    everyone = list(range(len(LENGTHS)))
    left = [i for i in everyone if i not in FAILED]
    masked_metrics, masked_loss, masked = gradients(everyone, FAILED, **settings)
    metrics, loss, expected = gradients(left, [], **settings)
    assert masked_loss == pytest.approx(loss, rel=1e-5)
    for got, wanted in zip(masked, expected, strict=True):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert masked_metrics == pytest.approx(metrics, rel=1e-4, nan_ok=True)


def sometimes(completions, **columns):
    """Fails on responses that begin before the letter a; 1 for the others."""
    if any(text[:1] < "a" for text in completions):
        raise ValueError("one of them")
    return [1.0] * len(completions)


def test_a_reward_that_fails_in_too_many_batches_in_a_row_ends_the_run(toy):
    config = dataclasses.replace(toy.fast, max_error_frac=1.0, max_error_batches=3)
    log = []
    with pytest.raises(RewardError, match=r"'sometimes' failed on responses of 3 batches in a row"):
        toy.train(config, reward=sometimes, should_stop=lambda: log.append(1) is not None)
    assert len(log) == 2


def test_ways_to_fail_are_counted_apart(toy):
    config = dataclasses.replace(toy.fast, num_updates=1, max_error_frac=1.0)
    _, _, [(metrics, _)] = toy.train(config, reward=sometimes)
    assert metrics["reward/sometimes/raised_frac"] == metrics["reward/sometimes/error_frac"] > 0
    assert not any(key.endswith(("timeout_frac", "nonfinite_frac")) for key in metrics)


def test_training_learns_from_normalised_rewards_and_logs_raw_ones(toy):
    rewards = make_rewards({"letters": {"use": toy.reward, "weight": 10.0, "normalise": "batch"}})
    config = dataclasses.replace(toy.fast, num_updates=2)
    _, _, log = toy.train(config, reward=rewards)
    for metrics, rows in log:
        assert metrics["reward/total/mean"] == pytest.approx(10 * metrics["reward/letters/mean"])
        assert metrics["reward/normalised_total/mean"] == pytest.approx(0.0, abs=1e-6)
        assert metrics["reward/normalised_total/std"] == pytest.approx(10.0)
        assert all(row["total"] == pytest.approx(10 * row["parts"]["letters"]) for row in rows)


def test_the_prompt_filter_learns_from_raw_rewards(toy, tmp_path):
    config = dataclasses.replace(toy.fast, num_updates=1, prompt_filter="id")

    def learned(how):
        rewards = make_rewards({"letters": {"use": toy.reward, "normalise": how}})
        toy.train(config, reward=rewards, checkpoint_dir=tmp_path / how)
        state = read_checkpoint(tmp_path / how / "update-000001").state["prompt_filter"]
        return state["all"], state["keys"]

    # Normalised scores of a batch have the mean 0, whatever the policy can do.
    assert learned("batch") == learned("none")


def test_a_run_with_running_statistics_resumes_bit_for_bit(toy, tmp_path):
    def rewards():
        return make_rewards({"letters": {"use": toy.reward, "normalise": "running"}})

    whole, _, log = toy.train(reward=rewards())
    stopped = iter([False, True])
    toy.train(reward=rewards(), checkpoint_dir=tmp_path, should_stop=lambda: next(stopped))
    rest, _, tail = toy.train(reward=rewards(), resume_from=tmp_path / "update-000002")
    assert whole.weights_hash() == rest.weights_hash()
    assert toy.without_times(log)[2:] == toy.without_times(tail)


@pytest.mark.parametrize("how", ["batch", "running"])
def test_a_raw_reward_beyond_all_bounds_stops_a_run_that_normalises(toy, how):
    def once(completions, **columns):
        return [1e30] + [0.0] * (len(completions) - 1)

    rewards = make_rewards({"once": {"use": once, "normalise": how}})
    with pytest.raises(RewardError, match=r"a reward of 1e\+30 is beyond ppo.max_reward"):
        toy.train(dataclasses.replace(toy.fast, num_updates=1), reward=rewards)

"""PPO and SFT with adapters on a base in 4 bits, where bitsandbytes is installed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import SFTConfig
from instructrec.rl.fitting import Surroundings
from instructrec.rl.sft import Demonstration, run_sft

pytest.importorskip("bitsandbytes")

NF4 = {"train": "lora", "quantization": "nf4"}


def weights(policy, *, trained):
    return {
        name: p.detach().clone()
        for name, p in policy.model.named_parameters()
        if p.requires_grad == trained
    }


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_only_the_adapters_learn_and_they_learn_in_float32(toy):
    policy = toy.policy(**NF4)
    start, base = weights(policy, trained=True), weights(policy, trained=False)
    config = dataclasses.replace(toy.fast, kl_coef=0.05)
    _, _, log = toy.train(config, policy=policy)
    assert same(weights(policy, trained=False), base)
    assert not same(weights(policy, trained=True), start)
    assert {p.dtype for p in weights(policy, trained=True).values()} == {torch.float32}
    first = log[0][0]
    assert abs(first["ppo/kl_ref"]) < 1e-6  # fresh adapters: the policy is its reference
    assert log[-1][0]["ppo/kl_ref"] != 0.0
    assert all(metrics["ppo/drift_p99"] < 1e-5 for metrics, _ in log)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(toy, tmp_path):
    config = dataclasses.replace(toy.fast, kl_coef=0.05)
    whole, _, _ = toy.train(config, policy=toy.policy(**NF4))
    stopped = iter([False, True])
    toy.train(
        config,
        policy=toy.policy(**NF4),
        checkpoint_dir=tmp_path,
        should_stop=lambda: next(stopped),
    )
    again, _, _ = toy.train(
        config,
        policy=toy.policy(**NF4),
        checkpoint_dir=tmp_path,
        resume_from=tmp_path / "update-000002",
    )
    assert again.weights_hash() == whole.weights_hash()


def test_the_reference_is_the_start_also_of_an_adapter_that_is_trained_on(toy, tmp_path):
    policy, _, _ = toy.train(policy=toy.policy(**NF4))
    policy.save(tmp_path)
    settings = PolicyConfig(model=str(tmp_path), dtype="float32", device="cpu", **NF4)
    again = load_policy(settings)
    assert again.weights_hash() == policy.weights_hash() and again.continues_adapter
    config = dataclasses.replace(toy.fast, kl_coef=0.05, num_updates=2)
    _, _, log = toy.train(config, policy=again)
    assert abs(log[0][0]["ppo/kl_ref"]) < 1e-6
    assert log[1][0]["ppo/kl_ref"] != 0.0


def test_a_separate_critic_copies_the_base_and_shares_its_codes(toy):
    config = dataclasses.replace(toy.fast, num_updates=2, critic="separate")
    _, _, log = toy.train(config, policy=toy.policy(**NF4))
    assert log[-1][0]["ppo/value_loss"] < log[0][0]["ppo/value_loss"]


def test_demonstrations_train_the_adapters_in_float32(toy):
    policy = toy.policy(**NF4)
    base, losses = weights(policy, trained=False), []
    run_sft(
        policy,
        [Demonstration("write", "abc")] * 4,
        [],
        SFTConfig(max_steps=6, batch_size=4, learning_rate=1e-2, warmup_steps=0, eval_every=0),
        seed=0,
        around=Surroundings(on_step=lambda step: losses.append(step["sft/loss"])),
    )
    assert losses[-1] < losses[0]
    assert same(weights(policy, trained=False), base)
    assert {p.dtype for p in weights(policy, trained=True).values()} == {torch.float32}

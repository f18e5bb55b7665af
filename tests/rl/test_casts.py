"""Weights are cast to the compute precision once where once is enough, and nothing changes."""

from __future__ import annotations

import dataclasses

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig, Sampling
from instructrec.rl import PPOLearner, rollout_of
from instructrec.rl.reference import FrozenReference

PROMPTS = [f"write {i}" for i in range(32)]


def bfloat16(**settings):
    return load_policy(PolicyConfig(model="tiny", device="cpu", dtype="bfloat16", **settings))


class Casts(TorchDispatchMode):
    """Counts the casts of some weights to bfloat16."""

    def __init__(self, weights):
        super().__init__()
        self.places = {weight.data_ptr() for weight in weights}
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_cast = "_to_copy" in str(func) and (kwargs or {}).get("dtype") == torch.bfloat16
        self.count += is_cast and args[0].data_ptr() in self.places
        return func(*args, **(kwargs or {}))


class Plain(PPOLearner):
    """Casts in every micro-batch, and runs backwards outside of any autocast."""

    def _gradient(self, minibatch, most):
        self.optimizer.zero_grad()
        for rows in self.experience.micro_batches(minibatch, most):
            self.micro_batch_loss(rows).backward()


def gradient(toy, kind, size, **changes):
    """Gradient of one minibatch in micro-batches of a size, and how many casts it took."""
    policy = bfloat16()
    config = dataclasses.replace(toy.fast, num_mini_batches=1, micro_batch_size=size, **changes)
    learner = kind(policy, config)
    answers = policy.respond(PROMPTS, sampling=Sampling(max_new_tokens=4))
    found = {}

    class Stop(Exception):
        pass

    def clip():
        found.update({n: w.grad.clone() for n, w in learner.trained_weights().items()})
        raise Stop

    gradient_of, casts = learner._gradient, Casts(policy.model.parameters())

    def counted(*given):
        with casts:
            return gradient_of(*given)

    learner.clip, learner._gradient = clip, counted
    rewards = [float(i % 3) for i in range(32)]
    try:
        learner.update(rollout_of(answers.prompt_ids, answers.response_ids, rewards))
    except Stop:
        return found, casts.count
    raise AssertionError("there was a step")


def test_a_step_casts_each_matrix_once_however_many_micro_batches_it_has(toy):
    matrices = sum("proj" in name for name, _ in bfloat16().model.named_parameters())
    # The output layer computes in float32; its gradient alone needs a cast in each micro-batch.
    for size, micro_batches in ((16, 2), (4, 8)):
        assert gradient(toy, PPOLearner, size)[1] == matrices + micro_batches
    assert gradient(toy, Plain, 4)[1] == 8 * (matrices + 1)


def test_casting_once_gives_the_same_gradient_to_the_bit(toy):
    for changes in ({}, {"critic": "separate"}, {"critic_detach": False, "entropy_coef": 0.1}):
        (found, _), (plain, _) = (gradient(toy, kind, 4, **changes) for kind in (PPOLearner, Plain))
        assert found.keys() == plain.keys()
        assert all(torch.equal(found[name], plain[name]) for name in plain)
        assert any(bool(g.abs().max() > 0) for g in found.values())


def test_a_reference_in_the_compute_precision_says_the_same_to_the_bit(toy):
    policy = bfloat16(train="last_layers", num_layers=1)
    config = dataclasses.replace(toy.fast, kl_coef=0.1, num_updates=1)
    said = []
    for dtype in (torch.bfloat16, torch.float32):
        learner = PPOLearner(policy, config)
        learner.reference = FrozenReference(policy.model, 1.0, dtype)
        state = policy.generator_state()
        answers = policy.respond(PROMPTS, sampling=Sampling(max_new_tokens=4))
        policy.set_generator_state(state)
        learner._begin(rollout_of(answers.prompt_ids, answers.response_ids, [1.0] * 32))
        learner._pass_over()
        said.append(learner.experience.ref_logprobs_BT)
    assert torch.equal(*said) and bool(said[0].abs().max() > 0)


def test_the_policy_itself_keeps_float32(toy):
    policy = bfloat16()
    PPOLearner(policy, dataclasses.replace(toy.fast, kl_coef=0.1))
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}

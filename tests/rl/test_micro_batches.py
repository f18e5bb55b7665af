"""How much one forward/backward takes: by the real lengths, and by the memory."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch

from instructrec.errors import CheckpointError
from instructrec.rl import PPOLearner, rollout_of
from instructrec.rl.checkpoint import checkpoint_path, read_checkpoint
from instructrec.rl.config import PPOConfig
from instructrec.rl.micro_batches import (
    MicroBatch,
    bytes_per_token,
    most_tokens,
    with_micro_batch,
)

OPEN = PPOConfig(
    episodes_per_update=32, num_mini_batches=1, num_ppo_epochs=1, response_length=8, kl_coef=0.0
)


def lengths_of_passes(policy, config, prompt_length):
    """Padded tokens of every pass of an update whose prompts have a length."""
    learner, seen = PPOLearner(policy, config), []
    whole = learner.trunk._from_ids

    def noting(ids_BL, shared):
        seen.append(ids_BL.numel())
        return whole(ids_BL, shared)

    learner.trunk._from_ids = noting
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(97, 123, (32, prompt_length), generator=generator).tolist()
    learner.update(rollout_of(prompts, [[98] * 8] * 32, [float(i % 2) for i in range(32)]))
    return learner, seen


def test_long_prompts_have_fewer_episodes_in_a_micro_batch(toy):
    policy = toy.policy()
    learner, short = lengths_of_passes(policy, OPEN, 10)
    assert learner.memory.size == 32 and set(short) == {32 * 18}
    long_prompt = policy.max_length - 16
    _, long = lengths_of_passes(toy.policy(), OPEN, long_prompt)
    assert 32 * (long_prompt + 8) > 4096 >= max(long)


def test_a_given_size_is_never_cut(toy):
    policy = toy.policy()
    config = dataclasses.replace(OPEN, micro_batch_size=32)
    assert with_micro_batch(policy, config) is config
    _, seen = lengths_of_passes(policy, config, policy.max_length - 16)
    assert set(seen) == {32 * (policy.max_length - 8)}


def test_the_cut_by_tokens_changes_no_gradient(toy):
    weights = []
    for size, tokens in ((16, None), (8, 40)):
        sizes = {"micro_batch_size": size, "micro_batch_tokens": tokens}
        policy, _, _ = toy.train(dataclasses.replace(toy.fast, num_updates=1, **sizes))
        weights.append(torch.cat([p.detach().flatten() for p in policy.model.parameters()]))
    assert torch.allclose(*weights, atol=1e-5)


def test_a_continued_run_keeps_the_micro_batch_it_began_with(toy, tmp_path):
    left_open = dataclasses.replace(toy.fast, micro_batch_size=None, num_updates=1)
    toy.train(dataclasses.replace(left_open, micro_batch_tokens=144), checkpoint_dir=tmp_path)
    longer = dataclasses.replace(left_open, num_updates=2)
    toy.train(longer, checkpoint_dir=tmp_path, resume_from=checkpoint_path(tmp_path, 1))
    config = read_checkpoint(checkpoint_path(tmp_path, 2)).state["config"]
    assert (config["micro_batch_size"], config["micro_batch_tokens"]) == (2, 144)
    other = dataclasses.replace(longer, micro_batch_tokens=300)
    with pytest.raises(CheckpointError, match="micro_batch_tokens = 300 but the run was started"):
        toy.train(other, checkpoint_dir=tmp_path, resume_from=checkpoint_path(tmp_path, 1))


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (MicroBatch(2), [[0, 1], [2, 3], [4]]),
        (MicroBatch(4, 10), [[0, 1, 2], [3], [4]]),
        (MicroBatch(4, 1), [[0], [1], [2], [3], [4]]),
        (MicroBatch(9, 1000), [[0, 1, 2, 3, 4]]),
    ],
)
def test_episodes_fill_a_micro_batch_until_it_is_full(most, expected):
    lengths = [2, 3, 3, 6, 30]
    assert list(most.cut(range(5), lengths)) == expected


def test_half_of_a_micro_batch_is_never_empty():
    assert MicroBatch(5, 9).halved() == (2, 4)
    assert MicroBatch(1, 1).halved() == (1, 1) and MicroBatch(1).halved() == (1, None)


def test_less_memory_gives_fewer_tokens_and_plenty_gives_no_more(toy):
    policy = toy.policy()
    needed = bytes_per_token(policy, OPEN)
    tokens = [most_tokens(policy, OPEN, free) for free in (1e15, 2e3 * needed, 0.0)]
    assert tokens[0] == 4096 and tokens[0] > tokens[1] > tokens[2] == 256
    assert tokens[1] * needed <= 2e3 * needed
    sizes = [OPEN.with_micro_batch(n).micro_batch_size for n in tokens]
    assert sizes[0] > sizes[2]


def test_models_that_need_more_memory_get_fewer_tokens(toy):
    plain = toy.policy()
    needs = functools.partial(bytes_per_token, plain)
    assert needs(dataclasses.replace(OPEN, critic="separate")) > needs(OPEN)
    just = most_tokens(plain, OPEN, 3000 * needs(OPEN))
    assert (
        most_tokens(plain, dataclasses.replace(OPEN, critic="separate"), 3000 * needs(OPEN)) < just
    )


def test_the_estimate_is_not_below_what_autograd_keeps(toy):
    """Counted on the tiny model: bytes of all tensors kept for the backward pass, per token."""
    policy = toy.policy()
    learner = PPOLearner(policy, OPEN)
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    totals = []
    for tokens in (64, 192):
        kept.clear()
        ids_BL = torch.randint(97, 123, (2, tokens))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            states, _ = learner.trunk.full(ids_BL)
            logprobs = learner.trunk.token_logprobs(states[0, :8], ids_BL[0, :8], 1.0)[0]
        totals.append(sum(nbytes for _, nbytes in kept.values()))
        del states, logprobs
    per_token = (totals[1] - totals[0]) / 256
    assert 0.5 * bytes_per_token(policy, OPEN) < per_token < bytes_per_token(policy, OPEN)

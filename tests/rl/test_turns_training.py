"""Several turns on the tiny model: tokens as sampled, and training on them."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from instructrec.envs.refine import RefineVectorEnv
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import PolicyError
from instructrec.rl.ppo import train_ppo
from instructrec.rl.rollout import collect

END, ANSWER = 257, 256


def odd_first_token(completions, completion_ids, **columns):
    """Full marks for half of what an untrained policy says."""
    return [float(ids[0] % 2) for ids in completion_ids]


def refine(size, reward=odd_first_token, **options):
    options = {"task": "parity", "reward": reward, **options}
    return RefineVectorEnv(size, autoreset_mode="DISABLED", **options)


class Spy:
    """A decoder that remembers what it was given and what it gave."""

    def __init__(self, decoder):
        self.decoder = decoder
        self.calls = []

    def sync(self):
        self.decoder.sync()

    def generate(self, prompt_ids, sampling, generator):
        decoded = self.decoder.generate(prompt_ids, sampling, generator)
        self.calls.append((prompt_ids, decoded))
        return decoded


def test_every_turn_begins_with_the_tokens_of_the_turn_before_as_sampled(toy):
    policy = toy.policy()
    policy.decoder = spy = Spy(policy.decoder)
    config = dataclasses.replace(toy.fast, episodes_per_update=16)
    env = refine(16)
    rollout = collect(policy, env, range(16), config)
    assert len(spy.calls) == 3
    sizes = [len(prompts) for prompts, _ in spy.calls]
    assert sizes[0] == 16 > sizes[1] > sizes[2] > 0
    for before, after in zip(spy.calls, spy.calls[1:], strict=False):
        starts = [prompt + decoded.ids for prompt, decoded in zip(*before, strict=True)]
        for prompt in after[0]:
            assert any(prompt[: len(start)] == start for start in starts)
    for i in range(16):
        whole = rollout.prompt_ids[i] + rollout.response_ids[i]
        sampled = [
            t
            for t, is_action in zip(rollout.response_ids[i], rollout.action_mask[i], strict=True)
            if is_action
        ]
        answers = [
            decoded.ids
            for prompts, all_decoded in spy.calls
            for prompt, decoded in zip(prompts, all_decoded, strict=True)
            if whole[: len(prompt) + len(decoded.ids)] == prompt + decoded.ids
        ]
        assert sampled == [token for ids in answers for token in ids]


def test_the_policy_ends_an_answer_once_and_opens_the_next(toy):
    policy = toy.policy()
    text = "more"
    after = [*text.encode(), ANSWER]
    assert policy.follow_up([1, 2, END], text) == after
    assert policy.follow_up([1, 2, 3], text) == [END, *after]


def test_a_template_that_rewrites_history_is_refused_before_anything_is_trained(toy):
    policy = toy.policy()
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}{% endfor %}"
    )
    before = policy.weights_hash()
    with pytest.raises(PolicyError, match="rewrites earlier turns"):
        train_refine(toy, policy=policy)
    assert policy.weights_hash() == before


def train_refine(toy, config=None, *, policy=None, seed=0, env=None, **options):
    """Trains with three tries; returns the policy, the result, and the log."""
    config = config or dataclasses.replace(toy.fast, num_updates=3, episodes_per_update=16)
    policy = policy or toy.policy(seed)
    env = env or refine(config.episodes_per_update)
    log = []
    result = train_ppo(
        policy,
        env,
        config,
        seed=seed,
        on_update=lambda metrics, rows: log.append((metrics, rows)),
        **options,
    )
    return policy, result, log


@pytest.mark.parametrize(
    "settings", [{}, {"train": "last_layers", "num_layers": 1}], ids=["full", "last_layers"]
)
def test_sampler_and_trainer_agree_over_several_turns(toy, settings):
    _, _, log = train_refine(toy, policy=toy.policy(**settings))
    for metrics, rows in log:
        assert metrics["ppo/drift_mean"] < 1e-5
        assert 1.0 < metrics["rollout/turns"] < 3.0
        assert metrics["rollout/tokens"] == sum(row["response_len"] for row in rows)
        totals = [row["total"] for row in rows]
        assert metrics["reward/total/mean"] == pytest.approx(sum(totals) / len(totals))


def test_the_same_seed_gives_the_same_run(toy):
    (one, _, first), (two, _, second) = (train_refine(toy, seed=1) for _ in range(2))
    assert one.weights_hash() == two.weights_hash()
    assert toy.without_times(first) == toy.without_times(second)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(toy, tmp_path):
    whole, _, log = train_refine(toy)
    _, _, head = train_refine(toy, checkpoint_dir=tmp_path, should_stop=lambda: True)
    resumed, _, tail = train_refine(toy, resume_from=tmp_path / "update-000001")
    assert (len(head), len(tail)) == (1, 2)
    assert resumed.weights_hash() == whole.weights_hash()
    assert toy.without_times(head + tail) == toy.without_times(log)


def test_a_conversation_beyond_the_real_window_is_trained_on_as_unfinished(toy, tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "x" * (460 if i % 2 else 5), "reference": "a"} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    never = {"task": str(path), "split": "all", "full_marks": 2.0}
    policy = toy.policy()
    config = dataclasses.replace(toy.fast, num_updates=1, episodes_per_update=16)
    rollout = collect(policy, refine(16, **never), range(16), config)
    long = [len(prompt) > 400 for prompt in rollout.prompt_ids]
    assert rollout.unfinished == long and sum(long) == 8
    assert [len(turns) for turns in rollout.turn_rewards] == [1 if cut else 3 for cut in long]
    assert all(mask[-1] for mask in rollout.action_mask)
    _, _, log = train_refine(toy, config, env=refine(16, **never))
    assert log[0][0]["rollout/turns"] == 2.0
    assert log[0][0]["rollout/unfinished_frac"] == 0.5
    assert all(math.isfinite(value) for value in log[0][0].values())


def test_gradients_do_not_depend_on_the_micro_batch(toy):
    weights = []
    for micro_batch_size in (8, 1):
        config = dataclasses.replace(
            toy.fast, num_updates=1, episodes_per_update=16, micro_batch_size=micro_batch_size
        )
        config = dataclasses.replace(config, num_ppo_epochs=1, warmup_steps=0, learning_rate=1e-4)
        policy, _, _ = train_refine(toy, config)
        weights.append(torch.cat([p.detach().flatten() for p in policy.model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in toy.policy().model.parameters()])
    moved = (weights[0] - start).abs().max()
    assert moved > 1e-4
    assert (weights[0] - weights[1]).abs().mean() < 1e-3 * moved


class Dictation(InstructionVectorEnv):
    """Names half of the alphabet after the first answer; the second one is to be from there."""

    def __init__(self, num_envs, **options):
        super().__init__(num_envs, **options)
        self.dictated = [False] * num_envs

    def begin(self, i):
        self.dictated[i] = False

    def judge(self, i, text, total):
        if not self.dictated[i]:
            self.dictated[i] = True
            return 0.0, "first" if i % 2 else "second", {}
        wanted = range(97, 110) if i % 2 else range(110, 123)
        return sum(ord(c) in wanted for c in text) / max(len(text), 1), None, {}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_it_learns_to_do_what_the_environment_says_in_between(toy, tmp_path, seed):
    """Without reading the message an answer is right half of the time at best."""
    path = tmp_path / "same.jsonl"
    path.write_text((json.dumps({"prompt": "go", "reference": "a"}) + "\n") * 64)
    config = dataclasses.replace(
        toy.fast, num_updates=30, episodes_per_update=64, response_length=1, micro_batch_size=32
    )
    env = Dictation(
        64,
        task=str(path),
        split="all",
        reward=lambda completions, **_: [0.0] * len(completions),
        autoreset_mode="DISABLED",
    )
    _, _, log = train_refine(toy, config, env=env, seed=seed)
    rewards = [metrics["reward/total/mean"] for metrics, _ in log]
    assert sum(rewards[:2]) / 2 < 0.3
    assert sum(rewards[-3:]) / 3 > 0.8, rewards

"""What decoding computed stands in for a pass of the trainer, and changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from instructrec.envs.refine import RefineVectorEnv
from instructrec.rl.learner import PPOLearner
from instructrec.rl.ppo import train_ppo
from instructrec.rl.raft import RaftLearner
from instructrec.rl.reuse import DecodingReuse

LAST = {"train": "last_layers", "num_layers": 1}
TOP_ADAPTERS = {"train": "lora", "num_layers": 1}


def both_ways(toy, config, options):
    """Weights and metrics of the same run with reuse and without."""
    runs = []
    for reuse in (True, False):
        policy, _, log = toy.train(dataclasses.replace(config, reuse_decoding=reuse), **options())
        runs.append((policy.model.state_dict(), [metrics for metrics, _ in log]))
    return runs


def odd_first_token(completions, completion_ids, **columns):
    return [float(ids[0] % 2) for ids in completion_ids]


def check_same(runs, atol=1e-4):
    (weights, log), (plain_weights, plain_log) = runs
    assert [row["rollout/reused"] for row in log] == [1.0] * len(log)
    assert [row["rollout/reused"] for row in plain_log] == [0.0] * len(log)
    for name in weights:
        torch.testing.assert_close(weights[name], plain_weights[name], atol=atol, rtol=0)
    for row, plain in zip(log, plain_log, strict=True):
        assert row["ppo/drift_mean"] < 1e-5
        for key in ("ppo/entropy", "ppo/policy_loss", "ppo/explained_variance", "ppo/kl_ref"):
            assert row.get(key) == pytest.approx(plain.get(key), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        (LAST, {}),
        (LAST, {"kl_coef": 0.1}),
        (LAST, {"critic": "separate", "num_ppo_epochs": 1}),
        ({"train": "lora"}, {"kl_coef": 0.1}),
        (TOP_ADAPTERS, {"kl_coef": 0.1}),
        (LAST, {"temperature": 0.7, "num_generations": 4, "advantage": "rloo"}),
    ],
)
def test_reuse_gives_the_run_of_the_trainers_own_pass(toy, settings, changes):
    config = dataclasses.replace(toy.fast, num_updates=2, **changes)
    check_same(both_ways(toy, config, lambda: {"policy": toy.policy(**settings)}))


def test_adapters_on_top_start_at_the_cut_and_give_the_run_of_whole_passes(toy):
    class Whole(PPOLearner):
        """Runs all layers in every pass."""

        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            assert self.trunk.num_frozen == 1
            self.trunk.num_frozen = 0

    class Counting(PPOLearner):
        """Counts the passes from the token ids on."""

        whole = 0

        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            plain = self.trunk.full

            def full(*given):
                Counting.whole += 1
                return plain(*given)

            self.trunk.full = full

    config = dataclasses.replace(toy.fast, num_updates=2, kl_coef=0.1, reuse_decoding=False)
    (policy, _, log), (plain, _, plain_log) = (
        toy.train(config, policy=toy.policy(**TOP_ADAPTERS), learner=kind)
        for kind in (Counting, Whole)
    )
    for (name, weight), other in zip(
        policy.model.state_dict().items(), plain.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(weight, other, atol=1e-4, rtol=0, msg=name)
    assert [metrics["ppo/kl_ref"] for metrics, _ in log] == pytest.approx(
        [metrics["ppo/kl_ref"] for metrics, _ in plain_log], abs=1e-4
    )
    # Neither the reference nor an epoch runs the frozen layers: 4 micro-batches in each rollout.
    assert Counting.whole == 2 * 4


def test_reuse_works_for_rejection_sampling(toy):
    config = dataclasses.replace(toy.fast, num_updates=2, num_generations=4)
    check_same(
        both_ways(toy, config, lambda: {"policy": toy.policy(**LAST), "learner": RaftLearner})
    )


def test_the_last_answer_keeps_the_states_of_all_turns(toy):
    config = dataclasses.replace(toy.fast, num_updates=2, episodes_per_update=16)
    runs = []
    for reuse in (True, False):
        policy, log = toy.policy(**LAST), []
        env = RefineVectorEnv(16, task="parity", reward=odd_first_token, autoreset_mode="DISABLED")
        train_ppo(
            policy,
            env,
            dataclasses.replace(config, reuse_decoding=reuse),
            seed=0,
            on_update=lambda metrics, rows, log=log: log.append(metrics),
        )
        runs.append((policy.model.state_dict(), log))
    assert runs[0][1][0]["rollout/turns"] > 1
    check_same(runs)


def test_an_update_holds_the_states_of_a_common_opening_once(toy):
    seen = []

    class Noting(PPOLearner):
        def may_step(self):
            cut = self.experience.cut_states.values()
            held = sum(states.untyped_storage().nbytes() for states in cut)
            seen.append((self.experience.shared, held - sum(states.nbytes for states in cut)))
            return super().may_step()

    policy = toy.policy(**LAST, system_prompt="You answer in letters.")
    toy.train(dataclasses.replace(toy.fast, num_updates=1), policy=policy, learner=Noting)
    assert seen and all(shared > 8 and more == 0 for shared, more in seen)


def test_an_engine_that_is_far_from_the_trainer_is_not_relied_on_again(toy, tmp_path):
    policy = toy.policy(**LAST)
    decoder = policy.decoder

    class Odd:
        """Reports log-probs that are not those of the trainer."""

        sync = decoder.sync
        keeping_states = decoder.keeping_states

        def generate(self, *given):
            return [
                item._replace(logprobs=[logprob - 0.05 for logprob in item.logprobs])
                for item in decoder.generate(*given)
            ]

    policy.decoder = Odd()
    config = dataclasses.replace(toy.fast, num_updates=8, save_every=1)
    _, _, log = toy.train(config, policy=policy, checkpoint_dir=tmp_path)
    reused = [metrics["rollout/reused"] for metrics, _ in log]
    assert reused == sorted(reused, reverse=True)
    assert reused[0] == 1 and reused[-1] == 0
    for metrics, _ in log:
        assert metrics["ppo/drift_mean"] == pytest.approx(0.05, abs=0.01)


class Minibatch:
    """A rollout whose sampler gave every token the log-prob -1."""

    kept = True

    def __init__(self, tokens):
        self.tokens = tokens

    def sampler_logprobs(self, rows):
        return -torch.ones(self.tokens)


def differ(reuse, by, tokens=100):
    """An update whose first minibatch differs by so many nats per token."""
    reuse.begin(Minibatch(tokens))
    reuse.compare(Minibatch(tokens), [0], torch.full((tokens,), -1.0 + by))
    drift = reuse.measure().mean
    reuse.end()
    return drift


def test_one_odd_minibatch_is_no_reason_for_distrust_and_many_are():
    reuse = DecodingReuse(None, None, wanted=True)
    for _ in range(5):
        assert differ(reuse, 0.005) == pytest.approx(0.005, abs=1e-6)
    differ(reuse, 0.05)
    assert reuse.trusted
    for _ in range(5):
        differ(reuse, 0.05)
    assert not reuse.trusted


def test_few_tokens_say_too_little_to_judge():
    reuse = DecodingReuse(None, None, wanted=True)
    differ(reuse, 0.05, tokens=20)
    assert reuse.trusted
    differ(reuse, 0.05, tokens=400)
    assert not reuse.trusted


@pytest.mark.parametrize("tokens", [1, 39])
def test_small_minibatches_are_added_up_until_they_can_be_judged(tokens):
    reuse = DecodingReuse(None, None, wanted=True)
    for _ in range(-(-200 // tokens) - 1):
        differ(reuse, 0.25, tokens)
    assert reuse.trusted
    differ(reuse, 0.25, tokens)
    assert not reuse.trusted


def test_small_minibatches_that_agree_are_trusted_and_old_ones_forgotten():
    reuse = DecodingReuse(None, None, wanted=True)
    for _ in range(40):
        differ(reuse, 0.005, tokens=39)
    assert reuse.trusted
    for _ in range(4):
        differ(reuse, 0.05, tokens=39)
    assert not reuse.trusted


def test_an_engine_that_keeps_no_states_leaves_the_pass_to_the_trainer(toy):
    policy = toy.policy()
    decoder = policy.decoder

    class Plain:
        sync = decoder.sync
        generate = decoder.generate

    policy.decoder = Plain()
    _, _, log = toy.train(dataclasses.replace(toy.fast, num_updates=1), policy=policy)
    assert log[0][0]["rollout/reused"] == 0


def test_distrust_outlives_a_checkpoint(toy):
    first = toy.trainer(toy.fast).learner.reuse
    assert first.trusted
    first.trusted = False
    second = DecodingReuse(toy.policy(), None, wanted=True)
    second.load_state_dict(first.state_dict())
    assert not second.trusted

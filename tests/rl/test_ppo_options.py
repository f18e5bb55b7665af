"""The choices of PPO on the tiny model: estimators, critics, penalties, limits."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings

import pytest
import torch

from instructrec.errors import NumericsError, RewardError
from instructrec.rewards import make_rewards
from instructrec.rl.learner import PPOLearner
from instructrec.rl.ppo import PPOTrainer
from instructrec.rl.raft import RaftLearner
from instructrec.rl.rollout import rewarded_by


def test_target_kl_ends_an_update_and_moves_nothing_after_it(toy):
    config = dataclasses.replace(toy.fast, num_updates=3, learning_rate=0.05, warmup_steps=0)
    _, _, free = toy.train(config)
    assert all(metrics["ppo/skipped_frac"] == 0 for metrics, _ in free)
    stopped_policy, _, stopped = toy.train(dataclasses.replace(config, target_kl=0.01))
    assert all(0 < metrics["ppo/skipped_frac"] < 1 for metrics, _ in stopped)
    assert all(math.isfinite(value) for metrics, _ in stopped for value in metrics.values())

    class Watcher(PPOLearner):
        refused = None

        def state(self):
            moments = [m[key] for m in self.optimizer.state.values() for key in sorted(m)]
            parts = [*self.trained_parameters()[0], *self.trained_parameters()[1], *moments]
            return torch.cat([part.detach().flatten() for part in parts]), self.scheduler.last_epoch

        def may_step(self):
            assert self.refused is None, "the update goes on after it was stopped"
            allowed = super().may_step()
            self.refused = None if allowed else self.state()
            return allowed

        def update(self, rollout):
            stats = super().update(rollout)
            (before, steps), (after, steps_after) = self.refused, self.state()
            assert torch.equal(before, after) and steps == steps_after
            self.refused = None
            return stats

    trainer = toy.trainer(dataclasses.replace(config, target_kl=0.01), Watcher)
    trainer.train()
    assert trainer.learner.scheduler.last_epoch > 0
    assert trainer.policy.weights_hash() == stopped_policy.weights_hash()


@pytest.mark.parametrize("settings", [{}, {"critic_detach": False}, {"critic": "separate"}])
def test_only_the_critic_learns_during_its_warm_up(toy, settings):
    def generous(completions, **columns):
        return [1.0 + score for score in toy.reward(completions)]

    config = dataclasses.replace(
        toy.fast, num_updates=4, critic_warmup_updates=3, weight_decay=0.1, **settings
    )
    stop = iter([False, False, True])
    policy, _, log = toy.train(config, reward=generous, should_stop=lambda: next(stop))
    assert len(log) == 3
    assert policy.weights_hash() == toy.policy().weights_hash()
    assert log[-1][0]["ppo/value_loss"] < 0.7 * log[0][0]["ppo/value_loss"]
    moved, _, log = toy.train(config, reward=generous)
    assert moved.weights_hash() != toy.policy().weights_hash()


def test_the_policys_schedules_begin_behind_the_critics_warm_up(toy):
    config = dataclasses.replace(
        toy.fast,
        num_updates=3,
        critic_warmup_updates=2,
        warmup_steps=4,
        learning_rate=1e-3,
        critic_learning_rate=1.0,
        kl_coef=0.1,
        kl_target=1.0,
        entropy_coef=0.01,
        entropy_target=9.0,
    )
    trainer = toy.trainer(config)
    rates = []

    def note(optimizer, *_):
        rates.append([group["lr"] for group in optimizer.param_groups])

    trainer.learner.optimizer.register_step_pre_hook(note)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*optimizer.step")  # torch on schedules
        trainer.train()
    steps = config.steps_per_update
    assert [rate for _, rate in rates[:4]] == [0.25, 0.5, 0.75, 1.0]
    assert [rate for rate, _ in rates[2 * steps :]] == [2.5e-4, 5e-4, 7.5e-4, 1e-3]
    # Nor do the coefficients go by updates in which the policy stood still.
    assert trainer.learner.coefficients.kl.coef != 0.1
    assert trainer.learner.coefficients.entropy.coef == pytest.approx(0.01 * 1.2)


@pytest.mark.parametrize("advantage", ["rloo", "group", "batch_mean"])
def test_the_other_estimators_learn_as_well(toy, advantage):
    config = dataclasses.replace(
        toy.fast,
        num_updates=20,
        episodes_per_update=64,
        lr_schedule="linear",
        advantage=advantage,
        num_generations=1 if advantage == "batch_mean" else 4,
    )
    _, _, log = toy.train(config)
    rewards = [metrics["reward/total/mean"] for metrics, _ in log]
    assert sum(rewards[:2]) / 2 < 0.2
    assert sum(rewards[-3:]) / 3 > 0.6, rewards
    assert all(metrics["ppo/critic_used"] == 0.0 for metrics, _ in log)


def test_responses_to_one_instruction_stand_side_by_side(toy):
    config = dataclasses.replace(toy.fast, num_updates=2, num_generations=4, advantage="rloo")
    _, _, log = toy.train(config)
    for metrics, rows in log:
        ids = [row["id"] for row in rows]
        assert all(len(set(ids[i : i + 4])) == 1 for i in range(0, 32, 4))
        assert len(set(ids)) == 8
        assert 0.0 <= metrics["rollout/zero_variance_frac"] <= 1.0
    assert {row["id"] for row in log[0][1]}.isdisjoint({row["id"] for row in log[1][1]})


@pytest.mark.parametrize(
    "settings",
    [
        {"critic": "separate"},
        {"kl_coef": 0.1, "kl_target": 0.01, "kl_horizon": 100},
        {"kl_coef": 0.1, "kl_penalty": "loss"},
        {"entropy_coef": 0.01, "entropy_target": 1.0},
        {"gae_level": "turn", "lam_policy": 0.95, "lam_value": 0.9},
        {"advantage": "rloo", "num_generations": 4, "target_kl": 0.02},
        {"prompt_filter": "id", "prompt_filter_floor": 0.2},
    ],
    ids=[
        "separate critic",
        "adaptive KL",
        "KL loss",
        "adaptive entropy",
        "turns",
        "rloo",
        "filter",
    ],
)
def test_every_way_to_train_resumes_bit_for_bit(toy, tmp_path, settings):
    config = dataclasses.replace(toy.fast, **settings)
    whole, _, log = toy.train(config)
    stopped = iter([False, True])
    toy.train(config, checkpoint_dir=tmp_path, should_stop=lambda: next(stopped))
    rest, _, tail = toy.train(config, resume_from=tmp_path / "update-000002")
    assert whole.weights_hash() == rest.weights_hash()
    assert toy.without_times(log)[2:] == toy.without_times(tail)


def test_a_weight_follows_its_schedule_in_training_alone(toy):
    rewards = make_rewards({"letters": {"use": toy.reward, "weight": {1: 1.0, 3: 0.0}}})
    _, _, log = toy.train(dataclasses.replace(toy.fast, num_updates=3), reward=rewards)
    assert [metrics["reward/letters/weight"] for metrics, _ in log] == [1.0, 0.5, 0.0]
    for metrics, _ in log:
        expected = metrics["reward/letters/weight"] * metrics["reward/letters/mean"]
        assert metrics["reward/total/mean"] == pytest.approx(expected)
    assert rewards.weights == {"letters": 0.0}  # what evaluates weighs by the end


def test_an_environment_keeps_its_rewards(toy):
    rewards = make_rewards({"letters": {"use": toy.reward, "weight": {1: 1.0, 3: 0.0}}})
    env = toy.env(toy.fast, rewards)
    with rewarded_by(env, rewards.at_update(1)):
        assert env.reward.weights == {"letters": 1.0}
    assert env.reward is rewards


def test_adaptive_coefficients_move(toy):
    config = dataclasses.replace(
        toy.fast,
        kl_coef=0.1,
        kl_target=1e-4,
        kl_horizon=100,
        entropy_coef=0.01,
        entropy_target=100.0,
    )
    _, _, log = toy.train(config)
    assert log[0][0]["ppo/kl_coef"] == 0.1
    assert log[-1][0]["ppo/kl_coef"] != 0.1
    assert log[-1][0]["ppo/entropy_coef"] == pytest.approx(0.01 * 1.2**3)


def test_an_entropy_bonus_keeps_the_policy_trying(toy):
    entropies = []
    for entropy_coef in (0.0, 0.3):
        config = dataclasses.replace(toy.fast, num_updates=15, entropy_coef=entropy_coef)
        _, _, log = toy.train(config)
        entropies.append(log[-1][0]["ppo/entropy"])
    assert entropies[1] > entropies[0] + 0.1


def test_cut_responses_pay_a_penalty_or_leave_the_update(toy):
    plain = dataclasses.replace(toy.fast, num_updates=1, response_length=8, stop_strings=("e", "t"))
    policy = toy.policy()
    scores, kept = {}, {}
    for on_length, penalty in (("terminal", None), ("penalty", 5.0), ("mask", None)):
        config = dataclasses.replace(plain, on_length=on_length, missing_eos_penalty=penalty)
        trainer = toy.trainer(config)
        trainer.train()
        scores[on_length] = trainer.learner.experience.scores_BT.sum(1)
        kept[on_length] = trainer.learner.experience.action_mask_BT.any(1)
        cut = torch.tensor([str(reason) == "length" for reason in trainer.rollout.stop_reasons])
        assert 0 < cut.sum() < 32
    assert torch.allclose(scores["penalty"], scores["terminal"] - 5.0 * cut)
    assert kept["terminal"].all() and kept["penalty"].all()
    assert torch.equal(kept["mask"], ~cut)
    config = dataclasses.replace(plain, on_length="mask", response_length=1, stop_strings=())
    with pytest.raises(RewardError, match="nothing is left to learn from"):
        toy.train(config, policy=policy)


def test_a_broken_sampler_stops_the_run_behind_a_checkpoint(toy, tmp_path):
    policy = toy.policy()
    honest = policy.respond

    def forgets_the_temperature(prompts, columns=None, sampling=None):
        return honest(prompts, sampling=dataclasses.replace(sampling, temperature=0.3))

    policy.respond = forgets_the_temperature
    alarms = []
    with pytest.raises(NumericsError, match="not drawn from the policy that is trained"):
        toy.train(policy=policy, checkpoint_dir=tmp_path, on_alarm=alarms.append)
    assert (tmp_path / "update-000001").is_dir()
    assert {"drift", "broken_sampler"} <= {alarm.name for alarm in alarms}
    assert policy.weights_hash() == toy.policy().weights_hash()  # nothing was learned from it


@pytest.mark.parametrize("learner", [PPOLearner, RaftLearner])
@pytest.mark.parametrize("reuse", [True, False])
def test_a_rollout_of_another_sampler_moves_nothing(toy, learner, reuse):
    policy = toy.policy(train="last_layers", num_layers=1)
    before, decoder = policy.weights_hash(), policy.decoder

    class Odd:
        """Reports log-probs that are not those of the trainer."""

        sync = decoder.sync
        keeping_states = decoder.keeping_states

        def generate(self, *given):
            return [
                item._replace(logprobs=[logprob - 0.5 for logprob in item.logprobs])
                for item in decoder.generate(*given)
            ]

    policy.decoder = Odd()
    config = dataclasses.replace(toy.fast, num_generations=4, reuse_decoding=reuse)
    with pytest.raises(NumericsError, match=r"ppo.max_drift = 0.3"):
        toy.train(config, policy=policy, learner=learner)
    assert policy.weights_hash() == before


def test_a_solved_task_stays_solved_for_fifty_updates(toy):
    """The last answers that were wrong, and noise where all are right, undo nothing."""

    def begins_early(completions, **columns):
        return [float("a" <= text[:1] <= "m") for text in completions]

    config = dataclasses.replace(toy.fast, num_updates=95)
    _, _, log = toy.train(config, reward=begins_early)
    rewards = [metrics["reward/total/mean"] for metrics, _ in log]
    assert rewards[0] < 0.2  # so it is learned, and solved
    assert min(rewards[45:]) > 0.9 and sum(rewards[45:]) / 50 > 0.98


def test_the_prompt_filter_learns_from_raw_rewards(toy):
    class Noting(PPOTrainer):
        def end_update(self):
            self.learned = self.prompt_filter.state_dict()
            return super().end_update()

    config = dataclasses.replace(
        toy.fast, num_updates=1, num_generations=4, prompt_filter="id", max_drift=1e3
    )
    trainer = toy.trainer(config, kind=Noting)
    half = {"use": lambda completions, **_: [0.5] * len(completions), "normalise": "group"}
    trainer.env.reward = make_rewards({"half": half})
    trainer.train()
    assert set(trainer.rollout.returns) == {0.0}  # what is learned from
    count, total, _ = trainer.learned["all"]
    assert total / count == pytest.approx(0.5)


def test_rewards_inside_of_a_reward_do_not_take_its_time_again(toy):
    def slow(completions, **columns):
        time.sleep(0.3)
        return [float(len(text) % 2) for text in completions]

    reward = {"outer": {"use": "weighted", "options": {"parts": {"slow": {"use": slow}}}}}
    config = dataclasses.replace(toy.fast, num_updates=1)
    _, _, [(metrics, _)] = toy.train(config, reward=make_rewards(reward))
    assert metrics["reward/outer.slow/seconds"] >= 0.3
    outer = metrics["reward/outer/seconds"]
    assert outer <= metrics["time/score_s"] < 1.5 * outer  # both together would be twice as much
    assert metrics["time/rollout_s"] > 0

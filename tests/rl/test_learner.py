"""The update as a step that can be called, without a trainer or an environment."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch

from instructrec.errors import CheckpointError, ConfigError, DataError, NumericsError, RewardError
from instructrec.policies.config import Sampling
from instructrec.rl import PPOLearner, RaftLearner, Speedometer, rollout_of

PROMPTS = [f"write {i}" for i in range(8) for _ in range(4)]


def answer(policy, config):
    return policy.respond(PROMPTS, sampling=Sampling(max_new_tokens=config.response_length))


def scored(toy, answers, **options):
    rewards = toy.reward(answers.texts)
    return rollout_of(answers.prompt_ids, answers.response_ids, rewards, **options)


@pytest.mark.parametrize(
    ("learner", "changes"),
    [(PPOLearner, {}), (PPOLearner, {"advantage": "rloo"}), (RaftLearner, {})],
)
def test_a_loop_of_ones_own_learns(toy, learner, changes):
    policy = toy.policy()
    config = dataclasses.replace(toy.fast, num_updates=25, num_generations=4, **changes)
    learner = learner(policy, config, seed=1)
    rewards = []
    for _ in range(config.num_updates):
        policy.sync()
        answers = answer(policy, config)
        rollout = scored(toy, answers, logprobs=answers.logprobs, num_generations=4)
        stats = learner.update(rollout)
        assert stats["ppo/drift_mean"] < 1e-5
        rewards.append(sum(rollout.returns) / len(rollout))
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 0.5
    assert learner.updates == config.num_updates


def test_a_loop_of_ones_own_reuses_decoding_and_knows_its_speed(toy):
    weights = []
    for reuse in (True, False):
        policy = toy.policy(train="last_layers", num_layers=1)
        learner = PPOLearner(policy, dataclasses.replace(toy.fast, kl_coef=0.1))
        with learner.reuse.keeping():
            answers = answer(policy, toy.fast)
        states = answers.states if reuse else ()
        rollout = scored(toy, answers, logprobs=answers.logprobs, states=states)
        stats = learner.update(rollout)
        assert stats["rollout/reused"] == reuse and stats["ppo/drift_mean"] < 1e-5
        weights.append(torch.cat([p.detach().flatten() for p in policy.model.parameters()]))
    assert torch.allclose(*weights, atol=1e-5)
    laps = {"time/rollout_s": 0.5, "time/update_s": 0.5}
    speed = Speedometer(policy, learner.trunk, learner.config).metrics(learner, laps)
    assert speed["speed/episodes_per_s"] == 32 and speed["speed/limit_frac"] > 0


def test_states_of_other_episodes_are_refused(toy):
    policy = toy.policy()
    learner = PPOLearner(policy, toy.fast)
    with learner.reuse.keeping():
        answers = answer(policy, toy.fast)
    for states in (
        answers.states[1:],
        [answers.states[0]] * 31
        + [dataclasses.replace(answers.states[0], final_TH=answers.states[0].final_TH[1:])],
    ):
        with pytest.raises(DataError, match="in the order of the episodes"):
            scored(toy, answers, states=states)


def test_without_logprobs_those_of_the_trainer_are_taken(toy):
    weights = []
    for known in (True, False):
        policy = toy.policy()
        answers = answer(policy, toy.fast)
        learner = PPOLearner(policy, toy.fast)
        rollout = scored(toy, answers, logprobs=answers.logprobs if known else None)
        stats = learner.update(rollout)
        assert stats["ppo/drift_mean"] < 1e-5 and (known or stats["ppo/drift_mean"] == 0)
        weights.append(torch.cat([p.detach().flatten() for p in policy.model.parameters()]))
    assert torch.allclose(*weights, atol=1e-5)
    assert not torch.equal(
        weights[0], torch.cat([p.detach().flatten() for p in toy.policy().model.parameters()])
    )


@pytest.mark.parametrize("changes", [{}, {"kl_coef": 0.1, "kl_target": 1.0}, {"train": "lora"}])
def test_a_learner_goes_on_from_its_state_bit_for_bit(toy, tmp_path, changes):
    settings = {"train": changes.pop("train")} if "train" in (changes := dict(changes)) else {}
    config = dataclasses.replace(toy.fast, **changes)

    def run(policy, learner, updates):
        for _ in range(updates):
            policy.sync()
            learner.update(scored(toy, answer(policy, config)))

    policy = toy.policy(**settings)
    learner = PPOLearner(policy, config, seed=1)
    run(policy, learner, 2)
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    run(policy, learner, 2)
    again = toy.policy(**settings)
    other = PPOLearner(again, config, seed=7)
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    run(again, other, 2)
    assert again.weights_hash() == policy.weights_hash()
    assert other.updates == 4 and other.coefficients.kl.coef == learner.coefficients.kl.coef
    for ours, theirs in zip(other.critic.parameters(), learner.critic.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_state_of_another_kind_of_learner_is_refused(toy):
    state = PPOLearner(toy.policy(train="lora"), toy.fast).state_dict()
    with pytest.raises(CheckpointError, match="train different weights"):
        PPOLearner(toy.policy(), toy.fast).load_state_dict(state)


def test_an_episode_without_a_reward_changes_nothing(toy):
    """Whatever it holds: the gradient is that of the other episodes."""
    hashes = set()
    for response in ([70, 71], [80, 81]):
        policy = toy.policy()
        answers = answer(policy, toy.fast)
        ids = [*answers.response_ids[:-1], response]
        rewards = [*toy.reward(answers.texts)[:-1], math.nan]
        PPOLearner(policy, toy.fast).update(rollout_of(answers.prompt_ids, ids, rewards))
        hashes.add(policy.weights_hash())
    assert len(hashes) == 1


def test_a_rollout_of_another_size_is_refused_and_nothing_is_lost(toy):
    policy = toy.policy()
    before = policy.weights_hash()
    learner = PPOLearner(policy, toy.fast)
    with pytest.raises(ConfigError, match="2 episodes: expected ppo"):
        learner.update(rollout_of([[65], [66]], [[67], [68]], [0.0, 1.0]))
    assert policy.weights_hash() == before and learner.updates == 0


def test_groups_that_were_not_told_of_are_refused(toy):
    config = dataclasses.replace(toy.fast, num_generations=4, advantage="rloo")
    policy = toy.policy()
    with pytest.raises(ConfigError, match=r"groups of 1 answers .* ppo.num_generations = 4"):
        PPOLearner(policy, config).update(scored(toy, answer(policy, config)))


def test_a_rollout_without_a_reward_is_refused(toy):
    policy = toy.policy()
    answers = answer(policy, toy.fast)
    rollout = rollout_of(answers.prompt_ids, answers.response_ids, [math.nan] * 32)
    with pytest.raises(RewardError, match="no episode of the rollout has a reward"):
        PPOLearner(policy, toy.fast).update(rollout)


def test_a_minibatch_without_a_reward_takes_no_step(toy):
    policy = toy.policy()
    answers = answer(policy, toy.fast)
    rewards = [1.0, *[math.nan] * 31]
    learner = PPOLearner(policy, toy.fast)
    stats = learner.update(rollout_of(answers.prompt_ids, answers.response_ids, rewards))
    assert stats["ppo/skipped_frac"] == 0.5  # one of two minibatches has the episode
    assert all(math.isfinite(value) for value in stats.values())
    assert learner.scheduler.last_epoch == 2


@pytest.mark.parametrize("error", [NumericsError, KeyboardInterrupt])
def test_an_update_that_was_broken_off_leaves_nothing_to_the_next(toy, error):
    class Breaking(PPOLearner):
        broken = True

        def clip(self):
            if self.broken:
                raise error("now")
            return super().clip()

    hashes = set()
    for broken in (True, False):
        policy = toy.policy()
        answers = answer(policy, toy.fast)
        learner = Breaking(policy, toy.fast)
        if broken:
            with pytest.raises(error):
                learner.update(scored(toy, answers))
        learner.broken = False
        learner.shuffler.manual_seed(0)
        learner.update(scored(toy, answers))
        hashes.add(policy.weights_hash())
    assert len(hashes) == 1


def test_a_head_that_is_no_baseline_has_no_say_in_the_policys_step(toy):
    hashes = set()
    for rate in (1e-3, 1e-1):
        policy = toy.policy()
        answers = answer(policy, toy.fast)
        config = dataclasses.replace(
            toy.fast, critic_learning_rate=rate, advantage="batch_mean", max_grad_norm=0.1
        )
        PPOLearner(policy, config).update(scored(toy, answers))
        hashes.add(policy.weights_hash())
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": [1.0]}, "1 rewards for 2 prompt_ids"),
        ({"rewards": [1.0, math.inf]}, "reward of episode 1 is inf"),
        ({"response_ids": [[67], []]}, "episode 1 has 1 prompt and 0 response tokens"),
        ({"logprobs": [[-1.0], [-1.0]]}, "episode 1 has 1 logprobs for 2 response tokens"),
        ({"num_generations": 3}, "2 responses in groups of num_generations = 3"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused(changes, message):
    given = {"prompt_ids": [[65], [66]], "response_ids": [[67], [68, 69]], "rewards": [0.0, 1.0]}
    with pytest.raises(DataError, match=message):
        rollout_of(**(given | changes))


def test_the_examples_on_the_page_run(capsys):
    page = Path(__file__).parents[2] / "docs" / "ppo.md"
    plain, quick = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    exec(compile(plain, str(page), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3
    exec(compile(quick, str(page), "exec"), {})
    printed = [list(map(float, line.split())) for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 2
    assert all(reused == 1 and min(speeds) > 0 for reused, *speeds in printed)

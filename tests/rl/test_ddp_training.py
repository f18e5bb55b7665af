"""Two processes train as one would: same episodes, same gradient, same stops, same state."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from instructrec import processes
from instructrec.envs.refine import RefineVectorEnv
from instructrec.errors import CheckpointError, ConfigError, PolicyError, RewardError
from instructrec.policies.base import StopReason
from instructrec.policies.generation import Decoded
from instructrec.rewards.combine import make_rewards
from instructrec.rl.checkpoint import update_of
from instructrec.rl.checkpoint_keeping import latest_checkpoint
from instructrec.rl.learner import PPOLearner
from instructrec.rl.raft import RaftLearner
from instructrec.rl.rollout import collect, instruction_order, rewarded_by
from instructrec.rl.sharing import own_rows

SETTINGS = {
    "full": {},
    "lora": {"train": "lora"},
    "last_layers": {"train": "last_layers", "num_layers": 1},
}


class Scripted:
    """Decodes without the model: a function of the prompt, its place in its group, the update."""

    def __init__(self, policy, num_generations):
        self.num_generations = num_generations
        self.letters = policy.tokenizer("abcdefghijklmnopqrstuvwxyz")["input_ids"]
        self.end = policy.eos_token_ids[0]
        self.calls = 0

    def sync(self):
        pass

    def generate(self, prompt_ids, sampling, generator):
        self.calls += 1
        asked = {}
        answers = []
        for ids in prompt_ids:
            place = asked[tuple(ids)] = (asked.get(tuple(ids), 0) + 1) % self.num_generations
            draw = np.random.default_rng([*ids, place, self.calls])
            size = int(draw.integers(1, sampling.max_new_tokens + 1))
            chosen = [self.letters[i] for i in draw.integers(0, 26, size)]
            cut = size == sampling.max_new_tokens
            chosen = chosen if cut else [*chosen, self.end]
            reason = StopReason.LENGTH if cut else StopReason.EOS
            answers.append(Decoded(chosen, [-3.0] * len(chosen), reason))
        return answers


def recording(learner):
    """A trainer that keeps the clipped gradient of every step."""

    class Recording(learner):
        gradients = ()

        def may_step(self):
            policy, critic = self.trained_parameters()
            parts = [p.grad.flatten() for p in [*policy, *critic] if p.grad is not None]
            Recording.gradients = (*Recording.gradients, torch.cat(parts).clone())
            return super().may_step()

    return Recording


def foreseeable(prompts, completions, **columns):
    """A reward of which a critic can learn the larger part from the prompt."""
    early = [sum("a" <= c <= "m" for c in text) / max(len(text), 1) for text in completions]
    return [prompt.count("write") + part for prompt, part in zip(prompts, early, strict=True)]


def scripted_run(toy, config, learner=PPOLearner, **settings):
    """Trains on scripted answers; returns gradients, weights, metrics and rows."""
    policy = toy.policy(**settings)
    policy.decoder = Scripted(policy, config.num_generations)
    learner = recording(learner)
    _, _, log = toy.train(config, policy=policy, learner=learner, reward=foreseeable)
    weights = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    rows = [(row["id"], row["response"], row["total"]) for _, rows in log for row in rows]
    return learner.gradients, weights, [metrics for metrics, _ in log], rows


def whole_batch(toy, **changes):
    """Settings under which shuffling and sampling decide nothing."""
    unchanged = {"num_mini_batches": 1, "max_drift": 1e3, "warmup_steps": 0, "num_updates": 3}
    return dataclasses.replace(toy.fast, **(unchanged | changes))


def assert_one_and_two_processes_agree(alone, both):
    gradients, weights, metrics, rows = alone
    for of_process in both:
        for mine, expected in zip(of_process[0], gradients, strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(of_process[1], weights, rtol=0, atol=1e-6)
    assert torch.equal(both[0][1], both[1][1])
    assert both[0][3] == rows and both[1][3] == []
    for mine, expected in zip(both[0][2], metrics, strict=True):
        for key in expected:
            if not key.startswith(("time/", "speed/")) and not key.endswith(("_per_s", "/seconds")):
                assert mine[key] == pytest.approx(expected[key], abs=1e-5, rel=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_ppo_takes_the_gradient_of_one_process_on_the_union(toy, in_two_processes, name):
    changes = {"kl_coef": 0.05, "whiten_advantages": "whiten", "learning_rate": 1e-4}
    config = whole_batch(toy, critic_learning_rate=1e-2, num_updates=5, **changes)
    alone = scripted_run(toy, config, **SETTINGS[name])
    both = in_two_processes(lambda: scripted_run(toy, config, **SETTINGS[name]))
    assert any(metrics["ppo/critic_used"] for metrics in alone[2])
    assert_one_and_two_processes_agree(alone, both)


@pytest.mark.parametrize("name", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_rejection_sampling_takes_the_gradient_of_one_process_on_the_union(
    toy, in_two_processes, name
):
    config = whole_batch(toy, num_generations=4, learning_rate=1e-4, num_updates=2)
    alone = scripted_run(toy, config, RaftLearner, **SETTINGS[name])
    both = in_two_processes(lambda: scripted_run(toy, config, RaftLearner, **SETTINGS[name]))
    assert_one_and_two_processes_agree(alone, both)


@pytest.mark.slow
def test_a_rollout_that_fails_in_one_process_leaves_a_checkpoint_that_goes_on_exactly(
    toy, in_two_processes, tmp_path
):
    config = whole_batch(toy, max_error_frac=0.0, num_updates=4)
    calls = []

    def failing(completions, **columns):
        calls.append(len(completions))
        if len(calls) > 2 and processes.rank() == 1:
            raise OSError("the server is down")
        return toy.reward(completions)

    def fails():
        toy.train(config, reward=failing, checkpoint_dir=tmp_path)

    def goes_on():
        latest = processes.from_main(lambda: latest_checkpoint(tmp_path))
        policy, _, log = toy.train(config, checkpoint_dir=tmp_path, resume_from=latest)
        return policy.weights_hash(), toy.without_times(log)

    def whole():
        policy, _, log = toy.train(config)
        return policy.weights_hash(), toy.without_times(log)

    told, other = in_two_processes(fails)
    assert isinstance(told, RewardError) and "the server is down" in str(told)
    assert isinstance(other, SystemExit) and other.code == RewardError.exit_code
    assert update_of(latest_checkpoint(tmp_path)) == 2
    expected, resumed = in_two_processes(whole), in_two_processes(goes_on)
    assert [found[0] for found in resumed] == [found[0] for found in expected]
    assert resumed[0][1] == expected[0][1][2:]


def normalised_twice(toy, how):
    """What two rollouts of repeated instructions pay, and what the rewards remember then."""
    config = whole_batch(toy, num_generations=2, on_length="penalty", missing_eos_penalty=0.3)
    policy = toy.policy()
    policy.decoder = Scripted(policy, 2)
    rewards = {
        "scaled": {"use": foreseeable, "weight": 2.0, "normalise": how},
        "raw": {"use": toy.reward, "weight": 0.5},
    }
    env = toy.env(config, rewards)
    indices = [i for i in range(16) for _ in range(2)]
    rows = own_rows(32)
    paid = []
    for update in (1, 2):
        with rewarded_by(env, env.reward.at_update(update)):
            rollout = collect(policy, env, indices[rows.start : rows.stop], config)
        paid += [(rollout.turn_rewards, rollout.returns, rollout.totals.tolist())]
    return paid, env.reward.state_dict()


def test_rewards_are_normalised_over_the_episodes_of_all(toy, in_two_processes, tmp_path):
    file = tmp_path / "repeated.jsonl"  # each prompt several times in either half of a rollout
    rows = [{"prompt": "write " * (i % 4) + "?", "reference": "a"} for i in range(16)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    repeated = type(toy)(str(file))

    def work():
        return {how: normalised_twice(repeated, how) for how in ("batch", "running", "group")}

    alone = work()
    assert in_two_processes(work) == [alone, alone]
    assert alone["running"][1]["total"]["scaled"]["running"]["count"] == 64
    first = {how: paid[0][1] for how, (paid, _) in alone.items()}
    assert first["batch"] == first["running"] != first["group"]


def test_an_environment_that_pays_by_its_own_rule_cannot_wait_for_the_scores_of_all(
    toy, in_two_processes
):
    def env(**setting):
        reward = make_rewards({"exact_match": {"weight": 1.0, **setting}}).at_update(1)
        options = {"task": toy.task, "split": "all", "autoreset_mode": "DISABLED"}
        return RefineVectorEnv(1, reward=reward, **options)

    batch, clip = env(normalise="batch"), env(normalise="clip", clip=[0.0, 0.5])
    said, _ = in_two_processes(lambda: collect(toy.policy(), batch, [0], toy.fast))
    assert isinstance(said, ConfigError)
    assert "normalise = 'batch' with 2 processes and RefineVectorEnv" in str(said)
    for rollout in in_two_processes(lambda: collect(toy.policy(), clip, [0], toy.fast)):
        assert len(rollout) == 2


def test_together_they_play_the_episodes_of_one_process(toy, in_two_processes):
    config = whole_batch(toy, num_generations=2, advantage="rloo")
    rows = in_two_processes(lambda: scripted_run(toy, config))[0][3]
    order = instruction_order(64, 0, 0, 48)
    task = toy.env(config).task
    assert [row[0] for row in rows] == [task[i].id for i in order for _ in range(2)]


@pytest.mark.slow
def test_the_prompt_filter_chooses_alike_and_learns_from_all(toy, in_two_processes):
    config = whole_batch(toy, prompt_filter="id", num_updates=6, num_ppo_epochs=1)
    alone = scripted_run(toy, config)
    both = in_two_processes(lambda: scripted_run(toy, config))
    assert alone[2][-1]["rollout/passed_over_frac"] > 0
    assert both[0][3] == alone[3]


@pytest.mark.slow
def test_the_curriculum_of_all_is_that_of_one(toy, in_two_processes, tmp_path):
    path = tmp_path / "levels.jsonl"
    rows = [{"prompt": f"write {i}", "reference": "a", "level": i % 3} for i in range(96)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    levels = type(toy)(str(path))
    config = whole_batch(toy, curriculum="level", curriculum_pass=1.5, num_updates=6)
    config = dataclasses.replace(config, curriculum_window=40, curriculum_raise=0.3)
    alone = scripted_run(levels, config)
    both = in_two_processes(lambda: scripted_run(levels, config))
    assert len({metrics["rollout/level"] for metrics in alone[2]}) > 1
    assert both[0][3] == alone[3]


@pytest.mark.slow
def test_an_early_stop_and_unequal_lengths_leave_equal_weights(toy, in_two_processes):
    config = dataclasses.replace(toy.fast, target_kl=0.002, num_ppo_epochs=3, kl_coef=0.05)

    def train():
        steps = []

        class Noting(PPOLearner):
            def update(self, rollout):
                stats = super().update(rollout)
                lengths = [len(self.experience.sequences[i]) for i in self.rows]
                steps.append((self.steps_taken, sum(lengths)))
                return stats

        policy, _, log = toy.train(config, learner=Noting)
        return policy.weights_hash(), steps, [metrics for metrics, _ in log]

    main, other = in_two_processes(train)
    assert main[0] == other[0]
    assert [steps for steps, _ in main[1]] == [steps for steps, _ in other[1]]
    assert all(mine != theirs for (_, mine), (_, theirs) in zip(main[1], other[1], strict=True))
    assert any(0 < metrics["ppo/skipped_frac"] < 1 for metrics in main[2])
    assert all(metrics["rollout/episodes"] == 32 for metrics in main[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_resume_bit_for_bit(toy, in_two_processes, tmp_path, name):
    config = dataclasses.replace(toy.fast, kl_coef=0.05, lr_schedule="linear", warmup_steps=5)
    config = dataclasses.replace(config, prompt_filter="id", entropy_coef=0.01, entropy_target=2.0)

    def train(**options):
        policy, result, log = toy.train(config, policy=toy.policy(**SETTINGS[name]), **options)
        metrics = toy.without_times(log)
        return policy.weights_hash(), policy.generator_state(), result.stopped, metrics

    def stop():
        asked = iter([False, processes.rank() == 1])  # a signal reaches one of them alone
        return train(checkpoint_dir=tmp_path, should_stop=lambda: next(asked))

    whole = in_two_processes(train)
    head = in_two_processes(stop)
    tail = in_two_processes(lambda: train(resume_from=tmp_path / "update-000002"))
    assert [part[2] for part in (*head, *tail)] == ["interrupted"] * 2 + ["finished"] * 2
    assert head[0][3] + tail[0][3] == whole[0][3]
    for resumed, straight in zip(tail, whole, strict=True):
        assert resumed[0] == straight[0] and torch.equal(resumed[1], straight[1])
    assert not torch.equal(whole[0][1], whole[1][1])
    assert all(metrics["rollout/reused"] == 1 for metrics in whole[0][3])
    with pytest.raises(CheckpointError, match="started with 2 processes and this is 1"):
        toy.train(config, resume_from=tmp_path / "update-000002")


@pytest.mark.slow
def test_the_best_weights_end_up_in_every_process(toy, in_two_processes, tmp_path):
    config = dataclasses.replace(toy.fast, eval_every=1, num_updates=3)

    def train():
        scores = iter([0.1, 0.9, 0.5] if processes.is_main() else [0.8, 0.1, 0.9])
        policy, result, _ = toy.train(
            config, evaluate=lambda: {"eval/total/mean": next(scores)}, checkpoint_dir=tmp_path
        )
        return policy.weights_hash(), result.best_update, len(list(scores))

    main, other = in_two_processes(train)
    assert main[:2] == other[:2] and main[1] == 2  # by what the main one found
    assert (main[2], other[2]) == (0, 0)  # all evaluate


def test_what_cannot_be_shared_is_refused_and_what_fails_in_one_fails_in_all(toy, in_two_processes):
    class Tongueless(Scripted):
        def generate(self, *arguments):
            if processes.rank() == 1:
                raise PolicyError("no answer")
            return super().generate(*arguments)

    def fail():
        policy = toy.policy()
        policy.decoder = Tongueless(policy, 1)
        toy.train(policy=policy)

    main, other = in_two_processes(fail)
    assert isinstance(main, PolicyError) and str(main) == "no answer (process 1 of 2)"
    assert isinstance(other, SystemExit) and other.code == PolicyError.exit_code
    large = dataclasses.replace(toy.fast, micro_batch_size=16)
    main, other = in_two_processes(lambda: toy.train(large))
    assert isinstance(main, ConfigError) and "a multiple of 2 ×" in str(main)


def test_a_critic_that_one_process_cannot_load_fails_in_all(toy, in_two_processes):
    class Alone(PPOLearner):
        def make_critic(self):
            if processes.rank() == 1:
                raise PolicyError("no such folder")
            return super().make_critic()

    main, other = in_two_processes(lambda: toy.train(learner=Alone))
    assert isinstance(main, PolicyError) and str(main) == "no such folder (process 1 of 2)"
    assert isinstance(other, SystemExit) and other.code == PolicyError.exit_code

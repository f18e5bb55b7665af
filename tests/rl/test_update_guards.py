"""Numbers that are not finite, and memory that is full, in the middle of an update."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn

from instructrec.errors import NumericsError, PolicyError, RewardError
from instructrec.faults import heard_by
from instructrec.policies.config import Sampling
from instructrec.rl import PPOLearner, RaftLearner, rollout_of
from instructrec.rl.checkpoint import update_of
from instructrec.rl.checkpoint_keeping import latest_checkpoint, list_checkpoints
from instructrec.rl.losses import LossBatch, LossSettings, ppo_loss
from instructrec.rl.optim import clip_gradients
from instructrec.rl.ppo import train_ppo

PROMPTS = [f"write {i}" for i in range(8) for _ in range(4)]


def small(toy, **changes):
    """A run of few episodes."""
    sizes = {"episodes_per_update": 8, "micro_batch_size": 4}
    return dataclasses.replace(toy.fast, **sizes, **changes)


def rollout(toy, policy, **options):
    answers = policy.respond(PROMPTS, sampling=Sampling(max_new_tokens=toy.fast.response_length))
    return rollout_of(
        answers.prompt_ids, answers.response_ids, toy.reward(answers.texts), **options
    )


def state_of(learner):
    """Everything that a step changes, as bytes."""
    state = learner.state_dict()
    tensors = [*state["policy"].values(), *state["critic"].values()]
    tensors += [torch.as_tensor(v) for m in state["optimizer"].values() for v in m.values()]
    return b"".join(t.detach().numpy().tobytes() for t in tensors), state["scheduler_step"]


def poisoned(value, *steps, kind=PPOLearner, part="policy"):
    """A learner of which some steps (the first is 0) meet a gradient that is no number."""

    class Poisoned(kind):
        seen, states = 0, ()

        def clip(self):
            if self.seen in steps:
                weights = [
                    p for p in self.trained_parameters()[part == "critic"] if p.grad is not None
                ]
                weights[-1].grad.view(-1)[0] = value
                self.states = (*self.states, state_of(self))
            return super().clip()

        def _is_finite(self, norm):
            allowed = super()._is_finite(norm)
            if self.seen in steps:
                assert not allowed
                self.states = (*self.states, state_of(self))
            self.seen += 1
            return allowed

    return Poisoned


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["policy", "critic"])
def test_a_step_without_a_finite_gradient_is_left_out_whole(toy, value, part):
    policy = toy.policy()
    learner = poisoned(value, 1, part=part)(policy, toy.fast)
    faults = []
    with heard_by(faults.append):
        stats = learner.update(rollout(toy, policy))
    before, after = learner.states
    assert before == after and before[1] == 1  # weights, moments, and the schedule's step
    assert stats["faults/numerics"] == 1 and stats["ppo/skipped_frac"] == 0.25
    assert learner.scheduler.last_epoch == 3 and not learner.guard.gave_up
    (fault,) = faults
    assert (fault.boundary, fault.kind) == ("numerics", "gradient")
    named = learner.trained_weights()
    assert fault.name in named and fault.name.startswith(part)
    assert all(math.isfinite(value) for value in stats.values())
    assert all(torch.isfinite(p).all() for p in named.values())


def test_without_a_listener_a_left_out_step_is_a_warning(toy):
    policy = toy.policy()
    with pytest.warns(RuntimeWarning, match="a step was left out: the gradient of policy"):
        poisoned(math.nan, 0)(policy, toy.fast).update(rollout(toy, policy))


def test_a_loss_that_is_not_finite_is_left_out_though_its_gradient_is(toy):
    class Infinite(PPOLearner):
        def loss(self, *arguments):
            loss, stats = super().loss(*arguments)
            return loss, stats | {"value_loss": torch.tensor(math.inf)} if not self.updates else (
                loss,
                stats,
            )

    policy = toy.policy()
    learner = Infinite(policy, dataclasses.replace(toy.fast, max_bad_steps=5))
    before, faults = policy.weights_hash(), []
    with heard_by(faults.append):
        stats = learner.update(rollout(toy, policy))
    assert policy.weights_hash() == before and stats["ppo/skipped_frac"] == 1
    assert stats["faults/numerics"] == 4 and math.isfinite(stats["ppo/value_loss"])
    assert {(f.kind, f.name) for f in faults} == {("loss", "value_loss")}


def test_three_bad_steps_in_a_row_stop_a_loop_of_ones_own(toy):
    policy = toy.policy()
    learner = poisoned(math.nan, 1, 2, 3)(policy, toy.fast)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner.update(rollout(toy, policy))
    assert learner.guard.gave_up
    with pytest.raises(NumericsError, match=r"3 optimizer steps in a row .* of policy\."):
        learner.update(rollout(toy, policy))


def test_bad_steps_that_are_not_in_a_row_stop_nothing(toy):
    policy = toy.policy()
    learner = poisoned(math.nan, 0, 1, 3)(policy, toy.fast)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner.update(rollout(toy, policy))
        assert learner.guard.in_a_row == 1
        learner.update(rollout(toy, policy))
    assert learner.guard.in_a_row == 0


def test_three_bad_steps_in_a_row_stop_a_run_behind_a_checkpoint(toy, tmp_path):
    log = []
    with pytest.raises(NumericsError, match=r"ppo.max_bad_steps = 3") as error:
        toy.train(
            small(toy),
            learner=poisoned(math.nan, 5, 6, 7),
            checkpoint_dir=tmp_path,
            on_alarm=lambda alarm: log.append(alarm.message),
        )
    assert error.value.exit_code == 7 and log[-1] == str(error.value)
    assert update_of(latest_checkpoint(tmp_path)) == 2
    latest = latest_checkpoint(tmp_path)
    _, result, _ = toy.train(small(toy), checkpoint_dir=tmp_path, resume_from=latest)
    assert result.updates == toy.fast.num_updates


def test_gradients_are_not_scaled_by_a_norm_that_is_no_number():
    policy, critic = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    for joint in (True, False):
        policy.grad, critic.grad = torch.full((2,), 9.0), torch.tensor([math.nan, 1.0])
        assert not torch.isfinite(clip_gradients([policy], [critic], 1.0, joint=joint))
        assert policy.grad.tolist() == [9.0, 9.0] and critic.grad[1] == 1.0


@pytest.mark.parametrize("old", [-1000.0, 1000.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_a_log_ratio_that_would_overflow_gives_finite_numbers(old, advantage):
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    batch = LossBatch(
        old_logprobs=torch.tensor([old, -1.0]),
        advantages=torch.full((2,), advantage),
        old_values=torch.zeros(2),
        returns=torch.zeros(2),
        action_mask=torch.ones(2, dtype=torch.bool),
    )
    settings = LossSettings(0.2, 0.2, None, 0.5)
    loss, stats = ppo_loss(batch, logprobs, torch.zeros(2), torch.zeros(2), settings, 2)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logprobs.grad).all()
    assert logprobs.grad[1] == -advantage / 2  # the other token still teaches
    assert all(math.isfinite(value) for value in stats.values()) and stats["approx_kl"] > 0


# Memory -------------------------------------------------------------------------------------------


def narrow(most, kind=PPOLearner):
    """A learner whose memory holds so many episodes in a training step."""

    class Narrow(kind):
        def micro_batch_loss(self, rows):
            loss = super().micro_batch_loss(rows)
            if len(rows) > most:
                loss.backward()  # a part of the gradients is there when the memory is full
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
            return loss

    return Narrow


@pytest.mark.parametrize("kind", [PPOLearner, RaftLearner])
def test_a_training_step_beyond_the_memory_is_done_in_halves(toy, kind):
    config = dataclasses.replace(toy.fast, num_generations=4, num_ppo_epochs=1)
    weights, sizes, faults = [], [], []
    for most in (99, 1):
        policy = toy.policy()
        learner = narrow(most, kind)(policy, config)
        with heard_by(faults.append):
            stats = learner.update(rollout(toy, policy, num_generations=4))
        weights.append(torch.cat([p.detach().flatten() for p in policy.model.parameters()]))
        sizes.append(learner.memory.size)
        assert stats["ppo/drift_mean"] < 1e-5
    assert torch.allclose(*weights, atol=1e-5)
    assert sizes[0] == 8 and sizes[1] < 8
    assert {(f.boundary, f.kind, f.name) for f in faults} == {
        ("memory", "out_of_memory", "training step")
    }


def test_a_pass_beyond_the_memory_is_done_in_halves(toy):
    policy = toy.policy()
    learner = PPOLearner(policy, toy.fast)
    full, trunk = learner.trunk.full, learner.trunk

    def limited(ids_BL, shared):
        if len(ids_BL) > 3:
            raise RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried")
        return full(ids_BL, shared)

    trunk.full = limited
    faults = []
    with heard_by(faults.append):
        stats = learner.update(rollout(toy, policy))
    assert learner.memory.size == 2 and len(faults) == 2
    assert stats["ppo/drift_mean"] < 1e-5


def test_one_episode_beyond_the_memory_is_an_error_that_says_what_helps(toy):
    policy = toy.policy()
    learner, message = narrow(0)(policy, toy.fast), "out of memory in the training step with one"
    with heard_by(lambda _: None), pytest.raises(PolicyError, match=message):
        learner.update(rollout(toy, policy))


def test_an_optimizer_beyond_the_memory_is_an_error_that_says_what_helps(toy):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    policy = toy.policy()
    learner = PPOLearner(policy, toy.fast)
    learner.optimizer.step = full
    with pytest.raises(PolicyError, match=r"in the optimizer.*fewer weights"):
        learner.update(rollout(toy, policy))


def test_another_error_of_the_device_is_no_lack_of_memory(toy):
    class Broken(PPOLearner):
        def micro_batch_loss(self, rows):
            raise RuntimeError("CUDA error: device-side assert triggered")

    policy = toy.policy()
    with pytest.raises(RuntimeError, match="device-side assert"):
        Broken(policy, toy.fast).update(rollout(toy, policy))


def test_a_run_counts_what_it_halved(toy):
    config = small(toy, num_updates=2)
    _, _, log = toy.train(config, learner=narrow(2))
    assert [metrics["faults/memory"] for metrics, _ in log] == [1, 0]
    assert all(metrics["faults/numerics"] == 0 for metrics, _ in log)


def test_what_was_halved_stays_so_in_a_run_that_goes_on(toy, tmp_path):
    config = small(toy, save_every=1, keep_checkpoints=9)
    policy = toy.policy()
    policy.decode_share = 0.5
    whole, _, log = toy.train(
        config, policy=policy, learner=narrow(2), checkpoint_dir=tmp_path / "whole"
    )
    start = tmp_path / "whole" / "update-000001"
    again, _, tail = toy.train(config, checkpoint_dir=tmp_path / "again", resume_from=start)
    assert again.decode_share == 0.5
    assert again.weights_hash() == whole.weights_hash()  # sums of other parts round differently
    assert toy.without_times(tail) == toy.without_times(log[1:])
    last = "update-000004/MANIFEST.json"
    assert (tmp_path / "again" / last).read_text() == (tmp_path / "whole" / last).read_text()
    never, _, _ = toy.train(config)
    assert never.weights_hash() != whole.weights_hash()


def test_guards_go_on_where_they_were_unless_something_else_is_wanted(toy):
    learner = PPOLearner(toy.policy(), toy.fast)
    learner.memory.most, learner.guard.in_a_row = learner.memory.most.halved(), 2
    state = learner.state_dict()

    def restored(config, state):
        other = PPOLearner(toy.policy(), config)
        other.load_state_dict(state)
        return other.memory.size, other.guard.in_a_row

    assert restored(toy.fast, state) == (4, 2)
    wider = dataclasses.replace(toy.fast, micro_batch_size=16)
    assert restored(wider, state) == (16, 2)
    gave_up = dataclasses.replace(toy.fast, max_bad_steps=2)  # and somebody resumes all the same
    assert restored(gave_up, state) == (4, 0)
    older = {name: value for name, value in state.items() if name != "guards"}
    assert restored(toy.fast, older) == (8, 0)


# What a run leaves behind -------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_not_saved(toy, tmp_path):
    class Spoiled(PPOLearner):
        def update(self, rollout):
            stats = super().update(rollout)
            if self.updates == 2:
                weight = next(iter(self.trained_weights().values()))
                weight.data.view(-1)[0] = math.nan
            return stats

    config = small(toy, save_every=1)
    with pytest.raises(NumericsError, match=r"policy\..* not finite: .* no checkpoint is written"):
        toy.train(config, learner=Spoiled, checkpoint_dir=tmp_path)
    assert [update_of(path) for path in list_checkpoints(tmp_path)] == [1]


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"prompt_filter": "id"}, marks=pytest.mark.slow)]
)
def test_a_rollout_that_fails_leaves_a_checkpoint_that_goes_on_exactly(toy, tmp_path, changes):
    config = small(toy, max_error_frac=0.0, **changes)
    calls = []

    def failing(completions, **columns):
        calls.append(len(completions))
        if len(calls) > 2:
            raise OSError("the server is down")
        return toy.reward(completions)

    with pytest.raises(RewardError, match="the server is down"):
        toy.train(config, reward=failing, checkpoint_dir=tmp_path)
    assert update_of(latest_checkpoint(tmp_path)) == 2
    whole, _, expected = toy.train(config)
    resumed, _, log = toy.train(
        config, checkpoint_dir=tmp_path, resume_from=latest_checkpoint(tmp_path)
    )
    assert resumed.weights_hash() == whole.weights_hash()
    assert toy.without_times(log) == toy.without_times(expected[2:])


def test_a_rollout_that_breaks_off_by_a_bug_leaves_a_checkpoint_too(toy, tmp_path):
    config = small(toy)
    env = toy.env(config)
    step, calls = env.step, []

    def broken(*arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyError("a bug of an environment")
        return step(*arguments)

    env.step = broken
    common = {"seed": 0, "on_update": lambda metrics, rows: None, "checkpoint_dir": tmp_path}
    with pytest.raises(KeyError, match="a bug"):
        train_ppo(toy.policy(), env, config, **common)
    latest = latest_checkpoint(tmp_path)
    assert update_of(latest) == 2
    whole, _, _ = toy.train(config)
    resumed, _, _ = toy.train(config, checkpoint_dir=tmp_path, resume_from=latest)
    assert resumed.weights_hash() == whole.weights_hash()


def test_a_policy_that_speaks_no_numbers_is_named_and_leaves_no_broken_checkpoint(toy, tmp_path):
    class Spoiled(PPOLearner):
        def update(self, rollout):
            stats = super().update(rollout)
            if self.updates == 2:
                self.policy.model.model.norm.weight.data.fill_(math.nan)
            return stats

    config = small(toy, save_every=3)
    with pytest.raises(NumericsError, match=r"update 3: instruction '.*': the policy gave token 1"):
        toy.train(config, learner=Spoiled, checkpoint_dir=tmp_path)
    assert list_checkpoints(tmp_path) == []


def test_what_rewards_fail_at_is_told_with_the_instructions(toy):
    def failing(completions, **columns):
        return [math.nan if i < 2 else score for i, score in enumerate(toy.reward(completions))]

    faults = []
    config = small(toy, num_updates=1, max_error_frac=0.5)
    with heard_by(faults.append):
        _, _, log = toy.train(config, reward=failing)
    (fault,) = faults
    assert (fault.boundary, fault.kind, fault.name) == ("reward", "nonfinite", "failing")
    assert fault.count == 2 and len(fault.samples) == 2 and fault.message == "the score is nan"
    (metrics, rows) = log[0]
    assert metrics["faults/reward"] == 2
    assert fault.samples == tuple(row["id"] for row in rows[:2])

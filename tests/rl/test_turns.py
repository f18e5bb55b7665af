"""Episodes of several turns: masks, rewards by turn, what leaves an episode out."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from instructrec.envs.chat import ChatVectorEnv
from instructrec.envs.refine import RefineVectorEnv
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import RewardError
from instructrec.policies.base import Responses, StopReason
from instructrec.rl.config import PPOConfig
from instructrec.rl.estimation import estimate_advantages
from instructrec.rl.experience import tensors_of
from instructrec.rl.reporting import reward_metrics, task_metrics
from instructrec.rl.rollout import collect


def numbers(completions, **columns):
    """The number that a response is; 'bad' fails."""
    return [float(text) for text in completions]


class Scripted:
    """Says what was written down: of each episode, (text, ids, stop reason) turn by turn."""

    max_length = 100

    def __init__(self, *episodes):
        self.episodes = episodes
        self.asked = []
        self.messages = []

    def respond(self, prompts, columns=None, sampling=None):
        return self.respond_ids([[i] for i in range(len(prompts))], sampling)

    def respond_ids(self, prompt_ids, sampling=None):
        self.asked.append(prompt_ids)
        turn = len(self.asked) - 1
        said = [self.episodes[ids[0]][turn] for ids in prompt_ids]
        return Responses(
            texts=[text for text, *_ in said],
            prompt_ids=prompt_ids,
            response_ids=[ids for _, ids, _ in said],
            logprobs=[[-0.5] * len(ids) for _, ids, _ in said],
            stop_reasons=[reason for *_, reason in said],
        )

    def follow_up(self, response_ids, message):
        self.messages.append((list(response_ids), message))
        return [90, 91]


def says(text, *ids, cut=False):
    return text, list(ids), StopReason.LENGTH if cut else StopReason.EOS


def refine(size, reward=numbers, **options):
    options = {"task": "parity", "reward": reward, **options}
    return RefineVectorEnv(size, autoreset_mode="DISABLED", **options)


def scripted_rollout(*episodes, reward=numbers, **settings):
    policy = Scripted(*episodes)
    size = len(episodes)
    config = PPOConfig(
        episodes_per_update=size, num_mini_batches=1, **{"response_length": 3} | settings
    )
    return collect(policy, refine(size, reward), range(size), config), policy


def test_a_micro_batch_has_fewer_episodes_of_several_turns():
    config = PPOConfig(episodes_per_update=128, num_mini_batches=1, response_length=8)
    sizes = [config.with_micro_batch(4096, turns).micro_batch_size for turns in (1, 2, 4)]
    assert sizes == [32, 16, 8]
    assert InstructionVectorEnv(1).max_turns == 1 and refine(1, max_turns=4).max_turns == 4


THREE = (
    [says("1", 1, 2, 3)],
    [says("0.5", 4, 5), says("0.25", 6), says("0.75", 7, 8)],
    [says("0", 9), says("1", 10, 11)],
)


def test_answers_and_messages_alternate_and_only_open_episodes_are_asked():
    rollout, policy = scripted_rollout(*THREE)
    assert rollout.response_ids == [[1, 2, 3], [4, 5, 90, 91, 6, 90, 91, 7, 8], [9, 90, 91, 10, 11]]
    yes, no = True, False
    assert rollout.action_mask == [
        [yes] * 3,
        [yes, yes, no, no, yes, no, no, yes, yes],
        [yes, no, no, yes, yes],
    ]
    assert rollout.sampler_logprobs[2] == [-0.5, 0.0, 0.0, -0.5, -0.5]
    assert policy.asked[1:] == [[[1, 4, 5, 90, 91], [2, 9, 90, 91]], [[1, 4, 5, 90, 91, 6, 90, 91]]]
    assert [ids for ids, _ in policy.messages] == [[4, 5], [9], [6]]
    assert policy.messages[2][1].startswith("Your answer was: 0.25\n")


def test_rewards_stand_on_the_last_token_of_their_turn():
    rollout, _ = scripted_rollout(*THREE)
    assert rollout.turn_rewards == [
        [(2, 1.0)],
        [(1, 0.5), (4, -0.25), (8, 0.5)],
        [(0, 0.0), (4, 1.0)],
    ]
    assert rollout.returns == [1.0, 0.75, 1.0]
    assert rollout.texts == ["1", "0.75", "1"]
    assert rollout.rewards.total.tolist() == [1.0, 0.75, 1.0]
    assert rollout.kept == [True] * 3 and rollout.unfinished == [False] * 3
    rows = rollout.rows(update=1)
    assert [(row["total"], row["response_len"]) for row in rows] == [(1.0, 3), (0.75, 5), (1.0, 3)]


def test_the_seconds_of_all_turns_count():
    def slow_for_some(completions, **columns):
        time.sleep(0.0 if len(completions) == 3 else 0.05)  # the second and the third turn
        return numbers(completions)

    rollout, _ = scripted_rollout(*THREE, reward=slow_for_some)
    assert rollout.rewards.seconds["slow_for_some"] >= 0.1


class Reading:
    """Reads three characters."""

    def __call__(self, completions, **columns):
        self.last_truncated = [len(text) > 3 for text in completions]
        return numbers(completions)


def test_the_share_of_last_answers_that_a_reward_read_in_part_is_logged():
    rollout, _ = scripted_rollout(*THREE, reward={"reading": {"use": Reading}})
    metrics = reward_metrics(rollout, {})
    assert metrics["reward/reading/truncated_frac"] == pytest.approx(1 / 3)  # "0.75" of three


def test_each_task_of_a_mixture_has_a_return_of_its_own():
    parts = {"easy": {"use": "parity", "weight": 3}, "hard": {"use": "category", "weight": 1}}
    env = InstructionVectorEnv(
        4,
        task="mixture",
        task_options={"tasks": parts},
        reward={"numbers": {"use": numbers}},
        autoreset_mode="DISABLED",
    )
    policy = Scripted(*([says(text, 1)] for text in ("1", "bad", "0", "0.5")))
    config = PPOConfig(episodes_per_update=4, num_mini_batches=1, response_length=3)
    rollout = collect(policy, env, range(4), dataclasses.replace(config, max_error_frac=0.5))
    assert sorted(rollout.tasks) == ["easy", "easy", "easy", "hard"]
    hard = rollout.tasks.index("hard")
    metrics = task_metrics(rollout)
    assert metrics["rollout/task/easy/episodes"] == 3 and metrics["rollout/task/hard/episodes"] == 1
    paid = {i: total for i, total in enumerate((1.0, None, 0.0, 0.5)) if total is not None}
    easy = [total for i, total in paid.items() if i != hard]
    assert metrics["rollout/task/easy/total"] == pytest.approx(sum(easy) / len(easy))
    assert metrics.get("rollout/task/hard/total") == paid.get(hard)


def test_without_a_mixture_there_are_no_tasks_to_report():
    assert task_metrics(scripted_rollout(*THREE)[0]) == {}


def test_a_failed_reward_in_any_turn_leaves_the_episode_out():
    broken = [says("0.5", 4), says("bad", 5)]
    rollout, _ = scripted_rollout(*THREE, broken, max_error_frac=0.3)
    assert rollout.scored == rollout.kept == [True, True, True, False]
    assert rollout.turn_rewards[3] == []
    assert rollout.rewards.sample_status(3) == "failed"
    assert rollout.rows(1)[3]["total"] is None
    with pytest.raises(RewardError, match=r"1 of 4 rewards .*could not convert"):
        scripted_rollout(*THREE, broken, max_error_frac=0.1)


def test_a_reward_beyond_all_bounds_is_seen_in_any_turn():
    with pytest.raises(RewardError, match=r"a reward of 500 .*max_reward"):
        scripted_rollout([says("-500", 1), says("0", 2), says("0", 2)], THREE[0], max_reward=400.0)


def test_each_cut_answer_pays_and_any_one_can_leave_the_episode_out():
    cut = [says("0.5", 4, 5, 6, cut=True), says("1", 7)]
    penalty = {"on_length": "penalty", "missing_eos_penalty": 0.25}
    rollout, _ = scripted_rollout(THREE[0], cut, **penalty)
    assert rollout.turn_rewards[1] == [(2, 0.25), (5, 0.5)]
    assert rollout.returns[1] == 1.0
    rollout, _ = scripted_rollout(THREE[0], cut, on_length="mask")
    assert rollout.kept == [True, False] and rollout.scored == [True, True]


def test_a_conversation_that_outgrows_the_window_ends_unfinished():
    policy = Scripted(*THREE)
    policy.max_length = 1 + 2 + 2 + 3  # room for a second answer, not for a third
    config = PPOConfig(episodes_per_update=3, num_mini_batches=1, response_length=3)
    rollout = collect(policy, refine(3), range(3), config)
    assert rollout.unfinished == [False, True, False]
    assert rollout.response_ids[1] == [4, 5, 90, 91, 6]
    assert rollout.turn_rewards[1] == [(1, 0.5), (4, -0.25)]
    assert rollout.kept == [True] * 3


class Truncating(InstructionVectorEnv):
    """Stops every episode after the first answer although it could go on."""

    def step(self, actions, extras=None, active=None):
        obs, rewards, terminated, truncated, info = super().step(actions, extras, active)
        return obs, rewards, truncated, terminated, info


def test_an_episode_that_the_environment_cuts_is_unfinished():
    env = Truncating(1, task="parity", reward=numbers, autoreset_mode="DISABLED")
    config = PPOConfig(episodes_per_update=1, num_mini_batches=1)
    rollout = collect(Scripted([says("1", 1)]), env, [0], config)
    assert rollout.unfinished == [True] and rollout.turn_rewards == [[(0, 1.0)]]


def test_an_environment_that_shows_whole_conversations_is_answered_by_its_last_message():
    options = {"task": "parity", "reward": numbers, "autoreset_mode": "DISABLED"}
    env = ChatVectorEnv(1, user=["Sure?"], **options)
    config = PPOConfig(episodes_per_update=1, num_mini_batches=1)
    policy = Scripted([says("1", 1), says("2", 2)])
    rollout = collect(policy, env, [0], config)
    assert policy.messages == [([1], "Sure?")]
    assert rollout.turn_rewards == [[(0, 0.0), (3, 2.0)]]


def advantages(rollout, config, values):
    """Advantages and returns of the action tokens, in order."""
    experience = tensors_of(rollout, torch.device("cpu"))
    mask_BT = experience.action_mask_BT
    experience.old_logprobs_BT[mask_BT] = experience.sampler_logprobs_BT[mask_BT]
    experience.values_BT[mask_BT] = values
    estimate_advantages(experience, config, kl_coef=0.0)
    return experience.advantages_BT[mask_BT], experience.returns_BT[mask_BT]


@pytest.mark.parametrize("level", ["token", "turn"])
@pytest.mark.parametrize("advantage", ["gae", "batch_mean"])
def test_tokens_of_the_environment_change_nothing(level, advantage):
    """However long the messages are, the policy's tokens get the same advantages."""
    lambdas = {"lam_policy": 0.8, "lam_value": 0.7} if advantage == "gae" else {}
    config = PPOConfig(gamma=0.9, gae_level=level, advantage=advantage, **lambdas)
    with_messages, _ = scripted_rollout(*THREE)
    bare = dataclasses.replace(
        with_messages,
        response_ids=[],
        action_mask=[],
        sampler_logprobs=[],
        turn_rewards=[],
    )
    for i, mask in enumerate(with_messages.action_mask):
        own = [t for t, is_action in enumerate(mask) if is_action]
        bare.response_ids.append([with_messages.response_ids[i][t] for t in own])
        bare.sampler_logprobs.append([with_messages.sampler_logprobs[i][t] for t in own])
        bare.action_mask.append([True] * len(own))
        bare.turn_rewards.append([(own.index(t), r) for t, r in with_messages.turn_rewards[i]])
    values = torch.tensor([0.9, 1.0, 0.8, 0.5, 0.6, 0.7, 0.6, 0.8, 1.0, 0.9, 0.8])
    for ours, theirs in zip(
        advantages(with_messages, config, values), advantages(bare, config, values), strict=True
    ):
        assert ours.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)

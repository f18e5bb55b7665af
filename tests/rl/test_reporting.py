"""What is reported of single episodes, and of the tasks of a mixture."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from instructrec.rewards.base import RewardBatch
from instructrec.rl.experience import Experience, tensors_of
from instructrec.rl.given import rollout_of
from instructrec.rl.reporting import MOST_TASKS, episode_numbers, task_metrics
from instructrec.rl.rollout import Rollout


def rollout(rewards: list[float]) -> Rollout:
    """Episodes of two tokens, the last one of three."""
    count = len(rewards)
    lengths = [2] * (count - 1) + [3]
    return rollout_of([[1]] * count, [[5] * n for n in lengths], rewards)


def experience(rewards: list[float]) -> Experience:
    return tensors_of(rollout(rewards), torch.device("cpu"))


def test_an_episode_has_its_mean_advantage_and_its_kl() -> None:
    seen = experience([1.0, math.nan, 0.0])
    seen.advantages_BT = torch.tensor([[1.0, 2.0, 9.0], [9.0, 9.0, 9.0], [3.0, 0.0, -6.0]])
    seen.old_logprobs_BT = torch.tensor([[-1.0, -2.0, 0.0], [-1.0] * 3, [-1.0, -1.0, -1.0]])
    seen.ref_logprobs_BT = torch.tensor([[-1.5, -3.0, 7.0], [-9.0] * 3, [-1.0, -1.0, -0.5]])
    first, masked, last = episode_numbers(seen)
    assert first == {"advantage": pytest.approx(1.5), "kl_ref": pytest.approx(1.5)}
    assert masked == {"advantage": None, "kl_ref": None}  # without a reward it is not trained on
    assert last == {"advantage": pytest.approx(-1.0), "kl_ref": pytest.approx(-0.5)}


def test_what_an_update_does_not_have_is_absent() -> None:
    assert episode_numbers(experience([1.0, 0.0])) == [{}, {}]


def with_tasks(tasks: list[object], totals: list[float]) -> Rollout:
    made = rollout(totals)
    made.tasks = tasks
    made.rewards = RewardBatch(
        total=np.array(totals), parts={}, status={}, messages={}, seconds={}, flags={}
    )
    return made


def test_each_task_of_a_mixture_has_its_mean() -> None:
    made = with_tasks(["a", "b", "a", "a"], [1.0, 0.5, 0.0, math.nan])
    assert task_metrics(made) == {"task/a/mean": 0.5, "task/b/mean": 0.5}


@pytest.mark.parametrize(
    "tasks",
    [
        [None] * 4,
        ["a"] * 4,
        [1, 2, 3, 4],
        [],
    ],
)
def test_a_column_that_names_no_tasks_is_no_mixture(tasks: list[object]) -> None:
    assert task_metrics(with_tasks(tasks, [1.0] * 4)) == {}


def test_too_many_tasks_are_something_else() -> None:
    count = MOST_TASKS + 1
    assert task_metrics(with_tasks([str(i) for i in range(count)], [1.0] * count)) == {}

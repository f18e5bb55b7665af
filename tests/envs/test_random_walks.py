"""Random walks: the graph and its walks are those that were measured elsewhere."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from instructrec.envs.tasks.base import default_rewards, iterate, make_task
from instructrec.envs.tasks.random_walks import NODES
from instructrec.errors import ConfigError
from instructrec.policies.scripted import OraclePolicy, RandomPolicy
from instructrec.rewards.combine import make_rewards
from instructrec.rewards.walks import read_graph


def optimality(task, answers):
    items = list(iterate(task))
    columns = {name: [item.columns[name] for item in items] for name in task.columns}
    reward = make_rewards(default_rewards(task))
    return reward.score([item.prompt for item in items], answers, columns).total


def demonstrated(task):
    return optimality(task, [item.columns["reference"] for item in iterate(task)])


@pytest.mark.parametrize(
    ("graph", "mean", "arrived"), [(1000, 0.3515, 0.560), (1002, 0.7902, 0.985)]
)
def test_random_walks_score_what_they_score_in_the_original(graph, mean, arrived):
    """Measured with trlx's examples/randomwalks/randomwalks.py (MIT) at its commit 3340c2f."""
    task = make_task("random_walks", graph=graph, reference="walk")
    scores = demonstrated(task)
    assert len(scores) == 1000
    assert scores.mean() == pytest.approx(mean, abs=5e-5)
    reached = [item.columns["reference"].endswith(NODES[0]) for item in iterate(task)]
    assert np.mean(reached) == pytest.approx(arrived, abs=5e-4)


def test_the_shortest_walks_are_the_ceiling_and_letters_by_chance_the_floor():
    task = make_task("random_walks", split="test")
    items = list(iterate(task))
    columns = {name: [item.columns[name] for item in items] for name in task.columns}
    prompts = [item.prompt for item in items]
    assert optimality(task, OraclePolicy().respond(prompts, columns).texts).tolist() == [1.0] * 20
    chance = RandomPolicy(words=["".join(word) for word in ("bcdefghij", "klmnopqrs")])
    assert optimality(task, chance.respond(prompts, columns).texts).mean() < 0.05


def test_every_start_is_asked_once_and_every_walk_follows_edges():
    for split in ("validation", "test"):
        task = make_task("random_walks", split=split, reference="walk")
        assert [item.prompt for item in iterate(task)] == list(NODES[1:])
    for item in iterate(make_task("random_walks", size=50, reference="walk")):
        graph, walk = read_graph(item.columns["graph"]), item.prompt + item.columns["reference"]
        assert all(after in graph.successors[node] for node, after in pairwise(walk))
        assert walk[-1] == graph.goal or len(walk) == graph.most_nodes


def test_a_longer_task_starts_with_the_same_walks():
    few, many = (make_task("random_walks", size=size, reference="walk") for size in (30, 60))
    assert [few[i] for i in range(30)] == [many[i] for i in range(30)]
    assert few.fingerprint != many.fingerprint
    other = make_task("random_walks", size=30, graph=7)
    assert other[0].columns["graph"] != few[0].columns["graph"]


@pytest.mark.parametrize("options", [{"reference": "best"}, {"graph": -1}, {"size": 0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        make_task("random_walks", **options)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_graph_whose_goal_cannot_be_reached_is_refused(split):
    with pytest.raises(ConfigError, match="graph = 6: no edge of this graph leads to the goal"):
        make_task("random_walks", graph=6, split=split)

"""Optimality of walks: hand-made graphs, and answers that are no walks."""

from __future__ import annotations

import pytest

from instructrec.errors import DataError
from instructrec.rewards.walks import Graph, optimality, read_graph

#   e -> d -> c -> b -> a (goal), and e -> b; f leads nowhere but to itself
GRAPH = Graph({"e": "db", "d": "c", "c": "b", "b": "a", "f": "f"}, goal="a", most_nodes=6)


def score(start, walk):
    return optimality([walk], [start], [GRAPH.to_json()])[0]


def test_the_shortest_walk_scores_1_and_a_detour_less():
    assert score("e", "ba") == 1.0  # 3 nodes
    assert score("e", "dcba") == pytest.approx((6 - 5) / (6 - 3))
    assert score("b", "a") == 1.0
    assert score("d", "cba") == 1.0


@pytest.mark.parametrize("walk", ["", "a", "bb", "ab", "d c b a", "DCBA", "zzz", "dc", "🙂", "e"])
def test_what_does_not_arrive_along_edges_scores_0(walk):
    assert score("e", walk) == 0.0


def test_what_follows_the_goal_is_not_looked_at():
    assert score("e", "baxyz") == 1.0
    assert score("e", " ba\n") == 1.0


def test_a_start_without_a_way_has_no_score():
    assert score("f", "fa") is None
    far = Graph({"c": "b", "b": "a"}, goal="a", most_nodes=3)
    assert optimality(["ba"], ["c"], [far.to_json()]) == [None]  # no walk is shorter than the most


def test_walks_that_are_too_long_score_0_not_less():
    ring = Graph({"c": "bd", "d": "c", "b": "a"}, goal="a", most_nodes=5)
    long = "dcdcdcdcba"
    assert optimality([long, "ba"], ["c", "c"], [ring.to_json()] * 2) == [0.0, 1.0]


def test_graphs_are_read_back_and_others_refused():
    assert read_graph(GRAPH.to_json()) == GRAPH
    for text in ("", "{}", "[]", '{"successors": {"ab": "c"}, "goal": "a", "most_nodes": 5}'):
        with pytest.raises(DataError, match="expected a JSON object"):
            read_graph(text)

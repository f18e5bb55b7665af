"""How near to the shortest walk a response comes: walks on a graph whose nodes are letters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from instructrec.errors import DataError
from instructrec.rewards.text import completion_texts

_EXPECTED = (
    'a JSON object {"successors": {node: nodes}, "goal": node, "most_nodes": number} whose nodes '
    "are single characters"
)


@dataclass(frozen=True)
class Graph:
    """A directed graph with a goal."""

    successors: Mapping[str, str]
    """Node -> the nodes to which an edge leads, as one string."""
    goal: str
    """Where walks end."""
    most_nodes: int
    """Most nodes of a walk, start and goal included."""

    def shortest(self, start: str) -> str | None:
        """A shortest walk from a node to the goal, both included; None where there is none.

        Of several it is the alphabetically first.
        """
        walks, seen = [start], {start}
        while walks:
            for walk in walks:
                if walk[-1] == self.goal:
                    return walk
            longer = []
            for walk in walks:
                for node in sorted(self.successors.get(walk[-1], "")):
                    if node not in seen:
                        seen.add(node)
                        longer.append(walk + node)
            walks = longer
        return None

    def arrival(self, walk: str) -> int | None:
        """Nodes of a walk up to its goal; None where a step has no edge or the goal never comes."""
        for i, node in enumerate(walk):
            if i and node not in self.successors.get(walk[i - 1], ""):
                return None
            if node == self.goal:
                return i + 1
        return None

    def to_json(self) -> str:
        """The text that the column ``graph`` holds."""
        found = {
            "successors": dict(self.successors),
            "goal": self.goal,
            "most_nodes": self.most_nodes,
        }
        return json.dumps(found)


@lru_cache(maxsize=64)
def read_graph(text: str) -> Graph:
    """Reads what `Graph.to_json` wrote.

    Raises:
        DataError: It is something else.
    """
    try:
        graph = Graph(**json.loads(text))
        nodes = [graph.goal, *graph.successors]
        if all(isinstance(n, str) and len(n) == 1 for n in nodes) and graph.most_nodes > 1:
            return graph
    except (TypeError, ValueError, AttributeError, RecursionError):
        pass
    raise DataError(f"graph = {str(text)[:80]!r}: expected {_EXPECTED}.")


def optimality(
    completions: Sequence[Any],
    start: Sequence[str],
    graph: Sequence[str],
    **columns: Any,
) -> list[float | None]:
    """How near a walk to the goal comes to the shortest one: 1 is shortest, 0 never arrives.

    A response is the rest of a walk, node by node without separators; what follows the goal is not
    looked at. A walk of n nodes scores (m - n) / (m - s), with m the most nodes that are allowed
    and s those of a shortest walk, start and goal counted; a step without an edge scores 0.
    Source: the random walks of trlx (https://github.com/CarperAI/trlx, examples/randomwalks).

    Args:
        completions: B responses.
        start: B nodes at which the walks begin.
        graph: B graphs; see `Graph.to_json`.
        **columns: Not read.

    Returns:
        B scores in [0, 1]; None where no walk of fewer than m nodes leads to the goal.

    Raises:
        DataError: A graph is not readable.
    """
    texts = completion_texts(completions)
    return [
        _optimality(read_graph(of_it), begin, text.strip())
        for of_it, begin, text in zip(graph, start, texts, strict=True)
    ]


def _optimality(graph: Graph, start: str, walk: str) -> float | None:
    best = graph.shortest(start)
    if best is None or len(best) >= graph.most_nodes:
        return None
    nodes = graph.arrival(start + walk) or graph.most_nodes
    return (graph.most_nodes - min(nodes, graph.most_nodes)) / (graph.most_nodes - len(best))

"""Walks to a goal on a random graph: "r" -> "dea". A toy whose floor and ceiling are known.

The graphs and walks are those of trlx's example (https://github.com/CarperAI/trlx,
examples/randomwalks), draw by draw; the idea is from Chen et al. 2021, "Decision Transformer".
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np

from instructrec.envs.tasks.base import Instruction, check_index, check_split, register_task
from instructrec.envs.tasks.partition import SPLITS, stable_hash
from instructrec.envs.tasks.procedural import check_size, fingerprint_of
from instructrec.errors import ConfigError
from instructrec.rewards.walks import Graph

NODES = "abcdefghijklmnopqrstu"
"""The nodes; the first one is the goal."""
MOST_NODES = 10
"""Most nodes of a walk, start and goal included."""
EDGE_CHANCE = 0.1
"""Chance of an edge from one node to another."""
TRAIN_WALKS = 1000
"""Walks of the training split."""

Reference = Literal["shortest", "walk"]
_VERSION = 1


@register_task("random_walks")
class RandomWalks:
    """Goes on from a node of a graph until the goal, in as few steps as possible.

    A prompt is a node, a response the nodes that follow it. The training split has the starts of
    random walks; validation and test have each start once (and again where they are longer). There
    are no more than 20 prompts, and all splits have them: what is measured is how well a policy
    has learned this one graph, not whether it generalises.

    Args:
        split: ``train``, ``validation`` or ``test``.
        graph: Seed of the graph, and of the walks on it.
        size: Number of items; None: 1000 walks in train, each start once elsewhere.
        reference: What the column ``reference`` shows: a ``shortest`` walk, or a random ``walk``,
            which is what a policy learns to walk from before PPO.
    """

    name: str = "random_walks"
    columns: tuple[str, ...] = ("reference", "family", "item", "start", "graph")
    rewards: ClassVar[dict[str, Any]] = {"optimality": 1.0}

    def __init__(
        self,
        *,
        split: str = "train",
        graph: int = 1000,
        size: int | None = None,
        reference: Reference = "shortest",
    ) -> None:
        self.split = check_split(split, SPLITS)
        if reference not in get_args(Reference):
            raise ConfigError(f"reference = {reference!r}: expected 'shortest' or 'walk'.")
        if not isinstance(graph, int) or isinstance(graph, bool) or graph < 0:
            raise ConfigError(f"graph = {graph!r}: expected a seed, a whole number from 0 on.")
        self._seed, self._reference = graph, reference
        self.graph, draws = draw_graph(graph)
        # Those from which no walk arrives in time would have nothing to reward.
        self.starts = [
            node for node in NODES[1:] if len(self.graph.shortest(node) or NODES) < MOST_NODES
        ]
        if not self.starts:
            raise ConfigError(
                f"graph = {graph}: no edge of this graph leads to the goal, expected one that has "
                "walks to it. Take another seed."
            )
        default = TRAIN_WALKS if split == "train" else len(self.starts)
        self.size = check_size(size, default=default)
        self._walks = self._drawn(draws)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Instruction:
        index = check_index(index, self.size, self.name)
        walk = self._walks[index]
        shown = walk if self._reference == "walk" else self.graph.shortest(walk[0])
        assert shown is not None, "only starts from which the goal is reached are asked"
        return Instruction(
            id=f"{self.name}-{self.split}-{self._seed}-{index}",
            prompt=walk[0],
            columns={
                "reference": shown[1:],
                "family": self.name,
                "item": walk[0],
                "start": walk[0],
                "graph": self.graph.to_json(),
            },
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that decides the items."""
        return fingerprint_of(
            name=self.name,
            version=_VERSION,
            split=self.split,
            graph=self._seed,
            size=self.size,
            reference=self._reference,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # immutable

    def _drawn(self, draws: np.random.RandomState) -> list[str]:
        """The walks of this split, from their starts on."""
        if self.split == "train":
            walks: list[str] = []
            while len(walks) < self.size:
                walk = random_walk(self.graph, draws, _any_start(draws))
                walks += [walk] if walk[0] in self.starts else []
            return walks
        own = np.random.RandomState(stable_hash(self.name, self._seed, self.split) % 2**32)
        starts = (self.starts[i % len(self.starts)] for i in range(self.size))
        return [random_walk(self.graph, own, start) for start in starts]


def draw_graph(seed: int) -> tuple[Graph, np.random.RandomState]:
    """Draws a graph in which every node has a way out.

    Returns:
        The graph, and the generator as drawing left it: walks are drawn from it next.
    """
    draws = np.random.RandomState(seed)
    count = len(NODES)
    while True:
        edges = draws.rand(count, count) > 1 - EDGE_CHANCE
        np.fill_diagonal(edges, False)
        if edges.any(axis=1).all():
            break
    successors = {
        node: "".join(NODES[j] for j in np.flatnonzero(row))
        for node, row in zip(NODES[1:], edges[1:], strict=True)
    }
    return Graph(successors, goal=NODES[0], most_nodes=MOST_NODES), draws


def random_walk(graph: Graph, draws: np.random.RandomState, start: str) -> str:
    """Walks along edges chosen by chance, to the goal or to the most nodes that are allowed."""
    walk = start
    while walk[-1] != graph.goal and len(walk) < graph.most_nodes:
        walk += NODES[draws.choice(_places(graph.successors[walk[-1]]))]
    return walk


def _any_start(draws: np.random.RandomState) -> str:
    """Any node but the goal."""
    while True:
        place = int(draws.randint(len(NODES)))
        if place:
            return NODES[place]


@lru_cache(maxsize=256)
def _places(nodes: str) -> tuple[int, ...]:
    return tuple(NODES.index(node) for node in nodes)

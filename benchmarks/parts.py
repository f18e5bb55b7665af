"""What is compared with what: the parts of the benchmark."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.workload import Workload

PROGRAMS = OURS, PPO_PEER, GRPO_PEER, GENERATE = "ours", "trl112", "trl116", "generate"
"""Programs that play a side: ``benchmarks/side_<name>.py``."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    """What tables call it."""
    program: str = OURS
    """Which program plays it."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the workload that are its own."""

    def workload(self, base: Workload, part: Part) -> Workload:
        """The workload of this side in a part."""
        return replace(base, **{**part.changes, **self.changes})


@dataclass(frozen=True)
class Part:
    """A comparison whose sides run in turn."""

    name: str
    """Name on the command line."""
    title: str
    """What it asks."""
    sides: tuple[Side, ...]
    """A peer stands last; every other side is held against it."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the workload for all sides."""
    rounds: int | None = None
    """Most rounds, where one is enough: memory does not vary, and defaults differ by far."""
    on_demand: bool = False
    """Whether it runs only when it is named."""

    @property
    def peer(self) -> Side | None:
        """The side that the others are held against; None where we are alone."""
        last = self.sides[-1]
        return None if last.program == OURS else last

    def of(self, programs: Collection[str], fields: Mapping[str, Any]) -> Part:
        """This part for some programs, with fields that the command line decides.

        What makes a side what it is (``Side.changes``) stays.
        """
        sides = tuple(side for side in self.sides if side.program in programs)
        return replace(self, sides=sides, changes={**self.changes, **fields})


_GROUPS = {"generations": 4, "kl_coef": 0.0}

PARTS = (
    Part(
        "full",
        "PPO, all weights train, same recipe and precision",
        (
            Side("ours"),
            Side("ours, separate critic", changes={"critic": "separate"}),
            Side("TRL 1.12 PPO", PPO_PEER),
        ),
    ),
    Part(
        "half",
        "PPO, the last half of the layers trains",
        (Side("ours"), Side("TRL 1.12 PPO", PPO_PEER)),
        {"train": "last_layers"},
    ),
    Part(
        "defaults",
        "PPO, each with its own defaults but for the response length",
        (
            Side(
                "ours (128 episodes, 2 epochs of 4 minibatches)",
                changes={"episodes": 128, "epochs": 2, "mini_batches": 4, "learning_rate": 2e-5},
            ),
            Side(
                "TRL 1.12 PPO (8 episodes, 4 epochs of 1 minibatch, float32)",
                PPO_PEER,
                {
                    "episodes": 8,
                    "epochs": 4,
                    "mini_batches": 1,
                    "dtype": "float32",
                    "learning_rate": 3e-6,
                },
            ),
        ),
        {"updates": 2},
        rounds=1,
    ),
    Part(
        "memory",
        "PPO, all weights train: peak memory against TRL's precision without settings",
        (Side("ours"), Side("TRL 1.12 PPO, float32", PPO_PEER, {"dtype": "float32"})),
        {"warmup": 0, "updates": 1},
        rounds=1,
    ),
    Part(
        "grpo",
        "our PPO and TRL's GRPO at equal tokens and optimizer steps",
        (Side("ours"), Side("TRL 1.16 GRPO", GRPO_PEER)),
        _GROUPS,
    ),
    Part(
        "lora",
        "the same with adapters of rank 16 on all linear layers",
        (Side("ours"), Side("TRL 1.16 GRPO", GRPO_PEER)),
        {**_GROUPS, "train": "lora"},
        rounds=1,
    ),
    Part(
        "small_passes",
        "memory with four episodes in a pass: all weights train, or adapters of rank 16",
        (
            Side("ours, all weights"),
            Side("ours, adapters", changes={**_GROUPS, "train": "lora"}),
        ),
        {"warmup": 0, "updates": 1, "micro_batch": 4},
        rounds=1,
        on_demand=True,
    ),
    Part(
        "rollout",
        "decoding alone: ours, and transformers' generate in the same precision",
        (Side("ours"), Side("transformers generate", GENERATE)),
        {"epochs": 0, "kl_coef": 0.0},
        on_demand=True,
    ),
    Part(
        "h100",
        "PPO on one large GPU: 64 episodes, prompts of 64 tokens, responses of 128",
        (
            Side("ours"),
            Side("ours, separate critic", changes={"critic": "separate"}),
            Side("TRL 1.12 PPO", PPO_PEER),
        ),
        {"episodes": 64, "prompt_length": 64, "response_length": 128},
        on_demand=True,
    ),
    Part(
        "verl",
        "the work of verl's published log (66.3 s an update, 3.86 episodes a second, on one GPU)",
        (Side("ours, separate critic"),),
        {
            "episodes": 256,
            "prompt_length": 104,
            "response_length": 276,
            "epochs": 1,
            "mini_batches": 4,
            "micro_batch": 16,
            "critic": "separate",
        },
        on_demand=True,
    ),
)
"""All parts, in the order in which they run."""


def prompts_needed(parts: Sequence[Part], base: Workload) -> dict[tuple[int | None, int], int]:
    """Different prompts that the largest rollout needs, by prompt and response length."""
    needed: dict[tuple[int | None, int], int] = {}
    for part in parts:
        for work in (side.workload(base, part) for side in part.sides):
            kind = work.prompt_length, work.response_length
            needed[kind] = max(needed.get(kind, 0), work.episodes // work.generations)
    return needed

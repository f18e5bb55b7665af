"""Trains DQN of Stable-Baselines3 to choose among candidate responses, and says what it learned.

For every seed a network is trained on embeddings of `instructrec/Candidates-v0` (train split) and
measured on the test split before and after, on the same instructions and candidates::

    pip install 'instructrec[agents]'
    python experiments/scripts/dqn_candidates.py --seeds 0 1 2

One small network scores every candidate against the instruction, so that it does not matter which
number a response has. ``dqn_candidates.json`` holds every score, ``dqn_candidates.md`` the table.
Each different text is encoded once, for all seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

import instructrec  # noqa: F401  (registers the ids)
from instructrec.envs.embeddings import EmbeddingObservation, Encoder, make_encoder
from instructrec.envs.tasks.base import iterate, make_task
from instructrec.errors import ConfigError, InstructRecError
from instructrec.experiments import telling
from instructrec.experiments.compare_stats import FEWEST_RUNS
from instructrec.experiments.evaluation import cluster_of
from instructrec.experiments.jsonl import write_atomic, write_json
from instructrec.experiments.machine import git_commit, machine_info, versions
from instructrec.experiments.stats import mean_interval, seeds_interval
from instructrec.policies.embedded import EMBEDDED_NAME, embedded_folder

try:
    import stable_baselines3
    from stable_baselines3 import DQN
    from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
except ImportError as error:
    raise SystemExit(
        "Stable-Baselines3 is not installed: pip install 'instructrec[agents]'"
    ) from error

NAME = "dqn_candidates"


class Scorer(nn.Module):
    """Scores each of K candidates by the same function of instruction and candidate.

    Args:
        rows: 1 + K.
        size: D, numbers in an embedding.
        hidden: Width of the hidden layer.
    """

    def __init__(self, rows: int, size: int, hidden: int) -> None:
        super().__init__()
        self.shape = (rows, size)
        self.norm = nn.LayerNorm(size)
        self.layers = nn.Sequential(nn.Linear(3 * size, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, flat: torch.Tensor) -> torch.Tensor:
        """From embeddings (B, (1 + K) D) to values (B, K)."""
        texts = self.norm(flat.unflatten(1, self.shape))  # (B, 1 + K, D)
        candidates = texts[:, 1:]
        instruction = texts[:, :1].expand_as(candidates)
        pairs = torch.cat([instruction, candidates, instruction * candidates], dim=-1)
        return self.layers(pairs).squeeze(-1)


class CandidateQNetwork(QNetwork):
    """The value network of DQN with a `Scorer` inside."""

    def __init__(self, observation_space: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(observation_space, *args, **kwargs)
        texts, size = observation_space.shape
        scorer: Any = Scorer(texts, size, hidden=self.net_arch[0])
        self.q_net = scorer


class CandidatePolicy(DQNPolicy):
    """``DQN(CandidatePolicy, env)``: values that do not depend on the order of the candidates."""

    def make_q_net(self) -> QNetwork:
        """Makes one network; DQN asks for two."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return CandidateQNetwork(**arguments).to(self.device)


def make_env(given: argparse.Namespace, encoder: Encoder, split: str) -> gym.Env[Any, Any]:
    """The environment of a split."""
    env = gym.make(
        "instructrec/Candidates-v0",
        task=make_task(
            given.task, split=split, size=given.size if split == "train" else given.limit
        ),
        num_candidates=given.candidates,
    )
    return EmbeddingObservation(env, encoder)


def score(model: DQN, env: gym.Env[Any, Any]) -> list[float]:
    """The reward of the greedy choice for every instruction, in order."""
    rewards = []
    for index in range(len(env.get_wrapper_attr("task"))):
        observation, _ = env.reset(options={"index": index})
        action, _ = model.predict(observation, deterministic=True)
        rewards.append(float(env.step(action)[1]))
    return rewards


def train(
    given: argparse.Namespace, encoder: Encoder, seed: int
) -> tuple[list[float], list[float], float]:
    """Trains one network.

    Returns:
        Rewards on the test split before and after, and the seconds of training.
    """
    held_out = make_env(given, encoder, "test")
    model = DQN(
        CandidatePolicy,
        make_env(given, encoder, "train"),
        policy_kwargs={"net_arch": [given.hidden]},
        learning_rate=given.learning_rate,
        learning_starts=min(200, given.steps // 4),
        buffer_size=given.steps,
        batch_size=64,
        train_freq=2,
        exploration_fraction=0.3,
        seed=seed,
        device="cpu",
    )
    before = score(model, held_out)
    start = time.monotonic()
    model.learn(given.steps)
    return before, score(model, held_out), time.monotonic() - start


def nearest(env: gym.Env[Any, Any]) -> list[float]:
    """The reward of the candidate that is most similar to the instruction: nothing is learned."""
    rewards = []
    for index in range(len(env.get_wrapper_attr("task"))):
        texts, _ = env.reset(options={"index": index})
        rewards.append(float(env.step(int((texts[1:] @ texts[0]).argmax()))[1]))
    return rewards


def summarise(matrix: Sequence[Sequence[float]], clusters: Sequence[str], differences: bool) -> Any:
    """A mean with its interval: of other seeds and items from three seeds on, else of items."""
    if len(matrix) >= FEWEST_RUNS:
        return asdict(seeds_interval(matrix, clusters, differences=differences))
    found = asdict(mean_interval(np.mean(matrix, axis=0), clusters))
    return found | {"seed_means": [float(np.mean(row)) for row in matrix]}


def markdown(result: dict[str, Any]) -> str:
    """The table of a result."""
    settings = result["settings"]
    lines = [
        f"# DQN on Candidates-v0: {settings['task']}, {settings['candidates']} candidates",
        "",
        f"{settings['steps']} steps on {settings['size']} training instructions, encoder "
        f"`{settings['encoder']}`; mean reward of the greedy choice on {settings['limit']} test "
        f"instructions, seeds {', '.join(map(str, settings['seeds']))}. Intervals (95 %) are of "
        f"other items, and of other seeds from {FEWEST_RUNS} on. Nearest: the candidate whose "
        "embedding is most similar to that of the instruction.",
        "",
        "| | mean | interval | by seed |",
        "| --- | --- | --- | --- |",
    ]
    for name in ("nearest", "before", "after", "gain"):
        found = result[name]
        means = ", ".join(f"{mean:.3f}" for mean in found.get("seed_means", [found["mean"]]))
        limits = f"{found['low']:.3f} to {found['high']:.3f}"
        lines.append(f"| {name} | {found['mean']:.3f} | {limits} | {means} |")
    seconds = ", ".join(f"{value:.0f}" for value in result["training_seconds"])
    lines += ["", f"Encoding {result['encoding_seconds']:.0f} s; training {seconds} s."]
    return "\n".join(lines) + "\n"


def encode(given: argparse.Namespace, encoder: Encoder) -> float:
    """Encodes the texts of both splits in large batches; returns the seconds that it took."""
    start = time.monotonic()
    for split in ("train", "test"):
        env = make_env(given, encoder, split)
        texts: set[str] = set()
        for index in range(len(env.get_wrapper_attr("task"))):
            env.unwrapped.reset(options={"index": index})
            texts.update(env.get_wrapper_attr("texts"))
        encoder(sorted(texts))
    return time.monotonic() - start


def run(given: argparse.Namespace, say: telling.Say) -> dict[str, Any]:
    """Trains and measures every seed."""
    commit = git_commit()  # of the code that is loaded, whatever happens to the files meanwhile
    folder = str(embedded_folder()) if given.encoder == EMBEDDED_NAME else given.encoder
    encoder = make_encoder(folder)
    seconds = encode(given, encoder)
    say(f"encoded in {seconds:.0f} s")
    before, after, training = [], [], []
    for seed in given.seeds:
        first, last, took = train(given, encoder, seed)
        say(f"seed {seed}: {np.mean(first):.3f} before, {np.mean(last):.3f} after, {took:.0f} s")
        before.append(first)
        after.append(last)
        training.append(took)
    held_out = make_env(given, encoder, "test")
    items = list(iterate(held_out.get_wrapper_attr("task")))
    clusters = [cluster_of({"id": item.id, **item.columns}) for item in items]
    gain = (np.array(after) - np.array(before)).tolist()
    return {
        "settings": {name: value for name, value in vars(given).items() if name != "out"},
        "machine": machine_info(),
        "versions": {**versions(), "stable-baselines3": stable_baselines3.__version__},
        "commit": commit,
        "nearest": asdict(mean_interval(nearest(held_out), clusters)),
        "before": summarise(before, clusters, False),
        "after": summarise(after, clusters, False),
        "gain": summarise(gain, clusters, True),
        "encoding_seconds": seconds,
        "training_seconds": training,
        "scores": {"id": [item.id for item in items], "before": before, "after": after},
    }


def main(arguments: Sequence[str] | None = None, *, say: telling.Say = telling.say) -> int:
    """Trains, measures and writes both files; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--task", default="closed_answers", help="a built-in task")
    parser.add_argument("--candidates", type=int, default=4, help="K")
    parser.add_argument(
        "--encoder", default=EMBEDDED_NAME, help=f"{EMBEDDED_NAME}, hash, or the folder of a model"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    for name, value, text in (
        ("steps", 1200, "choices in training"),
        ("size", 160, "training instructions"),
        ("limit", 100, "test instructions"),
        ("hidden", 64, "width of the network"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("runs") / NAME)
    given = parser.parse_args(arguments)
    try:
        if min(given.steps, given.size, given.limit, given.hidden) < 1:
            raise ConfigError("steps, size, limit and hidden are numbers from 1 on.")
        result = run(given, say)
    except InstructRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    given.out.mkdir(parents=True, exist_ok=True)
    write_json(given.out / f"{NAME}.json", result)
    write_atomic(given.out / f"{NAME}.md", markdown(result))
    say(markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())

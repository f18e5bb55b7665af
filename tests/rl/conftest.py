"""A toy task for the learning algorithms: the tiny model learns to write early letters."""

from __future__ import annotations

import dataclasses
import json

import pytest

from instructrec import processes
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.policies.causal_lm import load_policy
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import PPOConfig
from instructrec.rl.learner import PPOLearner
from instructrec.rl.ppo import PPOTrainer, train_ppo
from instructrec.rl.run_state import Hooks

FAST = PPOConfig(
    num_updates=4,
    episodes_per_update=32,
    num_mini_batches=2,
    num_ppo_epochs=2,
    micro_batch_size=8,
    response_length=4,
    learning_rate=3e-3,
    critic_learning_rate=3e-3,
    kl_coef=0.0,
)


def early_letters(completions, **columns):
    """Share of characters from the first half of the alphabet."""
    return [sum("a" <= c <= "m" for c in text) / max(len(text), 1) for text in completions]


class Toy:
    """The toy task and what trains on it."""

    fast = FAST
    """Settings of a short run."""
    reward = staticmethod(early_letters)
    """The reward."""

    def __init__(self, task):
        self.task = task

    def policy(self, seed=0, **changes):
        """A fresh tiny policy on the CPU in float32."""
        return load_policy(
            PolicyConfig(model="tiny", dtype="float32", device="cpu", **changes), seed=seed
        )

    def env(self, config, reward=early_letters):
        """The environment of one rollout."""
        return InstructionVectorEnv(
            config.episodes_per_update // processes.world_size(),
            task=self.task,
            split="all",
            reward=reward,
            autoreset_mode="DISABLED",
        )

    def train(self, config=FAST, *, seed=0, policy=None, reward=early_letters, **options):
        """Trains; returns the policy, the result, and (metrics, rows) of every update."""
        policy = policy or self.policy(seed)
        log = []
        result = train_ppo(
            policy,
            self.env(config, reward),
            config,
            seed=seed,
            on_update=lambda metrics, rows: log.append((metrics, rows)),
            **options,
        )
        return policy, result, log

    def learns(self, env, seed):
        """Makes sure that a policy learns 64 episodes of single characters, from nearly nothing."""
        config = dataclasses.replace(
            self.fast,
            num_updates=30,
            episodes_per_update=64,
            response_length=1,
            micro_batch_size=32,
            learning_rate=6e-3,
            critic_learning_rate=6e-3,
            lr_schedule="linear",
        )
        log = []

        def on_update(metrics, rows):
            log.append(metrics["reward/total/mean"])

        train_ppo(self.policy(seed), env, config, seed=seed, on_update=on_update)
        assert sum(log[:2]) / 2 < 0.2
        assert sum(log[-3:]) / 3 > 0.8, log

    def trainer(self, config, learner=PPOLearner, kind=PPOTrainer):
        """A trainer that was not started."""
        hooks = Hooks(lambda metrics, rows: None, None, "eval/total/mean", lambda: False)
        env = self.env(config)
        return kind(self.policy(), env, config, seed=0, hooks=hooks, learner=learner)

    @staticmethod
    def without_times(log):
        """The metrics of every update without those that a clock decides."""
        clocked = ("time/", "speed/")
        return [
            {k: v for k, v in metrics.items() if not k.startswith(clocked) and "_per_s" not in k}
            | {k: "" for k in metrics if k.endswith("/seconds")}
            for metrics, _ in log
        ]


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The toy task."""
    path = tmp_path_factory.mktemp("data") / "task.jsonl"
    rows = [{"prompt": "write " * (i % 3) + str(i), "reference": "a"} for i in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Toy(str(path))

"""PPO for language-model policies, on rollouts of an instruction environment.

One update, from top to bottom: collect a rollout, pass over it once without gradient, estimate
advantages, then a few epochs of clipped updates on reshuffled minibatches, and report.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import ConfigError, DataError
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.config import Sampling
from instructrec.policies.critic import ValueHead
from instructrec.policies.trunk import Trunk
from instructrec.rl import reporting, training_state
from instructrec.rl.checkpoint import (
    Snapshot,
    checkpoint_path,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from instructrec.rl.config import PPOConfig
from instructrec.rl.estimation import estimate_advantages
from instructrec.rl.experience import minibatches, tensors_of, trainer_pass
from instructrec.rl.losses import LossSettings, ppo_loss
from instructrec.rl.reference import make_reference
from instructrec.rl.rollout import Rollout, collect, instruction_order
from instructrec.rl.trl_bridge import RolloutTrainer, trl_settings

OnUpdate = Callable[[dict[str, float], list[dict[str, Any]]], None]
"""Receives the metrics of an update and its sample rows."""


Stopped = Literal["finished", "early_stopping", "interrupted"]
"""Why a training call ended."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training call ended."""

    updates: int
    """Updates that the run has behind it, those before a resume included."""
    best_update: int
    """Update with the best evaluation; the last one when nothing was evaluated."""
    best_score: float | None
    """That evaluation's score, None when nothing was evaluated."""
    stopped: Stopped
    """Why it ended."""


@dataclass
class Progress:
    """Counters of a run that a checkpoint carries."""

    update: int = 0
    best_update: int = 0
    best_score: float | None = None
    evaluations_without_gain: int = 0


@dataclass(frozen=True)
class Hooks:
    """What the trainer calls besides the policy and the environment."""

    on_update: OnUpdate
    evaluate: Callable[[], dict[str, float]] | None
    best_metric: str
    should_stop: Callable[[], bool]


class PPOTrainer(RolloutTrainer):
    """Proximal policy optimisation with a critic on the policy's own trunk.

    Args:
        policy: The policy; its trained weights change in place.
        env: Vector environment with autoreset DISABLED.
        config: Settings, with the micro-batch size resolved.
        seed: Seed of the instruction order and of the minibatch shuffles.
        hooks: Callbacks.
        checkpoint_dir: Where checkpoints go; None keeps none.
        resume: Checkpoint to continue from.
    """

    def __init__(
        self,
        policy: CausalLMPolicy,
        env: InstructionVectorEnv,
        config: PPOConfig,
        *,
        seed: int,
        hooks: Hooks,
        checkpoint_dir: Path | None = None,
        resume: Snapshot | None = None,
    ) -> None:
        assert config.micro_batch_size is not None, "with_micro_batch_size comes first"
        self.env, self.hooks, self.checkpoint_dir, self.resume = env, hooks, checkpoint_dir, resume
        self.progress = Progress(**resume.state["progress"]) if resume else Progress()
        self.stopped: Stopped = "finished"
        self.shuffler = torch.Generator().manual_seed(seed)
        first = self.progress.update * config.episodes_per_update
        last = config.num_updates * config.episodes_per_update
        with tempfile.TemporaryDirectory() as unused_dir:
            settings = trl_settings(
                config,
                micro_batch_size=config.micro_batch_size,
                seed=seed,
                num_updates=config.num_updates - self.progress.update,
                device=policy.device,
                output_dir=Path(unused_dir),
            )
        hidden_size = int(policy.model.config.get_text_config().hidden_size)
        critic = ValueHead(hidden_size, detach=config.critic_detach).to(policy.device)
        order = instruction_order(len(env.task), seed, first, last)
        self.trunk = Trunk(policy.model)
        self.reference = (
            make_reference(policy, self.trunk, config.temperature) if config.kl_coef else None
        )
        super().__init__(policy, critic, order, config, settings)
        self.loss_settings = LossSettings(
            config.cliprange, config.cliprange_high, config.cliprange_value, config.vf_coef
        )
        self.sampling = Sampling(
            max_new_tokens=config.response_length,
            temperature=config.temperature,
            stop_strings=config.stop_strings,
        )

    def begin_training(self) -> None:
        """Restores a checkpoint once there is an optimizer to restore."""
        if self.resume is not None:
            training_state.restore(self, self.resume)
            self.resume = None

    # One update -------------------------------------------------------------------------------

    def begin_update(self, indices: list[int]) -> Iterator[Any]:
        """Collects, estimates, and yields the micro-batches of every epoch."""
        config = self.config
        assert config.micro_batch_size is not None
        clock = _Clock()
        self.stats, self.grad_norms = reporting.LossStats(), []

        # Step 1: the current policy answers one instruction per episode; one call scores them all.
        self.policy.sync()
        self.rollout = self._collect(indices)
        assert self.rollout.rewards is not None
        score_seconds = sum(self.rollout.rewards.seconds.values())
        clock.lap("time/rollout_s")

        # Step 2: log-probs, values and reference log-probs before the first step.
        self.experience = tensors_of(self.rollout, self.policy.device)
        entropy = trainer_pass(
            self.experience,
            self.trunk,
            self.critic,
            self.reference,
            temperature=config.temperature,
            micro_batch_size=config.micro_batch_size,
            autocast=self.policy.autocast(),
        )

        # Step 3: rewards per token, returns, advantages.
        self.metrics = {"ppo/entropy": entropy, **estimate_advantages(self.experience, config)}
        clock.lap("time/advantage_s")
        clock.laps["time/rollout_s"] -= score_seconds
        clock.laps["time/score_s"] = score_seconds
        self.clock = clock

        # Step 4: epochs of clipped updates, reshuffled each time.
        self.normaliser = self.experience.num_tokens / config.num_mini_batches
        for _ in range(config.num_ppo_epochs):
            yield from minibatches(
                self.experience, config.num_mini_batches, config.micro_batch_size, self.shuffler
            )

    def micro_batch_loss(self, micro_batch: list[int]) -> Tensor:
        """Loss of the given episodes: one forward for policy, value and entropy."""
        packed = self.experience.pack(micro_batch)
        cut = self.experience.cut(micro_batch)
        with self.policy.autocast():
            if cut is not None:
                hidden_BSH = self.trunk.upper(cut)
            else:
                hidden_BSH, _ = self.trunk.full(packed.ids_BL, packed.shared)
            states_NH = packed.states(hidden_BSH)
            logprobs_N, entropy_N = self.trunk.token_logprobs(
                states_NH, packed.tokens_N, self.config.temperature
            )
        loss, stats = ppo_loss(
            self.experience.loss_batch(micro_batch),
            logprobs_N,
            self.critic(states_NH),
            entropy_N,
            self.loss_settings,
            self.normaliser,
        )
        self.stats.add(stats)
        return loss

    def end_update(self) -> bool:
        """Step 5: evaluate, checkpoint, report; returns whether training stops here."""
        self.clock.lap("time/update_s")
        self.progress.update += 1
        update, config = self.progress.update, self.config
        metrics = self._update_metrics()
        last = update == config.num_updates
        interrupted = self.hooks.should_stop() and not last
        if self.hooks.evaluate is not None and (
            last or (config.eval_every and update % config.eval_every == 0)
        ):
            self.policy.sync()
            metrics |= self.hooks.evaluate()
            self._note_score(metrics)
        patience = config.early_stopping_patience
        early = bool(patience) and self.progress.evaluations_without_gain >= patience
        saving = last or interrupted or early or self._is_best_now()
        if saving or (config.save_every and update % config.save_every == 0):
            self._write_checkpoint()
        metrics["time/total_s"] = self.clock.total()
        self.hooks.on_update(metrics, self.rollout.rows(update))
        if interrupted:
            self.stopped = "interrupted"
        elif early and not last:
            self.stopped = "early_stopping"
        return interrupted or early

    # Helpers ----------------------------------------------------------------------------------

    def _collect(self, indices: list[int]) -> Rollout:
        return collect(
            self.policy,
            self.env,
            indices,
            self.sampling,
            max_reward=self.config.max_reward,
            max_error_frac=self.config.max_error_frac,
        )

    def _update_metrics(self) -> dict[str, float]:
        config, update = self.config, self.progress.update
        laps = self.clock.laps
        return {
            "train/update": float(update),
            "train/global_step": float(update * config.steps_per_update),
            "train/episodes": float(update * config.episodes_per_update),
            **reporting.rollout_metrics(self.rollout, laps["time/rollout_s"]),
            **reporting.reward_metrics(self.rollout),
            **reporting.kl_metrics(self.experience, config.kl_coef),
            **self.metrics,
            **self.stats.metrics(config.steps_per_update),
            "ppo/lr": float(self.optimizer.param_groups[0]["lr"]),
            "ppo/grad_norm": reporting.mean_or_zero(self.grad_norms),
            **laps,
        }

    def _note_score(self, metrics: dict[str, float]) -> None:
        score = metrics.get(self.hooks.best_metric)
        if score is None:
            raise ConfigError(
                f"the evaluation reports no {self.hooks.best_metric!r}, by which the best update "
                f"is chosen. It reports: {', '.join(sorted(metrics))}."
            )
        best = self.progress.best_score
        if best is None or score > best:
            self.progress.best_score, self.progress.best_update = score, self.progress.update
            self.progress.evaluations_without_gain = 0
        else:
            self.progress.evaluations_without_gain += 1

    def _is_best_now(self) -> bool:
        return self.progress.best_update == self.progress.update

    def _write_checkpoint(self) -> None:
        if self.checkpoint_dir is None:
            return
        folder = checkpoint_path(self.checkpoint_dir, self.progress.update)
        write_checkpoint(folder, training_state.capture(self))
        spared = self.progress.best_update or None
        prune_checkpoints(self.checkpoint_dir, self.config.keep_checkpoints, spared)


class _Clock:
    """Wall-clock laps of one update, in seconds."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    def total(self) -> float:
        return time.perf_counter() - self.start


def train_ppo(
    policy: CausalLMPolicy,
    env: InstructionVectorEnv,
    config: PPOConfig,
    *,
    seed: int,
    on_update: OnUpdate,
    evaluate: Callable[[], dict[str, float]] | None = None,
    best_metric: str = "eval/total/mean",
    checkpoint_dir: Path | None = None,
    resume_from: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainingResult:
    """Trains a policy with PPO.

    Args:
        policy: The policy as it starts, on a resumed run too: the KL reference is a copy of this
            state. It ends with the weights of the best evaluation when there are evaluations and
            a checkpoint folder, else with the last ones.
        env: Vector environment of ``config.episodes_per_update`` episodes, autoreset DISABLED.
        config: Settings.
        seed: Seed of the instruction order and of the shuffles.
        on_update: Called after each update.
        evaluate: Scores the current policy; called every ``config.eval_every`` updates and after
            the last one.
        best_metric: The evaluation's key that chooses the best update (larger is better).
        checkpoint_dir: Where checkpoints go; None keeps none.
        resume_from: Checkpoint folder to continue from.
        should_stop: Asked after each update; True ends the run behind a checkpoint.

    Raises:
        DataError: The task has fewer instructions than one rollout has episodes.
        NumericsError: A gradient is not finite.
        RewardError: Rewards cannot be trusted.
        CheckpointError: A checkpoint cannot be read or written.
    """
    _check_size(len(env.task), config.episodes_per_update)
    config = config.with_micro_batch_size(policy.device.type)
    resume = None
    if resume_from is not None:
        resume = read_checkpoint(resume_from)
        training_state.check_compatible(resume, config)
        if resume.state["progress"]["update"] >= config.num_updates:
            training_state.load_weights(policy, resume)
            return _conclude(
                policy, Progress(**resume.state["progress"]), "finished", checkpoint_dir
            )
    hooks = Hooks(on_update, evaluate, best_metric, should_stop)
    trainer = PPOTrainer(
        policy, env, config, seed=seed, hooks=hooks, checkpoint_dir=checkpoint_dir, resume=resume
    )
    trainer.train()
    return _conclude(policy, trainer.progress, trainer.stopped, checkpoint_dir)


def _check_size(num_instructions: int, episodes_per_update: int) -> None:
    """Refuses a task that would not fill one rollout; TRL would run 0 steps and report success."""
    if num_instructions < episodes_per_update:
        raise DataError(
            f"the training split has {num_instructions} instructions, fewer than the "
            f"ppo.episodes_per_update = {episodes_per_update} of one rollout. Add data or lower "
            "that setting."
        )


def _conclude(
    policy: CausalLMPolicy, progress: Progress, stopped: Stopped, checkpoint_dir: Path | None
) -> TrainingResult:
    """Leaves the best weights in the policy, where they are known and the run is over."""
    best = progress.best_update or progress.update
    if best != progress.update and checkpoint_dir is not None and stopped != "interrupted":
        training_state.load_weights(policy, read_checkpoint(checkpoint_path(checkpoint_dir, best)))
    policy.sync()
    return TrainingResult(progress.update, best, progress.best_score, stopped)

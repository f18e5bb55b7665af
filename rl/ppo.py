"""PPO for language-model policies, on rollouts of an instruction environment.

One update, from top to bottom: collect a rollout, pass over it once without gradient, estimate
advantages, then a few epochs of clipped updates on reshuffled minibatches, and report.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import NumericsError
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.critic import Critic, make_critic
from instructrec.policies.trunk import Trunk
from instructrec.processes import agree_any, broadcast, on_main, together, world_size
from instructrec.rl import reporting, training_state
from instructrec.rl.adaptive import AdaptiveCoefficient
from instructrec.rl.checkpoint import Snapshot
from instructrec.rl.config import PPOConfig
from instructrec.rl.estimation import estimate_advantages
from instructrec.rl.experience import minibatches, tensors_of, trainer_pass
from instructrec.rl.losses import LossSettings, ppo_loss
from instructrec.rl.monitors import Alarm, Monitors
from instructrec.rl.prompt_filter import make_filter
from instructrec.rl.reference import make_reference
from instructrec.rl.reuse import DecodingReuse
from instructrec.rl.rollout import collect, instruction_order, rewarded_by
from instructrec.rl.run_state import Clock, Hooks, OnUpdate, Progress, Stopped, TrainingResult
from instructrec.rl.sharing import (
    check_same_task,
    check_sharing,
    own_rows,
    seed_own_draws,
    share_start,
)
from instructrec.rl.speed import Speedometer
from instructrec.rl.trl_bridge import RolloutTrainer, trl_settings


class PPOTrainer(RolloutTrainer):
    """Proximal policy optimisation on rollouts of an instruction environment.

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
        self.monitors = Monitors(config)
        self.shuffler = seed_own_draws(policy, seed)
        with tempfile.TemporaryDirectory() as unused_dir:
            settings = trl_settings(
                config,
                micro_batch_size=config.micro_batch_size,
                seed=seed,
                num_updates=config.num_updates - self.progress.update,
                device=policy.device,
                output_dir=Path(unused_dir),
            )
        critic = together(lambda: self.make_critic(policy, config))  # may read a model
        share_start(policy, [policy.model, critic])
        per_update = config.episodes_per_update // config.num_generations
        first, last = self.progress.update * per_update, config.num_updates * per_update
        order = [
            index
            for index in instruction_order(len(env.task), seed, first, last)
            for _ in range(config.num_generations)
        ]
        self.trunk = Trunk(policy.model)
        self.reference = (
            make_reference(policy, self.trunk, config.temperature) if config.kl_coef else None
        )
        super().__init__(policy, critic, order, config, settings)
        self.speedometer = Speedometer(policy, self.trunk, config)
        self.prompt_filter = make_filter(env.task, seed, config)
        self.reuse = DecodingReuse(policy, self.trunk, wanted=config.reuse_decoding)
        self.kl_weight = AdaptiveCoefficient(config.kl_coef, config.kl_target, config.kl_horizon)
        self.entropy_weight = AdaptiveCoefficient(
            config.entropy_coef,
            config.entropy_target,
            is_bonus=True,
            most=config.entropy_coef_max if config.entropy_target else math.inf,
        )

    def make_critic(self, policy: CausalLMPolicy, config: PPOConfig) -> Critic:
        """The critic that the settings ask for."""
        return make_critic(
            policy, config.critic, detach=config.critic_detach, source=config.critic_model
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
        clock = Clock()
        self.stats, self.grad_norms, self.steps_taken = reporting.LossStats(), [], 0

        # Step 1: the current policy answers one instruction per episode; one call scores them all.
        self.policy.sync()
        self.rows = own_rows(config.episodes_per_update)
        if self.prompt_filter is not None:
            chosen = self.prompt_filter.choose(config.episodes_per_update, config.num_generations)
            indices = chosen[self.rows.start : self.rows.stop]
        rewards = self.env.reward.at_update(self.progress.update + 1)
        with rewarded_by(self.env, rewards), self.reuse.keeping():
            self.rollout = collect(self.policy, self.env, indices, config)
        self.weights = rewards.weights
        if self.prompt_filter is not None:
            # Raw: normalised within a batch or a group, all instructions would seem alike.
            self.prompt_filter.observe(chosen, self.rollout.totals.tolist())
        assert self.rollout.rewards is not None
        score_seconds = sum(self.rollout.rewards.seconds[name] for name in rewards.names)
        clock.lap("time/rollout_s")

        # Step 2: log-probs, values and reference log-probs before the first step.
        self.experience = tensors_of(self.rollout, self.policy.device, self.rows.start)
        self.reuse.begin(self.experience)
        self.rollout.states = []  # large, and the experience has them
        entropy = trainer_pass(
            self.experience,
            self.trunk,
            self.critic,
            self.reference,
            self.rows,
            temperature=config.temperature,
            micro_batch_size=config.micro_batch_size,
            autocast=self.policy.autocast(),
        )

        # Step 3: rewards per token, returns, advantages.
        self.loss_settings = self._loss_settings()
        self.minibatch = reporting.LossStats()
        self.stopped_early = False
        self.metrics = {"ppo/entropy": entropy, **self.estimate()}
        clock.lap("time/advantage_s")
        clock.laps["time/rollout_s"] -= score_seconds
        clock.laps["time/score_s"] = score_seconds
        self.clock = clock

        # Step 4: epochs of clipped updates, reshuffled each time.
        self.normaliser = self.weighted_tokens() / config.num_mini_batches
        for _ in range(config.num_ppo_epochs):
            yield from minibatches(
                self.experience,
                self.rows,
                config.num_mini_batches,
                config.micro_batch_size,
                self.shuffler,
            )

    def micro_batch_loss(self, micro_batch: list[int]) -> Tensor:
        """Loss of the given episodes: one forward for policy, value and entropy."""
        rows = self.trained_rows(micro_batch)
        if self.stopped_early or not rows:
            return torch.zeros((), device=self.policy.device, requires_grad=True)
        packed = self.experience.pack(rows)
        cut = self.experience.cut(rows)
        trains_policy = self.progress.update >= self.config.critic_warmup_updates
        with self.policy.autocast():
            with torch.set_grad_enabled(trains_policy):
                if cut is not None:
                    hidden_BSH = self.trunk.upper(cut)
                else:
                    hidden_BSH, _ = self.trunk.full(packed.ids_BL, packed.shared)
                states_NH = packed.states(hidden_BSH)
                logprobs_N, entropy_N = self.trunk.token_logprobs(
                    states_NH,
                    packed.tokens_N,
                    self.config.temperature,
                    entropy_gradient=self.loss_settings.entropy_coef > 0,
                )
            values_N = self.critic(states_NH, packed.ids_BL, packed.row_N, packed.position_N)
        if not self.steps_taken:
            self.reuse.compare(self.experience, rows, logprobs_N)
        loss, stats = self.loss(rows, logprobs_N, values_N, entropy_N)
        self.minibatch.add(stats)
        return loss

    def may_step(self) -> bool:
        """Stops the update, before the step, once the policy is too far from the rollout's."""
        minibatch, self.minibatch = self.minibatch.over_processes(), reporting.LossStats()
        self.stats.add(minibatch.sums)
        may_step = self.is_worth_a_step(minibatch)
        self.steps_taken += may_step
        return may_step

    def end_update(self) -> bool:
        """Step 5: evaluate, checkpoint, report; returns whether training stops here."""
        self.clock.lap("time/update_s")
        self.progress.update += 1
        update, config = self.progress.update, self.config
        metrics = self._update_metrics()
        self._adapt(metrics)
        last = update == config.num_updates
        interrupted = agree_any(self.hooks.should_stop()) and not last
        if self.hooks.evaluate is not None and (
            last or (config.eval_every and update % config.eval_every == 0)
        ):
            self.policy.sync()
            evaluated = broadcast(on_main(self.hooks.evaluate))
            metrics |= evaluated or {}
            self.progress.note_score(self.hooks.score(metrics))
        patience = config.early_stopping_patience
        early = bool(patience) and self.progress.evaluations_without_gain >= patience
        alarms = self.monitors.check(metrics)
        broken = next((alarm for alarm in alarms if alarm.stops), None)
        is_best = self.progress.best_update == update
        saving = last or interrupted or early or is_best or broken is not None
        if saving or (config.save_every and update % config.save_every == 0):
            training_state.save(self)
        metrics["time/total_s"] = self.clock.total()
        on_main(lambda: self._report(metrics, alarms))
        if broken is not None:
            raise NumericsError(broken.message)
        if interrupted:
            self.stopped = "interrupted"
        elif early and not last:
            self.stopped = "early_stopping"
        return interrupted or early

    # What another way to learn from the same rollouts replaces ---------------------------------

    def estimate(self) -> dict[str, float]:
        """Fills in what the loss needs of the rollout; returns the metrics of this step."""
        return {
            **estimate_advantages(self.experience, self.config, self.kl_weight.coef),
            **reporting.kl_metrics(self.experience, self.kl_weight.coef),
        }

    def is_worth_a_step(self, minibatch: reporting.LossStats) -> bool:
        """Whether to step with the gradient of a minibatch, whose sums over the loss these are."""
        target = self.config.target_kl
        self.stopped_early |= target is not None and minibatch.approx_kl() > target
        return not self.stopped_early

    def weighted_tokens(self) -> float:
        """Action tokens behind one epoch, by which losses are divided."""
        return self.experience.num_tokens

    def trained_rows(self, micro_batch: list[int]) -> list[int]:
        """Those of the given episodes that the loss needs."""
        return micro_batch

    def loss(
        self, rows: list[int], logprobs_N: Tensor, values_N: Tensor, entropy_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the given episodes, and sums for the metrics (see ``ppo_loss``)."""
        batch = self.experience.loss_batch(rows)
        settings, normaliser = self.loss_settings, self.normaliser
        return ppo_loss(batch, logprobs_N, values_N, entropy_N, settings, normaliser)

    def loss_metrics(self) -> dict[str, float]:
        """The metrics of the losses of a whole update."""
        return self.stats.metrics(self.steps_taken + self.stopped_early)  # the refused one too

    # Helpers ----------------------------------------------------------------------------------

    def _loss_settings(self) -> LossSettings:
        config = self.config
        return LossSettings(
            cliprange=config.cliprange,
            cliprange_high=config.cliprange_high,
            cliprange_value=config.cliprange_value,
            vf_coef=config.vf_coef,
            dual_clip=config.dual_clip,
            entropy_coef=self.entropy_weight.coef,
            kl_coef=self.kl_weight.coef if config.kl_penalty == "loss" else 0.0,
        )

    def _adapt(self, metrics: dict[str, float]) -> None:
        """Steers the coefficients of the next update."""
        episodes = self.config.episodes_per_update
        if "ppo/kl_ref" in metrics:
            self.kl_weight.observe(metrics["ppo/kl_ref"], episodes)
        self.entropy_weight.observe(metrics["ppo/entropy"], episodes)

    def _update_metrics(self) -> dict[str, float]:
        config, update = self.config, self.progress.update
        laps = self.clock.laps
        return {
            "train/update": float(update),
            "train/global_step": float(update * config.steps_per_update),
            "train/episodes": float(update * config.episodes_per_update),
            **reporting.rollout_metrics(self.rollout, laps["time/rollout_s"]),
            **reporting.reward_metrics(self.rollout, self.weights),
            **self.metrics,
            **self.loss_metrics(),
            **self.reuse.end(),
            "ppo/skipped_frac": 1 - self.steps_taken / config.steps_per_update,
            **({"rollout/passed_over_frac": f.passed_over} if (f := self.prompt_filter) else {}),
            "ppo/entropy_coef": self.entropy_weight.coef,
            "ppo/lr": float(self.optimizer.param_groups[0]["lr"]),
            "ppo/grad_norm": reporting.mean_or_zero(self.grad_norms),
            **self.speedometer.metrics(self, laps),
            **laps,
        }

    def _report(self, metrics: dict[str, float], alarms: list[Alarm]) -> None:
        self.hooks.on_update(metrics, self.rollout.rows(self.progress.update))
        for alarm in alarms:
            self.hooks.on_warning(alarm.message)


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
    on_warning: Callable[[str], None] = lambda _: None,
    kind: type[PPOTrainer] = PPOTrainer,
) -> TrainingResult:
    """Trains a policy with PPO.

    Inside of ``instructrec.processes.joined`` several processes train one policy: all call this
    alike and end with the same weights; the main one alone evaluates, reports and writes.

    Args:
        policy: The policy as it starts, on a resumed run too: the KL reference is a copy of this
            state. It ends with the weights of the best evaluation when there are evaluations and
            a checkpoint folder, else with the last ones.
        env: Vector environment of this process's share of the episodes, autoreset DISABLED.
        config: Settings.
        seed: Seed of the instruction order and of the shuffles.
        on_update: Called after each update.
        evaluate: Scores the current policy; called every ``config.eval_every`` updates and after
            the last one.
        best_metric: The evaluation's key that chooses the best update (larger is better).
        checkpoint_dir: Where checkpoints go; None keeps none.
        resume_from: Checkpoint folder to continue from.
        should_stop: Asked after each update; True in any process ends the run behind a checkpoint.
        on_warning: Called with a sentence when something looks wrong.
        kind: The trainer; a subclass learns in another way from the same rollouts.

    Raises:
        ConfigError: The processes cannot share a rollout equally, or a reward keeps a state.
        DataError: The task is smaller than one rollout, or differs between the processes.
        NumericsError: A gradient is not finite, or a monitor stopped the run.
        RewardError: Rewards cannot be trusted.
        CheckpointError: A checkpoint cannot be read or written.
    """
    check_sharing(config, env.reward)
    check_same_task(env.task)
    config.check_task(len(env.task), env.task.columns)
    config = config.with_micro_batch_size(policy.device.type, env.max_turns, world_size())
    resume = training_state.read(resume_from, config) if resume_from is not None else None
    if resume is not None and resume.state["progress"]["update"] >= config.num_updates:
        training_state.load_weights(policy, resume)
        progress = Progress(**resume.state["progress"])
        return training_state.conclude(policy, progress, "finished", checkpoint_dir)
    hooks = Hooks(on_update, evaluate, best_metric, should_stop, on_warning)
    trainer = kind(
        policy, env, config, seed=seed, hooks=hooks, checkpoint_dir=checkpoint_dir, resume=resume
    )
    trainer.train()
    return training_state.conclude(policy, trainer.progress, trainer.stopped, checkpoint_dir)

"""PPO for language-model policies, on rollouts of an instruction environment.

One update, from top to bottom: collect a rollout, learn from it (`PPOLearner.update`), evaluate,
report, keep a checkpoint.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructrec.crash_points import crash_point
from instructrec.envs.vector import InstructionVectorEnv
from instructrec.errors import InstructRecError, NumericsError, ProcessError
from instructrec.faults import Fault, heard_by
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.processes import (
    agree_any,
    broadcast,
    from_main,
    on_main,
    together,
    world_size,
)
from instructrec.rl import evidence, reporting, steering, training_state
from instructrec.rl.checkpoint import Snapshot, checkpoint_path
from instructrec.rl.checkpoint_clock import CheckpointClock
from instructrec.rl.config import CHOSEN_AT_START, PPOConfig
from instructrec.rl.global_generators import global_states, set_global_states
from instructrec.rl.guards import check_finite
from instructrec.rl.learner import PPOLearner
from instructrec.rl.micro_batches import with_micro_batch
from instructrec.rl.monitor_config import check_gold
from instructrec.rl.monitors import Alarm, Monitors
from instructrec.rl.prompt_filter import make_filter
from instructrec.rl.rollout import collect, instruction_order, rewarded_by
from instructrec.rl.run_state import (
    Chooses,
    Clock,
    Hooks,
    OnAlarm,
    OnUpdate,
    Progress,
    ShouldPrune,
    Stopped,
    TrainingResult,
)
from instructrec.rl.sharing import check_same_task, check_shares, check_stateless, own_rows
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
        learner: What makes a better policy of a rollout.
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
        learner: type[PPOLearner] = PPOLearner,
    ) -> None:
        self.env, self.hooks, self.checkpoint_dir = env, hooks, checkpoint_dir
        self.progress = Progress(**resume.state["progress"]) if resume else Progress()
        self.stopped: Stopped = "finished"
        self.start_hash = policy.weights_hash()
        """Of the weights that the run starts from, on a resumed run too."""
        self.resumed_from: Snapshot | None = None
        """What the first update still has to put back."""
        self.save_clock = CheckpointClock(config.save_minutes)
        self.monitors = Monitors(config)
        self.learner = learner(policy, config, seed=seed)
        self.speedometer = Speedometer(policy, self.learner.trunk, config)
        self.prompt_filter = make_filter(env.task, seed, config)
        per_update = config.episodes_per_update // config.num_generations
        first, last = self.progress.update * per_update, config.num_updates * per_update
        order = [
            index
            for index in instruction_order(len(env.task), seed, first, last)
            for _ in range(config.num_generations)
        ]
        with tempfile.TemporaryDirectory() as unused_dir:
            settings = trl_settings(
                config,
                seed=seed,
                num_updates=config.num_updates - self.progress.update,
                device=policy.device,
                output_dir=Path(unused_dir),
            )
        super().__init__(policy, order, settings)
        self.config = config
        if resume is not None:
            training_state.restore(self, resume)

    def run_update(self, indices: list[int]) -> None:
        """Collects a rollout and learns from it."""
        clock = Clock()
        self.fault_counts: Counter[str] = Counter()
        training_state.restore_globals(self)
        with heard_by(self._count_fault):
            self._play_and_learn(indices, clock)

    def _count_fault(self, fault: Fault) -> None:
        self.fault_counts[fault.boundary] += fault.count

    def _play_and_learn(self, indices: list[int], clock: Clock) -> None:
        self.policy.sync()
        self._collect_or_keep(indices)
        self.progress.note_rollout(self.rollout)
        clock.lap("time/rollout_s")
        # The slowest process may be another one for each.
        clock.laps["time/score_s"] = min(self.rollout.scoring_s, clock.laps["time/rollout_s"])
        clock.laps["time/rollout_s"] -= clock.laps["time/score_s"]
        self.clock = clock
        stats = self.learner.update(self.rollout)
        crash_point("update.learned")
        clock.laps |= {name: value for name, value in stats.items() if name.startswith("time/")}
        self.progress.update += 1
        self.stats = stats

    def _collect_or_keep(self, indices: list[int]) -> None:
        """Collects a rollout; where that fails, keeps a checkpoint of the update before it."""
        before = (
            self.policy.generator_state(),
            deepcopy(self.env.reward.state_dict()),
            deepcopy(self.prompt_filter.state_dict()) if self.prompt_filter else {},
            global_states(),
        )
        try:
            self.collect(indices)
        except Exception as error:
            # What is an error of ours in one process is one in all, which is agreed upon before it
            # is raised. Another process that has gone, or met something else, keeps nothing.
            ours = isinstance(error, InstructRecError) and not isinstance(error, ProcessError)
            alike = ours or world_size() == 1
            if self.progress.update and alike and not from_main(self._is_kept):
                sampler, rewards, chosen, generators = before
                set_global_states(generators)
                self.policy.set_generator_state(sampler)
                self.env.reward.load_state_dict(rewards)
                if self.prompt_filter is not None:
                    self.prompt_filter.load_state_dict(chosen)
                # Neither broken weights nor a full disk may hide why the rollout failed.
                with suppress(InstructRecError, OSError):
                    self.keep_checkpoint()
            if isinstance(error, NumericsError):
                raise type(error)(f"update {self.progress.update + 1}: {error}") from error
            raise

    def _is_kept(self) -> bool:
        folder, update = self.checkpoint_dir, self.progress.update
        return folder is not None and checkpoint_path(folder, update).exists()

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint, by the number of the update or by the clock."""
        every = self.config.save_every
        by_clock = from_main(self.save_clock.is_due)
        return by_clock or bool(every and self.progress.update % every == 0)

    def keep_checkpoint(self) -> None:
        """Writes a checkpoint, unless there is something in the weights that is no number."""
        check_finite(self.learner.trained_weights(), "no checkpoint is written of them")
        with self.save_clock.saving():
            training_state.save(self)

    def collect(self, indices: list[int]) -> None:
        """Plays one episode for each instruction, or for those that the filter prefers.

        Args:
            indices: The instructions of this process whose turn it is.
        """
        config = self.config
        if self.prompt_filter is not None:
            chosen = self.prompt_filter.choose(config.episodes_per_update, config.num_generations)
            rows = own_rows(config.episodes_per_update)
            indices = chosen[rows.start : rows.stop]
        rewards = self.env.reward.at_update(self.progress.update + 1)
        with rewarded_by(self.env, rewards), self.learner.reuse.keeping():
            self.rollout = collect(self.policy, self.env, indices, config)
        self.weights = rewards.weights
        if self.prompt_filter is not None:
            # Raw: normalised within a batch or a group, all instructions would seem alike.
            self.prompt_filter.observe(chosen, self.rollout.totals.tolist())

    def end_update(self) -> bool:
        """Evaluates, reports, and keeps a checkpoint; returns whether training stops here."""
        update, config = self.progress.update, self.config
        metrics = self.update_metrics()
        last = update == config.num_updates
        interrupted = agree_any(self.hooks.should_stop()) and not last
        pruned = False
        if self.hooks.evaluate is not None and (
            last or (config.eval_every and update % config.eval_every == 0)
        ):
            self.policy.sync()
            metrics |= broadcast(together(self.hooks.evaluate))
            score = self.hooks.score(metrics)
            if score is not None:  # else its rewards have failed: that is no gain and no loss
                self.progress.note_score(score)
                pruned = agree_any(self.hooks.should_prune(update, metrics)) and not last
        patience = config.early_stopping_patience
        early = bool(patience) and self.progress.evaluations_without_gain >= patience
        alarms = [steering.act(alarm, self.learner) for alarm in self.monitors.check(metrics)]
        metrics["monitors/ringing"] = float(len(self.monitors.ringing))
        if self.learner.guard.gave_up:
            alarms.append(Alarm("numerics", self.learner.guard.diagnosis, "stop"))
        if self.learner.drift_gate.refused is not None:
            alarms.append(Alarm("broken_sampler", self.learner.drift_gate.diagnosis, "stop"))
        broken = next((alarm for alarm in alarms if alarm.stops), None)
        is_best = self.progress.best_update == update
        ends = interrupted or pruned or early
        saving = last or ends or is_best or broken is not None
        metrics["time/total_s"] = self.clock.total()
        # First what happened, then the checkpoint: what is recorded behind one is done again, but
        # nothing would write what is missing before one.
        on_main(lambda: self._report(metrics, alarms))
        crash_point("update.reported")
        if self._is_due() or saving:
            self.keep_checkpoint()
        if broken is not None:
            raise NumericsError(broken.message)
        if interrupted:
            self.stopped = "interrupted"
        elif pruned:
            self.stopped = "pruned"
        elif early and not last:
            self.stopped = "early_stopping"
        return ends

    def update_metrics(self) -> dict[str, float]:
        """The metrics of the update that has just ended."""
        config, update, laps = self.config, self.progress.update, self.clock.laps
        return {
            "train/update": float(update),
            "train/global_step": float(self.learner.scheduler.last_epoch),
            "train/episodes": float(update * config.episodes_per_update),
            **reporting.rollout_metrics(self.rollout, laps["time/rollout_s"]),
            **reporting.reward_metrics(self.rollout, self.weights),
            **reporting.task_metrics(self.rollout),
            **self.stats,
            "faults/reward": float(self.fault_counts["reward"]),
            "faults/memory": float(self.fault_counts["memory"]),
            **(self.prompt_filter.metrics() if self.prompt_filter else {}),
            **self.speedometer.metrics(self.learner, laps),
            **laps,
        }

    def _report(self, metrics: dict[str, float], alarms: list[Alarm]) -> None:
        numbers = reporting.episode_numbers(self.learner.experience)
        rows = self.rollout.rows(self.progress.update)
        rows = [a | b for a, b in zip(rows, numbers, strict=True)]
        self.hooks.on_update(metrics, rows)
        for alarm in alarms:
            shown = evidence.rows_that_show(alarm.name, self.rollout, rows, self.config.monitors)
            self.hooks.on_alarm(replace(alarm, samples=shown))


def train_ppo(
    policy: CausalLMPolicy,
    env: InstructionVectorEnv,
    config: PPOConfig,
    *,
    seed: int,
    on_update: OnUpdate,
    evaluate: Callable[[], dict[str, float]] | None = None,
    best_metric: Chooses = "eval/total/mean",
    checkpoint_dir: Path | None = None,
    resume_from: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_alarm: OnAlarm = lambda _: None,
    should_prune: ShouldPrune = lambda update, metrics: False,
    learner: type[PPOLearner] = PPOLearner,
    allow_change: Sequence[str] = (),
) -> TrainingResult:
    """Trains a policy with PPO.

    Inside of ``instructrec.processes.joined`` several processes train one policy: all call this
    alike and end with the same weights; the main one alone reports and writes.

    Args:
        policy: The policy as it starts, on a resumed run too: the KL reference is a copy of this
            state. It ends with the weights of the best evaluation when there are evaluations and
            a checkpoint folder, else with the last ones.
        env: Vector environment of this process's share of the episodes, autoreset DISABLED.
        config: Settings.
        seed: Seed of the instruction order and of the shuffles.
        on_update: Called after each update.
        evaluate: Scores the current policy; called every ``config.eval_every`` updates and after
            the last one, in every process; what it returns in the main one counts.
        best_metric: The evaluation's key that chooses the best update (larger is better), or a
            function of all metrics of an evaluated update.
        checkpoint_dir: Where checkpoints go; None keeps none.
        resume_from: Checkpoint folder to continue from.
        should_stop: Asked after each update; True in any process ends the run behind a checkpoint.
        on_alarm: Called when a monitor sees that something looks wrong, after ``on_update``.
        should_prune: Asked after each evaluation; True in any process ends the run there.
        learner: What learns; a subclass learns in another way from the same rollouts.
        allow_change: What may differ from the checkpoint: settings (``ppo.learning_rate``),
            ``data``, ``weights``, ``versions``.

    Raises:
        ConfigError: The processes cannot share a rollout equally, or a reward keeps a state.
        DataError: The task is smaller than one rollout, or differs between the processes.
        NumericsError: Too many steps had no finite gradient, weights are not finite, or a monitor
            stopped the run.
        RewardError: Rewards cannot be trusted.
        CheckpointError: A checkpoint cannot be read or written.
    """
    resume = training_state.read(resume_from, policy, config, env.task, allow_change)
    config = _resolved(policy, env, config, resume)
    if resume is not None and (ended := training_state.ended(resume, config)):
        return training_state.take_result(policy, resume, ended, checkpoint_dir)
    hooks = Hooks(on_update, evaluate, best_metric, should_stop, on_alarm, should_prune)
    own: dict[str, Any] = {"checkpoint_dir": checkpoint_dir, "resume": resume, "learner": learner}
    trainer = PPOTrainer(policy, env, config, seed=seed, hooks=hooks, **own)
    trainer.train()
    return training_state.conclude(policy, trainer.progress, trainer.stopped, checkpoint_dir)


def _resolved(
    policy: CausalLMPolicy, env: InstructionVectorEnv, config: PPOConfig, resume: Snapshot | None
) -> PPOConfig:
    """Checks the settings against environment and processes; fills in the micro-batch.

    That of the checkpoint, or one for this machine.
    """
    check_shares(config)
    check_stateless(env.reward)
    check_same_task(env.task)
    config.check_task(len(env.task), env.task.columns)
    check_gold(config.monitors, env.reward.names)
    if resume is not None and config.micro_batch_size is None:
        before = resume.state["config"]
        return replace(config, **{name: before[name] for name in CHOSEN_AT_START})
    return with_micro_batch(policy, config, env.max_turns)

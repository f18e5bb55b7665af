"""The update: what a policy learns from a rollout, as a step that can be called.

From top to bottom: pass over the rollout once without gradient, estimate advantages, then a few
epochs of clipped steps on reshuffled minibatches. Where rollouts come from, and when to stop, is
not known here: ``PPOTrainer`` runs on this step, and so can a loop of one's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from instructrec.crash_points import crash_point
from instructrec.errors import ConfigError, RewardError
from instructrec.phases import phase
from instructrec.policies.causal_lm import CausalLMPolicy
from instructrec.policies.critic import Critic, make_critic
from instructrec.policies.trunk import Trunk
from instructrec.processes import together
from instructrec.rl import reporting
from instructrec.rl.adaptive import Coefficients
from instructrec.rl.config import PPOConfig
from instructrec.rl.drift_gate import DriftGate
from instructrec.rl.estimation import estimate_advantages
from instructrec.rl.experience import minibatches, tensors_of, trainer_pass
from instructrec.rl.guards import MemoryGuard, StepGuard, enough_memory
from instructrec.rl.losses import LossSettings, ppo_loss
from instructrec.rl.micro_batches import MicroBatch, with_micro_batch
from instructrec.rl.optim import clip_gradients, go_to_step, make_optimizer, make_scheduler
from instructrec.rl.reference import make_reference
from instructrec.rl.reuse import DecodingReuse
from instructrec.rl.rollout import Rollout
from instructrec.rl.run_state import Clock
from instructrec.rl.sharing import (
    check_shares,
    own_rows,
    seed_own_draws,
    share_start,
    sum_gradients,
)
from instructrec.rl.trained import copy_into, trained_of


class PPOLearner:
    """Proximal policy optimisation, one rollout at a time.

    Example:
        A loop of one's own::

            learner = PPOLearner(policy, PPOConfig(episodes_per_update=16, num_mini_batches=1))
            while True:
                policy.sync()
                answers = policy.respond(prompts)
                rewards = score(answers.texts)
                stats = learner.update(
                    rollout_of(answers.prompt_ids, answers.response_ids, rewards)
                )

    What a rollout is made with is not known here: ``response_length``, ``stop_strings``,
    ``on_length``, ``prompt_filter`` and the limits on rewards have no effect. A rollout that is
    further than ``max_drift`` from the policy is not learned from: the update takes no step
    (``ppo/skipped_frac`` is 1).

    Args:
        policy: The policy; its trained weights change in place. Its state when the learner is
            made is the reference of the KL penalty.
        config: Settings. ``num_updates`` is where the learning-rate schedule ends.
        seed: Seed of the minibatch shuffles.

    Raises:
        PolicyError: The model cannot be trained, or a critic cannot be loaded.
        ConfigError: Several processes cannot share a rollout of this size.
    """

    def __init__(self, policy: CausalLMPolicy, config: PPOConfig, *, seed: int = 0) -> None:
        check_shares(config)
        self.policy = policy
        self.config = with_micro_batch(policy, config)
        self.updates = 0
        """Updates so far, those before a resume included."""
        self.shuffler = seed_own_draws(policy, seed)
        self.critic = together(self.make_critic)  # may read a model
        share_start(policy, [policy.model, self.critic])
        self.trunk = Trunk(policy.model)
        self.reference = make_reference(policy, self.trunk, config)
        self.optimizer = make_optimizer(*self.trained_parameters(), config, policy.device)
        self.scheduler = make_scheduler(self.optimizer, config)
        self.memory = MemoryGuard(MicroBatch.of(self.config))
        self.guard = StepGuard(config.max_bad_steps)
        self.reuse = DecodingReuse(policy, self.trunk, wanted=config.reuse_decoding)
        self.drift_gate = DriftGate(config.max_drift)
        self.coefficients = Coefficients(config)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Learns from a rollout.

        Args:
            rollout: ``config.episodes_per_update`` episodes of the policy as it is now, those of
                one instruction side by side; of several processes, the episodes of all.

        Returns:
            The metrics of the update: those under ``ppo/``, ``rollout/reused``, and the seconds of
            its two halves.

        Raises:
            ConfigError: The rollout has another size, or other groups.
            RewardError: No episode of it can be trained on.
            NumericsError: In the update before, too many steps in a row had a loss or gradient
                that is not finite. Such steps are left out and counted (``faults/numerics``).
            PolicyError: The memory does not hold a single episode.
        """
        config, clock = self.config, Clock()
        self._begin(rollout)
        # Step 1: log-probs, values and reference log-probs before the first step.
        entropy = self._pass_over()

        # Step 2: rewards per token, returns, advantages.
        metrics = {"ppo/entropy": entropy, **self.estimate()}
        self.drift = self.experience.drift()
        clock.lap("time/advantage_s")

        # Step 3: epochs of clipped steps, reshuffled each time.
        self.normaliser = self.weighted_tokens() / config.num_mini_batches
        for _ in range(config.num_ppo_epochs):
            parts = config.num_mini_batches
            for minibatch in minibatches(self.experience, self.rows, parts, self.shuffler):
                if not self.stopped_early:
                    self._learn(minibatch)
        clock.lap("time/update_s")
        self.updates += 1
        self.drift_gate.end(self.drift)
        self.experience.cut_states = {}  # large, and not needed any more
        metrics |= self._metrics()
        self._adapt(metrics)
        return {**metrics, **clock.laps}

    # What another way to learn from the same rollouts replaces ---------------------------------

    def make_critic(self) -> Critic:
        """The critic that the settings ask for."""
        config = self.config
        return make_critic(
            self.policy, config.critic, detach=config.critic_detach, source=config.critic_model
        )

    def estimate(self) -> dict[str, float]:
        """Fills in what the loss needs of the rollout; returns the metrics of this step."""
        return {
            **estimate_advantages(self.experience, self.config, self.coefficients.kl.coef),
            **reporting.kl_metrics(self.experience, self.coefficients.kl.coef),
        }

    def weighted_tokens(self) -> float:
        """Action tokens behind one epoch, by which losses are divided."""
        return self.experience.num_tokens

    def trained_rows(self, micro_batch: Sequence[int]) -> list[int]:
        """Those of the given episodes that the loss needs."""
        return list(micro_batch)

    def loss(
        self, rows: list[int], logprobs_N: Tensor, values_N: Tensor, entropy_N: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the given episodes, and sums for the metrics (see ``ppo_loss``)."""
        batch = self.experience.loss_batch(rows)
        settings, normaliser = self.loss_settings, self.normaliser
        return ppo_loss(batch, logprobs_N, values_N, entropy_N, settings, normaliser)

    def is_worth_a_step(self, minibatch: reporting.LossStats) -> bool:
        """Whether to step with the gradient of a minibatch, whose sums over the loss these are."""
        if not minibatch.sums.get("tokens"):
            return False  # momentum alone would move weights
        target = self.config.target_kl
        self.stopped_early |= target is not None and minibatch.approx_kl() > target
        return not self.stopped_early

    def loss_metrics(self) -> dict[str, float]:
        """The metrics of the losses of a whole update."""
        return self.stats.metrics()

    # The steps --------------------------------------------------------------------------------

    def _begin(self, rollout: Rollout) -> None:
        expected = self.config.episodes_per_update
        if len(rollout) != expected:
            raise ConfigError(
                f"the rollout has {len(rollout)} episodes: expected ppo.episodes_per_update = "
                f"{expected}. Collect as many, or make the learner with that number."
            )
        in_group = self.config.num_generations
        if any(count != in_group for count in Counter(rollout.groups).values()):
            raise ConfigError(
                f"the rollout has groups of {max(Counter(rollout.groups).values())} answers to one "
                f"instruction: expected ppo.num_generations = {in_group}. Give the same number to "
                "whoever makes the rollout."
            )
        if not any(rollout.kept):
            raise RewardError(
                "no episode of the rollout has a reward and is trained on: expected one at least. "
                "Check the rewards."
            )
        self.guard.begin()
        self.drift_gate.begin()
        self.rows = own_rows(expected)
        self.experience = tensors_of(rollout, self.policy.device, self.rows.start)
        self.reuse.begin(self.experience)
        rollout.states = []  # large, and the experience has them
        self.loss_settings = self._loss_settings()
        self.stats, self.grad_norms = reporting.LossStats(), list[float]()
        self.minibatch = reporting.LossStats()
        self.steps_taken, self.stopped_early = 0, False

    def _pass_over(self) -> float:
        work = partial(
            trainer_pass,
            self.experience,
            self.trunk,
            self.critic,
            self.reference,
            self.rows,
            temperature=self.config.temperature,
            autocast=self.policy.autocast,
        )
        return self.memory.run(lambda most: work(micro_batch=most), "pass over the rollout")

    def _learn(self, minibatch: list[int]) -> None:
        """Takes one step with the gradient of the given episodes, ordered by length."""
        self.memory.run(lambda most: self._gradient(minibatch, most), "training step")
        norm = self.clip()
        self.minibatch = self.minibatch.over_processes()
        if self._is_finite(norm) and self.may_step():
            with phase("optimizer"), enough_memory():
                self.optimizer.step()
            crash_point("update.stepped")
            self.scheduler.step()
            self.grad_norms.append(float(norm))
            self.steps_taken += 1
        self.optimizer.zero_grad()

    def _gradient(self, minibatch: list[int], most: MicroBatch) -> None:
        """Sums the gradient of the episodes in micro-batches; anew at each call."""
        self.minibatch = reporting.LossStats()
        if not self.steps_taken:
            self.reuse.forget()
        self.optimizer.zero_grad()  # an update that was broken off may have left some
        with self.policy.autocast():  # once for all, which casts each trained weight once
            for micro_batch in self.experience.micro_batches(minibatch, most):
                if rows := self.trained_rows(micro_batch):
                    loss = self.micro_batch_loss(rows)
                    with torch.autocast(self.policy.device.type, enabled=False):
                        loss.backward()

    def micro_batch_loss(self, rows: list[int]) -> Tensor:
        """Loss of the given episodes: one forward for policy, value and entropy.

        The losses of a minibatch's micro-batches add up to that of the minibatch.
        """
        packed = self.experience.pack(rows)
        cut = self.experience.cut(rows)
        trains_policy = self.updates >= self.config.critic_warmup_updates
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

    def clip(self) -> Tensor:
        """Sums the gradients over the processes and clips them; returns their norm before."""
        policy, critic = self.trained_parameters()
        sum_gradients([*policy, *critic])
        # A head that is no baseline learns beside the policy and has no say in its step.
        joint = self.config.critic == "shared" and self.config.advantage == "gae"
        return clip_gradients(policy, critic, self.config.max_grad_norm, joint=joint)

    def _is_finite(self, norm: Tensor) -> bool:
        allowed = self.guard.allows(norm, self.minibatch.sums, self.trained_weights)
        self.stopped_early |= self.guard.gave_up
        return allowed

    def may_step(self) -> bool:
        """Says whether to step with the gradient of a minibatch, by the sums of all processes."""
        self.stats.add_minibatch(self.minibatch)
        if not self.steps_taken:
            self.drift = self.reuse.measure() or self.drift
            if not self.drift_gate.allows(self.drift):
                self.stopped_early = True  # somebody else's responses
                return False
        return self.is_worth_a_step(self.minibatch)

    def trained_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The weights that train: the policy's, and the critic's."""
        policy, critic = trained_of(self.policy.model), trained_of(self.critic)
        return list(policy.values()), list(critic.values())

    def trained_weights(self) -> dict[str, nn.Parameter]:
        """The same by name."""
        named = {"policy": trained_of(self.policy.model), "critic": trained_of(self.critic)}
        return {f"{part}.{name}": p for part, own in named.items() for name, p in own.items()}

    # What it is made of ---------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that changes as it learns: weights, moments, schedule, coefficients, generators.

        As in PyTorch, tensors are those in use and not copies. Of several processes each has its
        own generators and guards; the rest is the same in all.
        """
        return {
            "updates": self.updates,
            "policy": trained_of(self.policy.model),
            "critic": trained_of(self.critic),
            "optimizer": self.optimizer.state_dict()["state"],
            "scheduler_step": self.scheduler.last_epoch,
            "coefficients": self.coefficients.state_dict(),
            "reuse": self.reuse.state_dict(),
            "guards": {
                "memory": self.memory.state_dict(),
                "steps": self.guard.state_dict(),
                "decode_share": self.policy.decode_share,
            },
            "drift_gate": self.drift_gate.state_dict(),
            "sampler": self.policy.generator_state(),
            "shuffler": self.shuffler.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what ``state_dict`` returned; learning goes on as if it had never stopped.

        The learner has to be made of the policy as it was at the start: the reference of the KL
        penalty is no part of the state.

        Raises:
            CheckpointError: It is of a learner that trains other weights.
        """
        copy_into(self.policy.model, state["policy"])
        copy_into(self.critic, state["critic"])
        self.policy.sync()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state["optimizer"]})
        self.coefficients.load_state_dict(state["coefficients"])
        go_to_step(self.scheduler, state["scheduler_step"], self.coefficients.learning_rate)
        self.updates = state["updates"]
        self.reuse.load_state_dict(state["reuse"])
        guards = state.get("guards", {})  # older states have none
        self.memory.load_state_dict(guards.get("memory", {}))
        self.guard.load_state_dict(guards.get("steps", {}))
        self.policy.decode_share = guards.get("decode_share", self.policy.decode_share)
        self.drift_gate.load_state_dict(state.get("drift_gate"))
        self.policy.set_generator_state(state["sampler"])
        self.shuffler.set_state(state["shuffler"])

    # Coefficients and metrics -------------------------------------------------------------------

    def _loss_settings(self) -> LossSettings:
        config = self.config
        return LossSettings(
            cliprange=config.cliprange,
            cliprange_high=config.cliprange_high,
            cliprange_value=config.cliprange_value,
            vf_coef=config.vf_coef,
            dual_clip=config.dual_clip,
            entropy_coef=self.coefficients.entropy.coef,
            kl_coef=self.coefficients.kl.coef if config.kl_penalty == "loss" else 0.0,
        )

    def _metrics(self) -> dict[str, float]:
        return {
            **self.loss_metrics(),
            **self.drift.metrics(),
            **self.reuse.end(),
            "faults/numerics": float(self.guard.left_out),
            "ppo/skipped_frac": 1 - self.steps_taken / self.config.steps_per_update,
            "ppo/entropy_coef": self.coefficients.entropy.coef,
            "ppo/lr": float(self.optimizer.param_groups[0]["lr"]),
            "ppo/grad_norm": reporting.mean_or_zero(self.grad_norms),
        }

    def _adapt(self, metrics: dict[str, Any]) -> None:
        """Steers the coefficients of the next update, once the policy moves."""
        if self.updates <= self.config.critic_warmup_updates:
            return
        self.coefficients.observe(metrics, self.config.episodes_per_update)

"""``instructrec train RECIPE --sanity``: can this setup learn anything at all?

A setup that cannot overfit a handful of prompts will not learn a whole task. So the policy trains
on a few instructions alone, with many responses to each, a higher learning rate and no
KL penalty, until its sampled responses get nearly the best reward there is. Where
it fails, the numbers of the updates name the likely cause. Nothing is written to the disk. The
first update says what the whole check takes at most.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from instructrec.envs.tasks.base import Instruction, Task
from instructrec.errors import ConfigError, DataError, InstructRecError, RewardError
from instructrec.experiments import demonstrations, setup_run, telling
from instructrec.experiments.config import TrainConfig
from instructrec.experiments.progress import format_duration
from instructrec.rewards.combine import CombinedReward
from instructrec.rl.config import PPOConfig
from instructrec.rl.config_rules import OF_THE_CRITIC
from instructrec.rl.monitor_config import MonitorsConfig

if TYPE_CHECKING:
    from instructrec.policies.causal_lm import CausalLMPolicy

INSTRUCTIONS = 8
"""Instructions to overfit."""
RESPONSES = 8
"""Responses to each in one update."""
UPDATES = 20
"""Most updates."""
HOPELESS = 5
"""Updates without any spread after which more of them would not help."""
UNCERTAIN = 1.0
"""Entropy in nats per token below which a policy has not fallen apart, however low it began."""
FASTER = 2.0
"""Learning rate, in multiples of the recipe's."""
NEARLY = 0.95
"""Share of the best reward that counts as learned."""
_LIMITS = MonitorsConfig()
"""Where the monitors of a run see trouble."""
_HOLDS_BACK = (
    *("micro_batch_size", "micro_batch_tokens", "lr_schedule", "warmup_steps", "target_kl"),
    *("curriculum", "curriculum_pass", "curriculum_window", "curriculum_raise", "curriculum_lower"),
    *("prompt_filter", "prompt_filter_floor", "kl_penalty", "kl_target", "kl_horizon"),
    *("eval_every", "save_every", "save_minutes", "early_stopping_patience", "monitors"),
)
"""Settings that are put to their defaults: they would slow a policy down, or do nothing here."""


class LastInstructions:
    """The last instructions of a task, as a task.

    The last, because a supervised warm start shows the first: those are solved already.

    Args:
        task: Where they come from.
        number: How many; all when the task has fewer.
    """

    def __init__(self, task: Task, number: int) -> None:
        self.task = task
        self.number = min(number, len(task))
        self.first = len(task) - self.number
        self.name, self.split, self.columns = task.name, task.split, task.columns

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> Instruction:
        """Returns an item of the task."""
        if not -self.number <= index < self.number:
            raise IndexError(f"index {index} of {self.number} instructions")
        return self.task[self.first + index % self.number]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the task's fingerprint and the number of instructions."""
        return hashlib.sha256(f"{self.task.fingerprint} {self.number}".encode()).hexdigest()


@dataclass(frozen=True)
class Look:
    """One update in numbers."""

    reward: float
    """Mean reward of the sampled responses."""
    best: float
    """Best reward that is known to be reachable, mean over the instructions."""
    flat: float
    """Share of the instructions whose responses all got the same reward."""
    entropy: float
    """Nats per token."""
    step: float
    """How far the update moved the policy, nats per token."""
    cut: float
    """Share of the responses that the token budget cut."""

    @property
    def reached(self) -> bool:
        """Whether the responses get nearly the best reward; never where all is alike and bad."""
        if self.flat == 1 and self.best <= 0:
            return False
        return self.reward >= self.best - (1 - NEARLY) * abs(self.best)


class _Over(Exception):
    """Ends the training at the update that decided it."""


def run_sanity(
    config: TrainConfig,
    *,
    load_policy: setup_run.LoadPolicy = setup_run.load,
    say: telling.Say = telling.say,
    max_updates: int = UPDATES,
) -> list[Look]:
    """Overfits a few instructions of the training split, the last ones.

    Args:
        config: The run, as for ``instructrec train``.
        load_policy: Makes the policy.
        say: Receives lines for people, one for each update.
        max_updates: Updates after which it has failed.

    Returns:
        What every update looked like; the last one reached the goal.

    Raises:
        ConfigError: It did not learn, and a setting is the likely cause; or there are no rewards
            in this run.
        RewardError: The rewards say nothing: no two responses to an instruction got different
            ones, be they bad or at full marks.
    """
    if config.supervised is not None:
        raise ConfigError(
            f"algorithm = {config.algorithm!r} with --sanity: the check looks whether the rewards "
            "can be learned, and supervised training has none. Leave --sanity out, or take a "
            "recipe of ppo."
        )
    config = config.resolved()
    materials = setup_run.make_materials(config)
    few = LastInstructions(materials.train, INSTRUCTIONS)
    ppo = easier(config.ppo, len(few), max_updates, config.algorithm)
    materials = dataclasses.replace(materials, train=few)
    config = dataclasses.replace(config, ppo=ppo)
    from instructrec.policies.labels import writer

    model = setup_run.model_folder(config.policy.model)
    settings = dataclasses.replace(config.policy, model=model)
    policy = writer(load_policy(settings, config.seed, config.eval_sampling), "train --sanity")
    say(
        f"overfitting {len(few)} instructions of {few.name} with {RESPONSES} responses each and "
        f"learning rate {ppo.learning_rate:g}, for at most {max_updates} updates"
    )
    looks = _overfit(config, materials, policy, say)
    if not _learned(looks):
        raise likely_cause(looks, ppo)
    say(
        f"sane: after {len(looks)} updates the sampled responses get {looks[-1].reward:.3f} of "
        f"{looks[-1].best:.3f}. Task, rewards, policy and trainer work together; whether the whole "
        "task can be learned is for `instructrec train` to find out."
        + (" (They were solved before the first step.)" if looks[0].reached else "")
    )
    return looks


def _overfit(
    config: TrainConfig,
    materials: setup_run.Materials,
    policy: CausalLMPolicy,
    say: telling.Say,
) -> list[Look]:
    """Trains until the goal is reached, or is out of reach."""
    best = reference_scores(materials.train, materials.reward)
    looks: list[Look] = []

    def on_update(metrics: dict[str, float], rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["total"] is not None:
                best[row["id"]] = max(best.get(row["id"], -math.inf), row["total"])
        looks.append(_look(metrics, best))
        cost = _cost(metrics["time/total_s"], config.ppo.num_updates) if len(looks) == 1 else ""
        say(_line(len(looks), looks[-1]) + cost)
        hopeless = len(looks) >= HOPELESS and not _any_spread(looks)
        if _learned(looks) or hopeless:
            raise _Over

    settled = materials.reward.at_update(math.inf)  # schedules are for longer runs
    env = setup_run.training_env(config, dataclasses.replace(materials, reward=settled))
    learn = setup_run.learner(config.algorithm)
    with contextlib.suppress(_Over):
        learn(policy, env, config.ppo, seed=config.seed, on_update=on_update)
    return looks


def easier(ppo: PPOConfig, instructions: int, max_updates: int, algorithm: str) -> PPOConfig:
    """The recipe's settings with more room to learn; its entropy bonus stays as strong as it was.

    Without the bonus, a policy that is quick to settle is soon sure of a wrong answer. With a
    bonus that grows with the learning rate, instructions that are solved leave it alone to decide,
    and the policy falls apart.
    """
    default = {field.name: field.default for field in dataclasses.fields(ppo)}
    freed: dict[str, Any] = {name: default[name] for name in _HOLDS_BACK}
    if algorithm != "raft":
        freed |= {name: default[name] for name in OF_THE_CRITIC} | {"advantage": "rloo"}
    return dataclasses.replace(
        ppo,
        num_updates=max_updates,
        episodes_per_update=instructions * RESPONSES,
        num_generations=RESPONSES,
        num_ppo_epochs=1,
        num_mini_batches=2,
        learning_rate=FASTER * ppo.learning_rate,
        entropy_coef=ppo.entropy_coef / FASTER,
        kl_coef=0.0,
        **freed,
    )


def reference_scores(task: Task, reward: CombinedReward) -> dict[str, float]:
    """Reward of each instruction's reference, by id; without those that have none or no score."""
    scores: dict[str, float] = {}
    for item in (task[i] for i in range(len(task))):
        try:
            text = demonstrations.answer(item)
        except DataError:
            continue
        columns = {name: [item.columns.get(name)] for name in task.columns}
        total = float(reward.score([item.prompt], [text], columns, None).total[0])
        if math.isfinite(total):
            scores[item.id] = total
    return scores


def _without_spread(looks: Sequence[Look], ppo: PPOConfig, failed: str, last: float) -> RewardError:
    """The error where no two responses to one instruction ever got different rewards."""
    now = looks[-1]
    if now.reached:
        return RewardError(
            "this check shows nothing: no two responses to the same instruction got different "
            f"rewards in {len(looks)} updates, and all are already at full marks ({last:.3f} of "
            f"{now.best:.3f}). Either the policy solves these instructions already (take a harder "
            "task, or another start), or the reward does not look at the response (give two "
            "different ones to `instructrec rewards score`)."
        )
    return RewardError(
        f"{failed}no two responses to the same instruction got different rewards in "
        f"{len(looks)} updates (the mean was {last:.3f}, {now.cut:.0%} of the responses were "
        f"cut at ppo.response_length = {ppo.response_length}): there is nothing to learn from. "
        "Start from a supervised warm start (`instructrec sft`), or ease the reward; "
        "`instructrec probe` shows responses beside their references."
    )


def likely_cause(looks: Sequence[Look], ppo: PPOConfig) -> InstructRecError:
    """The error that says why a policy did not overfit, from what its updates looked like."""
    first = statistics.fmean([look.reward for look in looks[:2]])
    last = statistics.fmean([look.reward for look in looks[-3:]])
    room, now = looks[-1].best - first, looks[-1]
    failed = f"the policy did not overfit {INSTRUCTIONS} instructions: "
    course = f"the reward went from {first:.3f} to {last:.3f} of {now.best:.3f}"
    if not _any_spread(looks):
        return _without_spread(looks, ppo, failed, last)
    if now.entropy > max(_LIMITS.entropy_explosion.limit * looks[0].entropy, UNCERTAIN):
        return ConfigError(
            f"{failed}{course}, while the entropy rose from {looks[0].entropy:.3f} to "
            f"{now.entropy:.3f} nats per token: the policy fell apart. Lower ppo.entropy_coef or "
            "ppo.learning_rate."
        )
    if now.cut > 0.5:
        return ConfigError(
            f"{failed}{course}, and {now.cut:.0%} of the responses were cut at "
            f"ppo.response_length = {ppo.response_length}, so the reward judges unfinished text. "
            "Raise it, or set ppo.stop_strings."
        )
    if last < first - 0.05 * room:
        too_far = max(look.step for look in looks) > _LIMITS.large_step.limit
        why = (
            f"single updates moved the policy by up to {max(look.step for look in looks):.2f} nats "
            "per token: lower ppo.learning_rate"
            if too_far
            else "the steps were small, so look at the sign of the rewards' weights, and whether a "
            "reward gives the same response the same score every time"
        )
        return ConfigError(f"{failed}{course}: it fell. Likely cause: {why}.")
    if now.entropy < _LIMITS.entropy_collapse.limit * looks[0].entropy:
        return ConfigError(
            f"{failed}{course}, and the entropy collapsed from {looks[0].entropy:.3f} to "
            f"{now.entropy:.3f} nats per token: the policy settled on responses that are not the "
            "best and tries nothing new. Lower ppo.learning_rate, raise ppo.temperature, or start "
            "from a policy that sometimes gives the best response to each instruction."
        )
    if last > first + 0.1 * room:
        return ConfigError(
            f"{failed}{course}: it rises, but slowly. Likely cause: a low ppo.learning_rate (here "
            f"{FASTER:g} x {ppo.learning_rate / FASTER:g}); raise it."
        )
    return ConfigError(
        f"{failed}{course}: it did not move although responses got different rewards. Likely "
        f"cause: a far too low ppo.learning_rate (here {FASTER:g} x {ppo.learning_rate / FASTER:g}"
        "), or a reward that gives the same response another score every time."
    )


def _learned(looks: Sequence[Look]) -> bool:
    """Whether the goal is reached by a policy that has taken steps: not by the untouched one.

    Nor by one that nothing could be learned from: where all responses get the same, full marks say
    nothing of the reward, which may not look at the response at all.
    """
    return len(looks) > 1 and looks[-1].reached and _any_spread(looks)


def _any_spread(looks: Sequence[Look]) -> bool:
    """Whether two responses to one instruction ever got different rewards."""
    return any(look.flat < 1 for look in looks)


def _look(metrics: dict[str, float], best: dict[str, float]) -> Look:
    return Look(
        reward=metrics["reward/total/mean"],
        best=statistics.fmean(list(best.values())),
        flat=metrics["rollout/zero_variance_frac"],
        entropy=metrics["ppo/entropy"],
        step=metrics["ppo/approx_kl"],
        cut=metrics["rollout/truncated_frac"],
    )


def _cost(seconds: float, updates: int) -> str:
    """What the check takes at most, by its first update."""
    whole = format_duration(seconds * updates)
    return f"   {seconds:.1f} s; {updates} updates about {whole}"


def _line(update: int, look: Look) -> str:
    return (
        f"update {update:>3}   reward {look.reward:.3f} of {look.best:.3f}   "
        f"no spread {look.flat:>4.0%}   entropy {look.entropy:.3f}   step {look.step:.3f}   "
        f"cut {look.cut:>4.0%}"
    )

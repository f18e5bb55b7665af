"""Monitors: what the numbers of an update say about the health of the run.

Each monitor is one function from the metrics (and a little memory) to a sentence that says what is
wrong and what to do, or to nothing. A monitor speaks once and is quiet until its trouble was over
in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from instructrec.rl.config import PPOConfig

LARGE_STEP = 0.1
"""Nats per token (k3) between the rollout's policy and the updated one."""
FAR_FROM_REFERENCE = 0.5
"""Nats per token (k1) from the reference."""
ENTROPY_COLLAPSE = 0.1
"""Share of the first update's entropy."""
ENTROPY_EXPLOSION = 3.0
"""Multiple of the first update's entropy."""
MANY_CUT = 0.5
"""Share of the responses cut by response_length, and of the episodes left out of training."""
DRIFT = 0.05
"""Nats per token between sampler and trainer; bfloat16 decoding alone stays below 0.02."""
NO_VARIANCE = 0.9
"""Share of the prompts whose responses all got the same return."""
LONGER = 2.0
"""Multiple of the first update's mean length."""
SHORTER = 0.25
"""Share of the first update's mean length."""
PATIENCE = 10
"""Updates in a row without a critic, or without any spread of the reward."""


@dataclass(frozen=True)
class Alarm:
    """Something that a monitor saw."""

    name: str
    """Name of the monitor."""
    message: str
    """What was seen and what to do."""
    stops: bool = False
    """Whether the run cannot go on."""


@dataclass
class Memory:
    """What the monitors remember; part of a checkpoint."""

    first_entropy: float | None = None
    """Entropy of the first update, nats per token."""
    first_length: float | None = None
    """Mean length of the responses of the first update, tokens."""
    updates_without_critic: int = 0
    """Updates in a row in which the critic explained nothing."""
    updates_without_spread: int = 0
    """Updates in a row in which all rewards were equal."""
    ringing: list[str] = field(default_factory=list)
    """Monitors whose trouble is not over yet."""
    lasting: dict[str, int] = field(default_factory=dict)
    """Updates in a row with the trouble of a monitor that may end the run."""


class Monitors:
    """Watches a run.

    Args:
        config: The settings of the run, which decide what is trouble.
    """

    def __init__(self, config: PPOConfig) -> None:
        self.config = config
        self.memory = Memory()

    def check(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Looks at the metrics of an update; returns the alarms that are new."""
        self._remember(metrics)
        found = {name: monitor(self, metrics) for name, monitor in _MONITORS.items()}
        ringing = [name for name, message in found.items() if message]
        new = [name for name in ringing if name not in self.memory.ringing]
        self.memory.ringing = ringing
        alarms = [Alarm(name, found[name] or "") for name in new]
        alarms += self._lasting(found)
        limit, drift = self.config.max_drift, metrics["ppo/drift_mean"]
        if not drift <= limit:
            alarms.append(Alarm("broken_sampler", _broken_sampler(drift, limit), stops=True))
        return alarms

    def _lasting(self, found: Mapping[str, str | None]) -> list[Alarm]:
        """Alarms that end the run: of the monitors that may, the trouble lasts too long."""
        config, memory = self.config, self.memory
        memory.lasting = {
            name: memory.lasting.get(name, 0) + 1 for name in config.stop_on if found[name]
        }
        return [
            Alarm(
                name,
                f"{found[name]} It lasts for {updates} updates, and ppo.stop_on holds {name!r}. A "
                "checkpoint was written; --resume with another ppo.stop_on goes on.",
                stops=True,
            )
            for name, updates in memory.lasting.items()
            if updates >= config.stop_after
        ]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to carry."""
        return dict(vars(self.memory))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what a checkpoint carried."""
        self.memory = Memory(**state)

    def _remember(self, metrics: Mapping[str, float]) -> None:
        memory = self.memory
        if memory.first_entropy is None:
            memory.first_entropy = metrics["ppo/entropy"]
            memory.first_length = metrics["rollout/response_len"]
        idle = self.config.advantage == "gae" and metrics.get("ppo/critic_used") == 0
        memory.updates_without_critic = memory.updates_without_critic + 1 if idle else 0
        flat = metrics["reward/total/std"] == 0
        memory.updates_without_spread = memory.updates_without_spread + 1 if flat else 0


def _large_step(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    kl = metrics["ppo/approx_kl"]
    if kl <= LARGE_STEP:
        return None
    return (
        f"one update moved the policy by {kl:.2f} nats per token (ppo/approx_kl), so most of the "
        "rollout no longer says anything about it. Lower ppo.learning_rate or "
        "ppo.num_ppo_epochs, or set ppo.target_kl."
    )


def _far_from_reference(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    if "ppo/kl_ref" not in metrics:
        return None
    kl = metrics["ppo/kl_ref"] / max(metrics["rollout/response_len"], 1.0)
    if abs(kl) <= FAR_FROM_REFERENCE:
        return None
    if kl < 0:
        return (
            f"the KL to the reference is {kl:.2f} nats per token, below 0 by more than noise: the "
            "responses were not drawn from the policy that is trained. Look at ppo/drift_mean."
        )
    return (
        f"the policy is {kl:.2f} nats per token away from the reference: expect text that only "
        "the reward likes. Raise ppo.kl_coef, or set ppo.kl_target."
    )


def _entropy(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    first, now = monitors.memory.first_entropy or 0.0, metrics["ppo/entropy"]
    if now < ENTROPY_COLLAPSE * first:
        return (
            f"the entropy fell from {first:.3f} to {now:.3f} nats per token: the policy hardly "
            "tries anything new. Set ppo.entropy_coef (with ppo.entropy_target), lower "
            "ppo.learning_rate, or stop here if the reward is high enough."
        )
    if first > 0 and now > ENTROPY_EXPLOSION * first:
        return (
            f"the entropy rose from {first:.3f} to {now:.3f} nats per token: the policy is falling "
            "apart. Lower ppo.learning_rate or ppo.entropy_coef, or raise ppo.kl_coef."
        )
    return None


def _length(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    first, now = monitors.memory.first_length, metrics["rollout/response_len"]
    if not first or SHORTER * first <= now <= LONGER * first:
        return None
    change, suspicion = (
        ("grew", "pays for length") if now > first else ("shrank", "pays for brevity")
    )
    return (
        f"the mean response {change} from {first:.1f} to {now:.1f} tokens: read "
        f"samples.jsonl of the run. Unless the task asks for that, the reward {suspicion} by "
        "itself: add a length reward to balance it, or raise ppo.kl_coef."
    )


def _cut_responses(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    share = metrics["rollout/truncated_frac"]
    if share <= MANY_CUT:
        return None
    return (
        f"{share:.0%} of the responses were cut at ppo.response_length = "
        f"{monitors.config.response_length}, so the reward judges unfinished text. Raise it, set "
        "ppo.stop_strings, or let ppo.on_length = 'penalty' teach the policy to end."
    )


def _left_out(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    share = metrics["rollout/masked_frac"]
    if share <= MANY_CUT:
        return None
    return (
        f"{share:.0%} of the episodes were left out of the training (no usable reward, or cut "
        "under ppo.on_length = 'mask'). See reward/<name>/error_frac and na_frac."
    )


def _drift(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    drift = metrics["ppo/drift_mean"]
    if drift <= DRIFT:
        return None
    return (
        f"sampler and trainer disagree by {drift:.3f} nats per token (ppo/drift_mean); lower "
        "precision alone explains up to 0.02. Try policy.dtype = 'float32' to see whether it is "
        "the precision."
    )


def _broken_sampler(drift: float, limit: float) -> str:
    return (
        f"sampler and trainer disagree by {drift:.3f} nats per token, more than ppo.max_drift = "
        f"{limit}: the responses were not drawn from the policy that is trained (another "
        "temperature, other weights). Nothing was learned from them. A checkpoint was written. Use "
        "policy.dtype = 'float32' to see whether it is the precision, else look at the decoder; "
        "raise ppo.max_drift only if so much drift is meant to be."
    )


def _idle_critic(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    idle = monitors.memory.updates_without_critic
    if idle < PATIENCE:
        return None
    return (
        f"the critic has explained nothing of the returns for {idle} updates in a row "
        "(ppo/explained_variance); the mean return of the batch stands in for it, which costs "
        "little: leave it so, or give the critic more to learn with: ppo.critic_warmup_updates, "
        "ppo.critic_detach = false, another ppo.critic_learning_rate."
    )


def _no_spread(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    flat = monitors.memory.updates_without_spread
    if flat < PATIENCE:
        return None
    return (
        f"all rewards of a rollout were equal for {flat} updates in a row "
        f"({metrics['reward/total/mean']:g}): there is nothing to learn from. `instructrec probe` "
        "shows what the policy gets before training; a supervised warm start or an easier reward "
        "helps a policy that never succeeds."
    )


def _no_variance(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    share = metrics.get("rollout/zero_variance_frac", 0.0)
    if share <= NO_VARIANCE:
        return None
    return (
        f"on {share:.0%} of the prompts all responses got the same return, and those teach "
        "nothing. Raise ppo.num_generations, or take prompts that the policy sometimes solves."
    )


def _nothing_kept(monitors: Monitors, metrics: Mapping[str, float]) -> str | None:
    if metrics.get("raft/kept_frac", 1.0) > 0:
        return None
    return (
        "no response of the rollout was better than the others to its prompt, so there was nothing "
        "to imitate and the update took no step. Raise ppo.num_generations or ppo.temperature, "
        "take prompts that the policy sometimes solves, or start from a supervised warm start."
    )


_MONITORS: dict[str, Callable[[Monitors, Mapping[str, float]], str | None]] = {
    "large_step": _large_step,
    "far_from_reference": _far_from_reference,
    "entropy": _entropy,
    "length": _length,
    "cut_responses": _cut_responses,
    "left_out": _left_out,
    "drift": _drift,
    "idle_critic": _idle_critic,
    "no_spread": _no_spread,
    "no_variance": _no_variance,
    "nothing_kept": _nothing_kept,
}

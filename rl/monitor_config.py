"""What monitors watch for and what they do: plain frozen dataclasses, no torch and no TRL.

The string under each field is its help text on the command line; ``docs/monitors.md`` says what
chose the defaults.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from instructrec.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from instructrec.rl.config import PPOConfig

Action = Literal["ignore", "warn", "stop", "lower_lr", "raise_kl"]
"""What a monitor does: nothing, speak, or speak and then end the run, lower the learning rate of
the policy, or raise the KL coefficient."""

STEERS = ("lower_lr", "raise_kl")
"""Actions that change the updates that follow."""
OF_THE_REFERENCE = ("far_from_reference", "kl_budget")
"""Monitors that watch the KL to the reference."""
OF_THE_CLOCK = ("slow_reward",)
"""Monitors that watch times: another machine, or another process of the run, sees others, so what
they see changes nothing."""


@dataclass(frozen=True)
class MonitorRule:
    """When a monitor sees trouble, and what happens then."""

    threshold: float | None = None
    """Where trouble begins, in the unit of what the monitor watches; None: its own default."""
    action: Action = "warn"
    """ignore, warn, or warn and then stop, lower_lr or raise_kl once the trouble has lasted."""
    patience: int = 3
    """Updates in a row with the trouble after which the action is taken; the warning is at once."""

    @property
    def limit(self) -> float:
        """The threshold, once it is known."""
        assert self.threshold is not None, "MonitorsConfig fills it in"
        return self.threshold


@dataclass(frozen=True)
class MonitorsConfig:
    """What is watched after every update."""

    large_step: MonitorRule = MonitorRule(0.1)
    """Nats per token (k3) by which one update moved the policy."""
    far_from_reference: MonitorRule = MonitorRule(0.5)
    """KL to the reference in nats per token, in either direction."""
    kl_budget: MonitorRule = MonitorRule(20.0)
    """KL to the reference in nats per response."""
    entropy_collapse: MonitorRule = MonitorRule(0.1)
    """Entropy, as a share of the first update's: down to this."""
    entropy_explosion: MonitorRule = MonitorRule(3.0)
    """Entropy, as a multiple of the first update's."""
    length_growth: MonitorRule = MonitorRule(2.0)
    """Mean length of the responses, as a multiple of the first update's."""
    length_collapse: MonitorRule = MonitorRule(0.25)
    """Mean length of the responses, as a share of the first update's: down to this."""
    repetition: MonitorRule = MonitorRule(0.3)
    """Share of a response's runs of four tokens that repeat one before, mean."""
    identical_answers: MonitorRule = MonitorRule(0.8)
    """Share of the responses that are the most frequent one, whatever was asked."""
    proxy_gold_gap: MonitorRule = MonitorRule(0.25)
    """Fall of the reward `gold` while the total rises, in standard deviations of its scores."""
    reward_ood: MonitorRule = MonitorRule(0.1)
    """Share of the responses with a score that a reward model hardly ever gave on its own data."""
    cut_responses: MonitorRule = MonitorRule(0.5)
    """Share of the responses that were cut by response_length."""
    left_out: MonitorRule = MonitorRule(0.5)
    """Share of the episodes that were left out of the training."""
    drift: MonitorRule = MonitorRule(0.05)
    """Nats per token between sampler and trainer."""
    idle_critic: MonitorRule = MonitorRule(10.0)
    """Updates in a row in which the mean return was the better baseline: from this many on."""
    no_spread: MonitorRule = MonitorRule(10.0)
    """Updates in a row in which all rewards were equal: from this many on."""
    no_variance: MonitorRule = MonitorRule(0.9)
    """Share of the prompts whose responses all got the same return."""
    nothing_kept: MonitorRule = MonitorRule(0.0)
    """Share of the responses that algorithm raft keeps: down to this."""
    slow_reward: MonitorRule = MonitorRule(0.5)
    """Share of an update for which it waited for scores, median of the last ones; only warns."""
    gold: str = "gold"
    """Reward that proxy_gold_gap holds the total against, usually one of weight 0."""
    lr_factor: float = 0.5
    """What lower_lr multiplies the learning rate of the policy by, in (0, 1)."""
    kl_factor: float = 2.0
    """What raise_kl multiplies the KL coefficient by, above 1."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            rule = getattr(self, field.name)
            if isinstance(field.default, MonitorRule) and rule.threshold is None:
                own = dataclasses.replace(rule, threshold=field.default.threshold)
                object.__setattr__(self, field.name, own)
        for name, rule in self.rules().items():
            where = f"ppo.monitors.{name}"
            if rule.action not in get_args(Action):
                raise ConfigError(unknown_name(f"{where}.action", rule.action, get_args(Action)))
            if name in OF_THE_CLOCK and rule.action not in ("warn", "ignore"):
                raise ConfigError(
                    f"{where}.action = {rule.action!r}: expected warn or ignore. It goes by times, "
                    "which differ from machine to machine, and a run must not depend on them."
                )
            if not 0 <= rule.limit < math.inf:
                raise ConfigError(
                    f"{where}.threshold = {rule.threshold}: expected a finite number, 0 or more. "
                    "For no monitor of this kind set its action to ignore."
                )
            if rule.patience < 1:
                raise ConfigError(f"{where}.patience = {rule.patience}: expected at least 1.")
        if not 0 < self.lr_factor < 1:
            raise ConfigError(
                f"ppo.monitors.lr_factor = {self.lr_factor}: expected a number in (0, 1)."
            )
        if not 1 < self.kl_factor < math.inf:
            raise ConfigError(
                f"ppo.monitors.kl_factor = {self.kl_factor}: expected a finite number above 1."
            )

    def rules(self) -> dict[str, MonitorRule]:
        """The rule of each monitor, by its name."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: rule for name, rule in values.items() if isinstance(rule, MonitorRule)}

    def changed(self) -> dict[str, MonitorRule]:
        """Those that are not at their default."""
        default = {f.name: f.default for f in dataclasses.fields(self)}
        return {name: rule for name, rule in self.rules().items() if rule != default[name]}

    def steering(self) -> dict[str, Any]:
        """What a run that goes on has to keep: rules that change updates, and by how much."""
        found: dict[str, Any] = {
            name: dataclasses.asdict(rule)
            for name, rule in self.rules().items()
            if rule.action in STEERS
        }
        return found and {**found, "lr_factor": self.lr_factor, "kl_factor": self.kl_factor}

    def without_reference(self) -> MonitorsConfig:
        """The same for a run that keeps no reference: what needs one is at its default."""
        default = MonitorsConfig().rules()
        needing: dict[str, Any] = {
            name: default[name]
            for name, rule in self.rules().items()
            if name in OF_THE_REFERENCE or rule.action == "raise_kl"
        }
        return dataclasses.replace(self, **needing)


def read_monitors(values: Mapping[str, Any]) -> MonitorsConfig:
    """The settings that a checkpoint wrote down as plain values; unknown names are left out."""
    known = {f.name for f in dataclasses.fields(MonitorsConfig)}
    settings: dict[str, Any] = {
        name: MonitorRule(**value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if name in known
    }
    return MonitorsConfig(**settings)


def monitor_complaints(config: PPOConfig) -> Iterator[str]:
    """Yields a sentence about every monitor that contradicts another setting."""
    for name, rule in config.monitors.changed().items():
        if config.kl_coef == 0 and name in OF_THE_REFERENCE and rule.action != "ignore":
            yield (
                f"ppo.monitors.{name} watches the KL to the reference, but ppo.kl_coef = 0 keeps "
                "none: expected a coefficient above 0, or this monitor at its default."
            )
        if rule.action != "raise_kl":
            continue
        if config.kl_coef == 0:
            yield (
                f"ppo.monitors.{name}.action = 'raise_kl' but ppo.kl_coef = 0: expected a "
                "coefficient above 0 to raise, or another action."
            )
        if config.kl_target is not None:
            yield (
                f"ppo.monitors.{name}.action = 'raise_kl' but ppo.kl_target = {config.kl_target} "
                "steers the same coefficient: expected one of them. Remove the target, or take "
                "another action."
            )


def check_gold(monitors: MonitorsConfig, rewards: Collection[str]) -> None:
    """Refuses a gold reward that the run does not measure.

    Args:
        monitors: The settings; all at their defaults ask for nothing.
        rewards: Names of the rewards, those of weight 0 included.

    Raises:
        ConfigError: There is no reward of that name.
    """
    asked = monitors.gold != MonitorsConfig.gold or "proxy_gold_gap" in monitors.changed()
    if asked and monitors.gold not in rewards:
        raise ConfigError(
            f"ppo.monitors.gold: {unknown_name('reward', monitors.gold, rewards)} Add it to "
            "rewards with weight 0 to measure it without training on it."
        )

"""Which settings of PPO contradict each other, or would have no effect beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from instructrec.errors import ConfigError
from instructrec.rl.monitor_config import monitor_complaints

if TYPE_CHECKING:
    from instructrec.rl.config import PPOConfig

_WITH = {
    "prompt_filter_floor": ("prompt_filter", "a filter, e.g. ppo.prompt_filter = 'id'"),
    **dict.fromkeys(
        ("curriculum_pass", "curriculum_window", "curriculum_raise", "curriculum_lower"),
        ("curriculum", "a column, e.g. ppo.curriculum = 'level'"),
    ),
    "kl_horizon": ("kl_target", "a target, e.g. ppo.kl_target = 6"),
    "entropy_coef_max": ("entropy_target", "a target, e.g. ppo.entropy_target = 0.4"),
    "early_stopping_patience": ("eval_every", "ppo.eval_every above 0"),
}
"""Settings that do something only where the second one is set."""

OF_THE_CRITIC = (
    *("critic", "critic_model", "critic_detach", "critic_warmup_updates", "cliprange_value"),
    *("lam_policy", "lam_value"),
)
"""Settings without effect where the baseline is no critic. The head learns all the same, so that
its explained variance is known, which is why its learning rate and weight are not among them."""


def require(condition: bool, field: str, given: object, expected: str) -> None:
    """Refuses the value of a setting.

    Raises:
        ConfigError: The condition does not hold.
    """
    if not condition:
        raise ConfigError(f"{field} = {given!r}: expected {expected}.")


def complaints(config: PPOConfig) -> Iterator[str]:
    """Yields a sentence about every combination that does not make sense."""
    yield from _useless(config)
    yield from _impossible(config)
    yield from monitor_complaints(config)


def _useless(config: PPOConfig) -> Iterator[str]:
    default = {f.name: f.default for f in fields(config)}
    for name, (needed, expected) in _WITH.items():
        if getattr(config, name) != default[name] and not getattr(config, needed):
            yield (
                f"ppo.{name} = {getattr(config, name)} has no effect without ppo.{needed}: "
                f"expected {expected}."
            )
    if config.critic_model is not None and config.critic != "separate":
        yield (
            f"ppo.critic_model = {config.critic_model!r} but ppo.critic = {config.critic!r}: "
            "expected ppo.critic = 'separate'."
        )
    if config.advantage != "gae":
        changed = [name for name in OF_THE_CRITIC if getattr(config, name) != default[name]]
        if changed:
            yield (
                f"ppo.advantage = {config.advantage!r} uses no critic, but "
                f"{', '.join(f'ppo.{name}' for name in changed)} would set one up: expected "
                "ppo.advantage = 'gae', or their defaults."
            )
    divides = config.whiten_advantages != "none" or config.advantage == "group"
    if not divides and config.advantage_std_floor != default["advantage_std_floor"]:
        yield (
            f"ppo.advantage_std_floor = {config.advantage_std_floor} has no effect with "
            "ppo.whiten_advantages = 'none': expected 'scale' or 'whiten'."
        )
    if config.kl_penalty == "loss" and config.kl_coef == 0:
        yield (
            "ppo.kl_penalty = 'loss' but ppo.kl_coef = 0: expected a coefficient above 0, or "
            "ppo.kl_penalty at its default."
        )


def _impossible(config: PPOConfig) -> Iterator[str]:
    if config.critic_warmup_updates >= config.num_updates:
        yield (
            f"ppo.critic_warmup_updates = {config.critic_warmup_updates} of ppo.num_updates = "
            f"{config.num_updates}: the policy would never learn. Expected fewer than "
            "ppo.num_updates, or more updates."
        )
    if config.advantage in ("rloo", "group") and config.num_generations == 1:
        yield (
            f"ppo.advantage = {config.advantage!r} compares responses to the same instruction: "
            "expected ppo.num_generations of 2 or more."
        )
    if config.curriculum is not None and config.prompt_filter is not None:
        yield (
            f"ppo.curriculum = {config.curriculum!r} and ppo.prompt_filter = "
            f"{config.prompt_filter!r} both choose the instructions: expected one of them."
        )
    if config.curriculum_lower >= config.curriculum_raise:
        yield (
            f"ppo.curriculum_lower = {config.curriculum_lower} is not below ppo.curriculum_raise = "
            f"{config.curriculum_raise}: expected a gap between them."
        )
    if (config.on_length == "penalty") != (config.missing_eos_penalty is not None):
        yield (
            f"ppo.on_length = {config.on_length!r} and ppo.missing_eos_penalty = "
            f"{config.missing_eos_penalty}: expected a penalty with on_length = 'penalty', and "
            "only then."
        )
    if config.kl_target is not None and config.kl_coef == 0:
        yield ("ppo.kl_target is set but ppo.kl_coef = 0: expected a coefficient above 0 to adapt.")
    if config.entropy_target is not None and config.entropy_coef == 0:
        yield (
            "ppo.entropy_target is set but ppo.entropy_coef = 0: expected a weight above 0 to "
            "adapt."
        )
    if config.entropy_target is not None and config.entropy_coef > config.entropy_coef_max:
        yield (
            f"ppo.entropy_coef = {config.entropy_coef} is above ppo.entropy_coef_max = "
            f"{config.entropy_coef_max}: expected a weight that starts at most there."
        )

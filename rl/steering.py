"""What a monitor's action changes about the updates that follow."""

from __future__ import annotations

from dataclasses import replace

from instructrec.rl.learner import PPOLearner
from instructrec.rl.monitors import Alarm
from instructrec.rl.optim import go_to_step

MOST = 64.0
"""Factor down to whose inverse the learning rate is lowered, and up to which the KL coefficient is
raised: a trouble that does not end would otherwise put an end to learning without a word."""


def act(alarm: Alarm, learner: PPOLearner) -> Alarm:
    """Does what an alarm asks for; what it changes lasts, and is part of a checkpoint.

    ``lower_lr`` leaves the critic's learning rate alone: a policy that steps less far from its
    critic's values needs no slower critic.

    Args:
        alarm: What a monitor saw, and its action.
        learner: What learns; several processes have to call this alike.

    Returns:
        The same with its effect in words, if there is one.
    """
    if alarm.action == "lower_lr":
        return _lower_rate(alarm, learner)
    if alarm.action == "raise_kl":
        return _raise_kl(alarm, learner)
    return alarm


def _lower_rate(alarm: Alarm, learner: PPOLearner) -> Alarm:
    held, factor = learner.coefficients, learner.config.monitors.lr_factor
    before = held.learning_rate
    if held.rate * factor < 1 / MOST:
        return replace(alarm, effect=f"ppo.learning_rate stays at {before:.3g}")
    held.rate *= factor
    go_to_step(learner.scheduler, learner.scheduler.last_epoch, held.learning_rate)
    return replace(alarm, effect=f"ppo.learning_rate {before:.3g} -> {held.learning_rate:.3g}")


def _raise_kl(alarm: Alarm, learner: PPOLearner) -> Alarm:
    config, weight = learner.config, learner.coefficients.kl
    before, now = weight.coef, weight.coef * config.monitors.kl_factor
    if now > MOST * config.kl_coef:
        return replace(alarm, effect=f"ppo.kl_coef stays at {before:.3g}")
    weight.coef = now
    return replace(alarm, effect=f"ppo.kl_coef {before:.3g} -> {now:.3g}")

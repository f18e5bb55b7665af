"""Monitors: what the numbers of an update say about the run, and what is done about it.

Each monitor is one function from what is seen of an update to a sentence that says what is wrong
and what to do, or to nothing. It speaks once, until its trouble was over in between; where its
action is another than to warn, that is taken once the trouble has lasted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrec.rl.config import PPOConfig
from instructrec.rl.hacking_monitors import HACKING
from instructrec.rl.health_monitors import HEALTH
from instructrec.rl.monitor_config import OF_THE_CLOCK, STEERS, Action, MonitorRule
from instructrec.rl.monitor_memory import Memory, Seen, Watch

MONITORS: dict[str, Watch] = {**HEALTH, **HACKING}
"""Every monitor, by the name of its rule in ``ppo.monitors``."""


@dataclass(frozen=True)
class Alarm:
    """Something that a monitor saw."""

    name: str
    """Name of the monitor."""
    message: str
    """What was seen and what to do."""
    action: Action = "warn"
    """What is done about it, now."""
    effect: str = ""
    """What that changed; empty for nothing."""
    samples: Sequence[Mapping[str, Any]] = ()
    """Responses that show it, the worst first, as rows of the sample log."""

    @property
    def stops(self) -> bool:
        """Whether the run cannot go on."""
        return self.action == "stop"

    @property
    def text(self) -> str:
        """The message and what was changed."""
        return f"{self.message} From here on: {self.effect}." if self.effect else self.message


class Monitors:
    """Watches a run.

    Args:
        config: The settings of the run, which decide what is trouble.
    """

    def __init__(self, config: PPOConfig) -> None:
        self.config = config
        self.memory = Memory()

    @property
    def ringing(self) -> list[str]:
        """Monitors whose trouble is not over, without those of a clock: two equal runs agree."""
        return list(self._of_no_clock())

    def check(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Looks at the metrics of an update; returns the alarms that are new."""
        self.memory.note(metrics, self.config)
        alarms = []
        for name, rule in self.config.monitors.rules().items():
            seen = Seen(metrics, self.memory, rule.limit, self.config)
            message = None if rule.action == "ignore" else MONITORS[name](seen)
            if message is None:
                self.memory.lasting.pop(name, None)
            elif alarm := self._alarm(name, rule, message):
                alarms.append(alarm)
        return alarms

    def _alarm(self, name: str, rule: MonitorRule, message: str) -> Alarm | None:
        """Counts an update with a trouble; says what that calls for."""
        lasts = self.memory.lasting[name] = self.memory.lasting.get(name, 0) + 1
        if rule.action == "stop" and lasts >= rule.patience:
            return Alarm(name, f"{message} {_stopping(name, lasts)}", "stop")
        if rule.action in STEERS and lasts % rule.patience == 0:
            return Alarm(name, message, rule.action)
        return Alarm(name, message) if lasts == 1 else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to carry."""
        state = dataclasses.asdict(self.memory)
        del state["waiting"]  # times: a run that goes on may do so on another machine
        return state | {"lasting": self._of_no_clock()}

    def _of_no_clock(self) -> dict[str, int]:
        lasting = self.memory.lasting.items()
        return {name: updates for name, updates in lasting if name not in OF_THE_CLOCK}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what a checkpoint carried."""
        known = {field.name for field in dataclasses.fields(Memory)}  # others wrote more, or less
        self.memory = Memory(**{name: value for name, value in state.items() if name in known})


def _stopping(name: str, updates: int) -> str:
    plural = "s" if updates > 1 else ""
    return (
        f"It lasts for {updates} update{plural}, and ppo.monitors.{name}.action is 'stop'. A "
        "checkpoint was written; --resume with another action goes on."
    )

"""One reward inside a sum: its settings, read from a configuration, and what it remembers."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from instructrec.errors import ConfigError, RewardError, did_you_mean
from instructrec.rewards.base import OUTLYING
from instructrec.rewards.cache import ScoreCache
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.isolation import Workers, WorkerSettings
from instructrec.rewards.registry import check_name, find_reward, read_as, spec_text
from instructrec.rewards.scaling import SCALINGS, RunningStats, Scaling, normalised
from instructrec.rewards.schedule import parse_weight
from instructrec.rewards.scoring import PartScores, score_part
from instructrec.rewards.watchdog import watching

OnError = Literal["raise", "mask"]
"""What a failed reward does: end the run, or take its sample out of the training."""


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a weighted sum, in full."""

    use: str | None = None
    """Registered name, module:attr or file.py:attr; the part's own name when not given."""
    weight: float | dict[int, float] = 1.0
    """Factor in the total; 0 only records; {1: 0.0, 20: 1.0} moves in straight lines by update."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the reward, by name."""
    format: Literal["text", "chat"] | None = None
    """What it reads: text, or chat messages (TRL's conversational rewards); None: as declared."""
    normalise: Scaling = "none"
    """How scores are scaled in training: none, clip, batch, running or group; logs stay raw."""
    clip: tuple[float, float] | None = None
    """Lowest and highest score that normalise: clip lets through."""
    on_error: OnError = "mask"
    """mask: a failed reward takes its sample out of the training; raise: it ends the run."""
    timeout: float = 60.0
    """Seconds of one call: a worker is ended then; in this process a warning names the reward."""
    isolation: Literal["none", "worker"] = "none"
    """worker: score in processes of their own, which may hang or die without harm."""
    workers: int = 1
    """Processes that score side by side (isolation: worker)."""
    memory_mb: int | None = None
    """Most address space of a worker in MiB; None sets no limit, as a worker on a GPU needs it."""
    environment: tuple[str, ...] = ()
    """Environment variables that a worker gets beside the usual ones, e.g. [MY_API_KEY]."""
    cache: str | None = None
    """SQLite file in which scores are kept and looked up; None keeps none."""
    trial: bool = True
    """Whether a training first tries a judge with responses that deserve nothing."""


class Part:
    """A reward with its weight and settings.

    Args:
        name: What the sum calls it.
        reward: The reward.
        spec: Its settings; ``use``, ``options`` and ``format`` are in the reward already.

    Raises:
        ConfigError: When the name or a setting cannot be used.
    """

    def __init__(self, name: str, reward: BoundReward, spec: RewardSpec | None = None) -> None:
        check_name(name)
        spec = spec or RewardSpec()
        self.name = name
        self.reward = reward
        self.schedule = parse_weight(name, spec.weight)
        self.spec = _checked(name, spec)
        self.running = RunningStats()
        """Mean and spread of the scores of all updates, kept for ``normalise: running``."""
        self._workers: Workers | None = None
        if self.spec.isolation == "worker":
            spec = self.spec
            settings = WorkerSettings(spec.workers, spec.timeout, spec.memory_mb, spec.environment)
            self._workers = Workers(reward, settings)
        self._cache = None if self.spec.cache is None else ScoreCache(self.spec.cache, reward)
        self.failing_batches = 0
        """Batches of the training in a row in which it failed on a sample."""

    def score(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> PartScores:
        """Scores B responses; arguments and errors as for ``score_part``.

        Raises:
            RewardError: When the reward fails on a sample and ``on_error`` is ``raise``.
        """
        if self._cache is None:
            scored = self._call(prompts, completions, columns)
        else:
            start = time.perf_counter()
            scored = self._cache.score(self._call, prompts, completions, columns)
            scored.seconds = time.perf_counter() - start
        failed = [i for i, status in enumerate(scored.status) if status.failed]
        if failed and self.spec.on_error == "raise":
            first = failed[0]
            raise RewardError(
                f"reward {self.name!r} failed on {len(failed)} of {len(completions)} responses and "
                f"its on_error is raise. First: {scored.status[first]}: {scored.messages[first]}. "
                "Mend the reward, or set on_error: mask to leave such responses out."
            )
        known = getattr(self.reward.function, "known_scores", None)
        if known is not None:
            mean, std = known
            distance = np.abs(scored.scores - mean)  # NaN where there is no score
            scored.flags["ood"] = (distance > OUTLYING * std).tolist()
        return scored

    def _call(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]],
    ) -> PartScores:
        if self._workers is not None:
            return self._workers.score(prompts, completions, columns)
        with watching(f"reward {self.name!r} on {len(completions)} responses", self.spec.timeout):
            return score_part(self.reward, prompts, completions, columns)

    def close(self) -> None:
        """Ends its worker processes and closes its cache; scoring again opens them again."""
        for resource in (self._workers, self._cache, self.reward.function):
            close = getattr(resource, "close", None)
            if callable(close):
                close()

    def normalised(self, scores_B: np.ndarray, prompts: Sequence[Any]) -> np.ndarray:
        """The scores as training sums them; ``running`` learns from them."""
        return normalised(
            scores_B,
            self.spec.normalise,
            prompts=prompts,
            stats=self.running,
            bounds=self.spec.clip,
        )

    def note_failures(self, scored: PartScores) -> None:
        """Counts batches in a row with a failure."""
        failed = any(status.failed for status in scored.status)
        self.failing_batches = self.failing_batches + 1 if failed else 0

    def plain(self) -> float | dict[str, Any]:
        """The part as a configuration writes it.

        Raises:
            ConfigError: When the reward is a function that no other process can import.
        """
        use = spec_text(self.reward.info.target)
        options = self.reward.plain_options()
        default = RewardSpec()
        settings = {
            f.name: list(value) if isinstance(value, tuple) else value
            for f in fields(RewardSpec)
            if f.name not in ("use", "weight", "options")
            and (value := getattr(self.spec, f.name)) != getattr(default, f.name)
        }
        if use == self.name and not options and not settings and not self.schedule.changes:
            return self.schedule.last
        given = {"options": options} if options else {}
        return {"use": use, "weight": self.schedule.value(), **given, **settings}

    def state_dict(self) -> dict[str, Any]:
        """What it remembers beside the reward's own state; empty for nothing."""
        state: dict[str, Any] = {}
        if self.running.count:
            state["running"] = self.running.state_dict()
        if self.failing_batches:
            state["failing_batches"] = self.failing_batches
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.running.load_state_dict(state.get("running", RunningStats().state_dict()))
        self.failing_batches = int(state.get("failing_batches", 0))


def make_part(name: Any, value: Any) -> Part:
    """Reads one entry of a ``rewards`` mapping; see ``make_rewards``.

    Raises:
        ConfigError: When a name, key, weight, setting or option is wrong.
    """
    check_name(name)
    if isinstance(value, RewardSpec):
        reward = _named(name, value.use or name, value.options, value.format)
        return Part(name, reward, value)
    if isinstance(value, bool) or value is None:
        raise ConfigError(_bad_part(name, value))
    if isinstance(value, int | float):
        return Part(name, _named(name, name, {}), RewardSpec(weight=float(value)))
    if isinstance(value, BoundReward):
        return Part(name, value)
    if isinstance(value, str) or callable(value):
        return Part(name, _named(name, value, {}))
    if not isinstance(value, Mapping):
        raise ConfigError(_bad_part(name, value))
    known = [f.name for f in fields(RewardSpec)]
    for key in value:
        if key not in known:
            raise ConfigError(
                f"rewards.{name} has the unknown key {key!r}.{did_you_mean(str(key), known)} "
                f"Keys: {', '.join(known)}. Options of the reward itself go under options."
            )
    options = value.get("options") or {}
    if not isinstance(options, Mapping):
        raise ConfigError(f"rewards.{name}.options = {options!r}: expected a mapping.")
    reward = _named(name, value.get("use") or name, options, value.get("format"))
    settings = {key: v for key, v in value.items() if key not in ("use", "options")}
    return Part(name, reward, RewardSpec(**settings))


def _named(name: str, use: Any, options: Mapping[str, Any], format: Any = None) -> BoundReward:
    """Makes a reward that calls itself what the config calls it."""
    return BoundReward(read_as(replace(find_reward(use), name=name), format), options)


def _bad_part(name: str, value: Any) -> str:
    return (
        f"rewards.{name} = {value!r}: expected a number (the weight), the reward as a string "
        "(weight 1), or a mapping with the keys use, weight and options."
    )


def _checked(name: str, spec: RewardSpec) -> RewardSpec:
    """Returns the settings in their plain form, or says what is wrong with them."""
    _check_choice(name, "normalise", spec.normalise, SCALINGS)
    _check_choice(name, "on_error", spec.on_error, ("raise", "mask"))
    if (spec.normalise == "clip") != (spec.clip is not None):
        raise ConfigError(
            f"rewards.{name}: normalise = {spec.normalise!r} with clip = {spec.clip!r}; expected "
            "normalise: clip together with clip: [lowest, highest]."
        )
    _check_choice(name, "isolation", spec.isolation, ("none", "worker"))
    _check_worker(name, spec)
    if not isinstance(spec.trial, bool):
        raise ConfigError(f"rewards.{name}.trial = {spec.trial!r}: expected true or false.")
    if isinstance(spec.environment, str):
        raise ConfigError(f"rewards.{name}.environment = {spec.environment!r}: expected a list.")
    clip = None if spec.clip is None else _bounds(name, spec.clip)
    return replace(spec, clip=clip, environment=tuple(spec.environment))


def _check_worker(name: str, spec: RewardSpec) -> None:
    """Checks the settings of worker processes."""
    limits = {"timeout": spec.timeout, "workers": spec.workers, "memory_mb": spec.memory_mb}
    for key, value in limits.items():
        least = {"timeout": 0, "workers": 1, "memory_mb": 1}[key]
        whole = key != "timeout"
        fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if value is None and key == "memory_mb":
            continue
        if not fits or value is None or not least <= value < math.inf or value == 0:
            kind = "a whole number of 1 or more" if whole else "a number of seconds above 0"
            raise ConfigError(f"rewards.{name}.{key} = {value!r}: expected {kind}.")
    changed = [
        key
        for key in ("workers", "memory_mb", "environment")
        if getattr(spec, key) != getattr(RewardSpec(), key)
    ]
    if changed and spec.isolation != "worker":
        raise ConfigError(
            f"rewards.{name}: {', '.join(changed)} given, but isolation = {spec.isolation!r}: "
            "set isolation: worker, or remove the key."
        )


def _check_choice(name: str, key: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(
            f"rewards.{name}.{key} = {value!r}: expected one of {', '.join(known)}."
            f"{did_you_mean(str(value), known)} Options of the reward itself go under options."
        )


def _bounds(name: str, clip: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in clip)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not low < high:
        raise ConfigError(
            f"rewards.{name}.clip = {clip!r}: expected [lowest, highest] score, e.g. [-5, 5]."
        )
    return low, high

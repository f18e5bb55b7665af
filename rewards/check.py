"""``check_reward``: what ``check_env`` is to environments, for the author of a reward."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instructrec.errors import DataError, InstructRecError, RewardError
from instructrec.rewards import check_points
from instructrec.rewards.calling import BoundReward
from instructrec.rewards.check_probe import Point, Probe, Verdict
from instructrec.rewards.check_samples import make_samples
from instructrec.rewards.registry import find_reward, read_as


@dataclass(frozen=True)
class Report:
    """What a check found."""

    reward: str
    """The reward and its options."""
    points: tuple[Point, ...]
    """What was looked at, in order."""
    error: InstructRecError | None = None
    """Why the reward could not be made or called; None where it could."""

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not any(point.verdict == "fail" for point in self.points)

    def require(self) -> Report:
        """Returns the report, for ``check_reward(...).require()`` as a test.

        Raises:
            RewardError: A point failed; the message is the table.
        """
        if not self.ok:
            raise RewardError(str(self))
        return self

    def __str__(self) -> str:
        width = max((len(point.name) for point in self.points), default=0)
        lines = [f"{p.verdict:<4}  {p.name:<{width}}  {p.message}" for p in self.points]
        return "\n".join([self.reward, *lines])


def check_reward(
    spec: str | Callable[..., Any] | BoundReward,
    data: Sequence[Mapping[str, Any]] | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    format: Literal["text", "chat"] | None = None,
    timeout: float = 120.0,
) -> Report:
    """Looks for what goes wrong with rewards, before a run does.

    In a test: ``check_reward("my_rewards.py:politeness").require()``.

    Args:
        spec: The reward, as for ``make_reward``.
        data: Rows with a prompt and the columns that the reward reads; None takes a few of our own,
            which suits rewards that read a reference or no column.
        options: Options of the reward.
        format: ``text`` or ``chat``, what it reads; None takes what it declares.
        timeout: Seconds that one call may take before the reward counts as hanging. Only the main
            thread of a process can give up; elsewhere (and on Windows) a line on standard error
            has to do.

    Returns:
        A verdict for each point. Where the reward cannot be made or called, there is one point and
        its ``error``.
    """
    name = spec if isinstance(spec, str) else getattr(spec, "__name__", repr(spec))
    try:
        made = spec if isinstance(spec, BoundReward) else _made(spec, options or {}, format)
        name = made.describe()
        samples = make_samples(data, made.required_columns)
        probe = Probe(made, samples, timeout)
        given = copy.deepcopy(samples)
        with check_points.fresh_randomness():
            around = check_points.surroundings()
            probe.base = probe.score()
            effects = check_points.side_effects(around, check_points.surroundings())
        start = time.perf_counter()  # the first call may load a library or a model
        again = check_points.deterministic(probe)
        seconds = (time.perf_counter() - start) / len(samples)
    except InstructRecError as error:
        if isinstance(error, DataError) and data is None:
            error = DataError(
                "the check's own rows, whose answers are short texts, do not suit it: pass data "
                f"that it is meant for (--data FILE). It says: {error}"
            )
        return Report(name, (Point("can be called", "fail", str(error)),), error)
    points = [Point("can be called", "ok", f"one score for each of {len(samples)} responses")]
    points += [
        check_points.usable(probe),
        check_points.declared_range(probe),
        again,
    ]
    points += [_compared(label, point, probe) for label, point in check_points.COMPARISONS.items()]
    points += [_guarded(label, point, probe) for label, point in check_points.OTHERS.items()]
    if getattr(made.function, "deceptions", ()):
        points.append(_guarded("deceptions", check_points.deceptions, probe))
    points += [effects, check_points.arguments(given, samples), check_points.speed(probe, seconds)]
    return Report(name, tuple(points))


def _made(
    spec: str | Callable[..., Any],
    options: Mapping[str, Any],
    format: Literal["text", "chat"] | None,
) -> BoundReward:
    return BoundReward(read_as(find_reward(spec), format), options)


def _compared(label: str, point: Callable[[Probe], tuple[Verdict, str]], probe: Probe) -> Point:
    """A point that compares scores, where there are scores that can be compared."""
    if not probe.scored:
        return Point(label, "skip", check_points.NOTHING_SCORED)
    if not probe.deterministic:
        return Point(label, "skip", "scores differ from call to call")
    return _guarded(label, point, probe)


def _guarded(label: str, point: Callable[[Probe], tuple[Verdict, str]], probe: Probe) -> Point:
    """A point whose call ends in an error of the contract has failed."""
    if probe.hung:
        return Point(label, "skip", "not asked: it hung before")
    try:
        return Point(label, *point(probe))
    except InstructRecError as error:
        return Point(label, "fail", str(error))

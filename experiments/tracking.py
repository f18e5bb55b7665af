"""Tracking: mirrors of the run folder that can never stop, delay or hang a run.

The record of a run is its folder. What a tracker shows is a copy of it, so every exception inside
tracking becomes one warning, after which that tracker is off and the run goes on. Nothing here asks
a question, and no tracking library is imported before a tracker is opened.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from instructrec.choices import check_choices
from instructrec.errors import ConfigError
from instructrec.experiments.jsonl import plain
from instructrec.redaction import redacted

Level = Literal["warning", "error"]
"""How bad something is that an alert tells."""
Distributions = Mapping[str, np.ndarray]
"""Name of a number that every episode of an update may have -> those numbers, (N,) float32."""
_LONGEST_WAIT_S = 86_400.0
_MODES = {"online": "online", "offline": "offline", "disabled": "disabled"}
_MODES |= {"run": "online", "dryrun": "offline", "shared": "online"}


@dataclass(frozen=True)
class TrackingConfig:
    """Where the run is mirrored to."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto takes WANDB_MODE if set, else online when a key is stored, else offline."""
    report_to: tuple[Literal["wandb", "trackio"], ...] = ("wandb",)
    """wandb, trackio (dashboard on this machine; extra trackio), or both."""
    project: str = "instructrec"
    """Project there: one comparison."""
    entity: str | None = None
    """W&B user or team; None takes the account's default."""
    group: str | None = None
    """Group there; None takes the variant, so that the seeds of one setting stand together."""
    tags: tuple[str, ...] = ()
    """More tags, beside algorithm, model and rewards."""
    dir: str | None = None
    """Folder for W&B's own files; None keeps them in the run folder."""
    log_policy: bool = False
    """Send the exported policy as an artifact, with what it came from."""
    wait_s: float = 120.0
    """Most seconds that the end of a run waits for what is not sent yet."""

    def __post_init__(self) -> None:
        check_choices(self, "tracking")
        if not self.project or any(character in self.project for character in "/\\#?%:"):
            raise ConfigError(
                f"tracking.project = {self.project!r}: expected a name without / \\ # ? % or :."
            )
        if not 0 < self.wait_s <= _LONGEST_WAIT_S:
            raise ConfigError(
                f"tracking.wait_s = {self.wait_s}: expected more than 0 seconds, and at most "
                f"{_LONGEST_WAIT_S:g}, a day."
            )
        if len(set(self.report_to)) < len(self.report_to):
            raise ConfigError(
                f"tracking.report_to = {list(self.report_to)}: expected each name once."
            )

    @property
    def wanted_mode(self) -> str:
        """``mode``, where auto is what WANDB_MODE says if it is set.

        Raises:
            ConfigError: WANDB_MODE holds something else than a mode.
        """
        if self.mode != "auto":
            return self.mode
        given = os.environ.get("WANDB_MODE", "").strip().lower()
        if not given:
            os.environ.pop("WANDB_MODE", None)  # W&B itself refuses an empty value
        if given and given not in _MODES:
            raise ConfigError(f"WANDB_MODE = {given!r}: expected online, offline or disabled")
        return _MODES.get(given, "auto")


def note_unused(config: TrackingConfig, say: Callable[[str], None]) -> None:
    """Says which settings do nothing, for commands that are mirrored only where a mode is given.

    Args:
        config: Their settings; training mirrors without being asked and has no use for this.
        say: Receives one line for people, where there is something to say.
    """
    given = [
        f"tracking.{field.name}"
        for field in fields(config)
        if field.name != "mode" and getattr(config, field.name) != field.default
    ]
    if config.mode == "disabled" and given:
        say(
            f"note: {', '.join(given)} given, but nothing is mirrored: add --tracking.mode auto "
            "(or online, offline)."
        )
    elif config.log_policy:
        say("note: tracking.log_policy does nothing here: the run that trained a policy sends it.")


@dataclass(frozen=True)
class About:
    """What a tracker is told about a run when it is opened."""

    name: str
    """Name of the run, ``<variant>-s<seed>``."""
    job_type: str
    """sft, reward-model, train, eval or compare."""
    group: str
    """Variant without the seed; ``tracking.group`` wins."""
    tags: tuple[str, ...] = ()
    """Algorithm, model, rewards; ``tracking.tags`` come on top."""
    config: Mapping[str, Any] | None = None
    """Resolved configuration, nested."""


class Tracker(Protocol):
    """What a run tells about itself while it goes on. No method raises."""

    @property
    def mode(self) -> str:
        """online, offline or disabled."""
        ...

    @property
    def where(self) -> str:
        """One line for people: the address of the run, or the command that sends it; or empty."""
        ...

    def log(self, metrics: Mapping[str, Any], spread: Distributions | None = None) -> None:
        """Sends the numbers of one update; ``train/update`` among them is the axis.

        Args:
            metrics: The numbers.
            spread: Numbers of all its episodes by name, which are shown as histograms.
        """
        ...

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows of ``samples.jsonl`` to the table ``samples``."""
        ...

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends a whole table, whose columns are the keys of its rows."""
        ...

    def alert(self, title: str, text: str, level: Level) -> None:
        """Tells people about trouble, wherever the tracker tells such things."""
        ...

    def use_policy(self, name: str) -> None:
        """Notes that the run started from the policy that another one has logged."""
        ...

    def log_policy(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """Sends a policy; ``metadata`` says what it is and what it came from."""
        ...

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Ends the run: finished, failed or interrupted; ``summary`` becomes ``final/<key>``."""
        ...

    def abandon(self) -> None:
        """Lets go of everything for which the end of the program would wait."""
        ...


class NullTracker:
    """Tracks nothing."""

    mode = "disabled"
    where = ""

    def log(self, metrics: Mapping[str, Any], spread: Distributions | None = None) -> None:
        """Does nothing."""

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Does nothing."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Does nothing."""

    def alert(self, title: str, text: str, level: Level) -> None:
        """Does nothing."""

    def use_policy(self, name: str) -> None:
        """Does nothing."""

    def log_policy(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """Does nothing."""

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Does nothing."""

    def abandon(self) -> None:
        """Does nothing."""


def open_tracking(
    config: TrackingConfig,
    folder: Path,
    *,
    name: str,
    job_type: str,
    group: str,
    tags: Sequence[str] = (),
    run_config: Mapping[str, Any] | None = None,
    note: Callable[[str], None] = print,
    wandb: Any = None,
    trackio: Any = None,
) -> Tracker:
    """Opens the mirrors of one run; calls of them take effect before they return.

    Args:
        config: The user's choice.
        folder: The run folder; W&B's files go to its ``wandb/`` unless ``config.dir`` says else.
        name: Name of the run, ``<variant>-s<seed>``.
        job_type: sft, reward-model, train, eval or compare.
        group: Variant without the seed (``config.group`` wins).
        tags: Algorithm, model, rewards (``config.tags`` are added).
        run_config: Resolved configuration, nested.
        note: Called with one line for each tracker that the user should see.
        wandb: The module; None imports it.
        trackio: The module; None imports it.

    Returns:
        A tracker; one that does nothing when tracking is off or no tracker works.
    """
    from instructrec.experiments import trackio_tracking, wandb_tracking
    from instructrec.experiments.tracking_threads import Together

    about = About(name, job_type, group, tuple(tags), plain(run_config or {}))
    opened: list[Tracker] = []
    for service in config.report_to:
        try:
            if config.wanted_mode == "disabled":
                continue
            tracker, problem = (
                wandb_tracking.open_wandb(config, folder, about, wandb)
                if service == "wandb"
                else trackio_tracking.open_trackio(config, folder, about, trackio)
            )
        except Exception as error:
            label = {"wandb": "W&B", "trackio": "Trackio"}[service]
            warn(f"{label} could not be started; the run goes on without it ({reason(error)})")
            continue
        note((f"WARNING: {problem}. " if problem else "") + tracker.where)
        opened.append(tracker)
    if not opened:
        return NullTracker()
    return opened[0] if len(opened) == 1 else Together(opened)


def reason(error: BaseException) -> str:
    """An exception in one short line."""
    text = redacted(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def warn(message: str) -> None:
    """Warns about tracking, once and for all that follows."""
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One table row: parts become columns of their own, conversations and lists become text."""
    flat: dict[str, Any] = {}
    for key, value in plain(row).items():
        if key == "parts" and isinstance(value, dict):
            flat |= value
        else:
            flat[key] = str(value) if isinstance(value, list | dict) else value
    return flat


def distributions(episodes: Sequence[Mapping[str, Any]]) -> Distributions:
    """The numbers of all episodes of an update by name: every part, total, length, advantage.

    Args:
        episodes: Rows of a rollout.

    Returns:
        Name -> the finite numbers of those episodes that have one; names without any are left out.
        In single precision: between numbers that differ by rounding alone no histogram has bins.
    """
    found: dict[str, list[float]] = {}
    for row in episodes:
        others = {key: row.get(key) for key in ("total", "advantage", "kl_ref", "response_len")}
        for name, value in {**(row.get("parts") or {}), **others}.items():
            if isinstance(value, int | float):
                found.setdefault(name, []).append(value)
    with np.errstate(over="ignore"):  # too large for it: left out like an infinity
        single = {name: np.asarray(values, dtype=np.float32) for name, values in found.items()}
    finite = {name: values[np.isfinite(values)] for name, values in single.items()}
    return {name: values for name, values in finite.items() if values.size}

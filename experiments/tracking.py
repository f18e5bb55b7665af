"""Weights & Biases: a mirror of the run folder that can never stop, delay or hang a run.

The record of a run is its folder. What happens here is a copy of it, so every exception inside
tracking becomes one warning, after which tracking is off and the run goes on. Nothing here asks
a question: without a stored key a run is tracked offline, and ``wandb sync`` sends it later.
``wandb`` is imported only when a tracker is opened.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from instructrec.errors import ConfigError
from instructrec.experiments.jsonl import plain

_INIT_TIMEOUT_S = 30
_FINISH_TIMEOUT_S = 120
_FLUSH_S = 5
_MODES = {"online": "online", "offline": "offline", "disabled": "disabled"}
_MODES |= {"run": "online", "dryrun": "offline", "shared": "online"}
_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 75}


@dataclass(frozen=True)
class TrackingConfig:
    """Where the run is mirrored to."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto takes WANDB_MODE if set, else online when a key is stored, else offline."""
    project: str = "instructrec"
    """W&B project: one comparison."""
    entity: str | None = None
    """W&B user or team; None takes the account's default."""
    group: str | None = None
    """W&B group; None takes the variant, so that the seeds of one setting stand together."""
    tags: tuple[str, ...] = ()
    """More tags, beside algorithm, model and rewards."""
    dir: str | None = None
    """Folder for W&B's own files; None keeps them in the run folder."""

    def __post_init__(self) -> None:
        if not self.project or any(character in self.project for character in "/\\#?%:"):
            raise ConfigError(
                f"tracking.project = {self.project!r}: expected a name without / \\ # ? % or :."
            )


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

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Sends the numbers of one update; ``train/update`` among them is the axis."""
        ...

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows of ``samples.jsonl`` to the table ``samples``."""
        ...

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Ends the run: finished, failed or interrupted; ``summary`` becomes ``final/<key>``."""
        ...


class NullTracker:
    """Tracks nothing."""

    mode = "disabled"
    where = ""

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Does nothing."""

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Does nothing."""

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Does nothing."""


class WandbTracker:
    """Mirrors a run to an open W&B run; the first exception switches it off with one warning."""

    def __init__(self, wandb: Any, run: Any, mode: str) -> None:
        self._wandb = wandb
        self._run = run
        self._table: Any = None
        self._columns: list[str] = []
        self.mode = mode
        self.where = _where(run, mode)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Sends the numbers of one update (without ``step=``: W&B drops steps that go back)."""
        values = {key: value for key, value in plain(metrics).items() if value is not None}
        self._safely(lambda run: run.log(values))

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows to one growing table, whose columns the first rows decide."""
        if rows:
            self._safely(lambda run: self._append([_flat(row) for row in rows], run))

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Writes ``final/<key>`` scalars into the run's summary and closes the run."""

        def end(run: Any) -> None:
            final = {
                f"final/{key}": value
                for key, value in plain(summary or {}).items()
                if isinstance(value, bool | int | float | str)
            }
            run.summary.update({"status": status, **final})
            run.finish(exit_code=_EXIT_CODES.get(status, 1))

        self._safely(end)
        self._run = None

    def _append(self, rows: list[dict[str, Any]], run: Any) -> None:
        if self._table is None:
            self._columns = list(dict.fromkeys(key for row in rows for key in row))
            self._table = self._wandb.Table(
                columns=self._columns, log_mode="INCREMENTAL", allow_mixed_types=True
            )
        for row in rows:
            self._table.add_data(*(row.get(column) for column in self._columns))
        run.log({"samples": self._table, "train/update": rows[-1].get("update", 0)})

    def _safely(self, action: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            run, self._run = self._run, None
            _warn(f"W&B failed and is switched off; the run goes on ({_reason(error)})")
            with suppress(Exception):
                run.finish(exit_code=1)


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
) -> Tracker:
    """Opens the mirror of one run.

    Args:
        config: The user's choice.
        folder: The run folder; W&B's files go to its ``wandb/`` unless ``config.dir`` says else.
        name: Name of the run, ``<variant>-s<seed>``.
        job_type: sft, reward-model, train, eval or compare.
        group: Variant without the seed (``config.group`` wins).
        tags: Algorithm, model, rewards (``config.tags`` are added).
        run_config: Resolved configuration, nested.
        note: Called with one line that the user should see.
        wandb: The module; None imports it.

    Returns:
        A tracker; one that does nothing when tracking is off or W&B does not work.
    """
    try:
        if wanted_mode(config) == "disabled":
            return NullTracker()
        # No crash reports about the user's machine unless they asked for them.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if wandb is None:
            import wandb
        arguments = {
            "project": config.project,
            "entity": config.entity,
            "name": name,
            "group": config.group or group,
            "job_type": job_type,
            "tags": _unique_tags([*tags, *config.tags]),
            "config": plain(run_config or {}),
        }
        tracker, problem = _open(wandb, config, folder, arguments)
    except Exception as error:
        _warn(f"W&B could not be started; the run goes on without it ({_reason(error)})")
        return NullTracker()
    warning = f"WARNING: W&B cannot be reached ({problem}). " if problem else ""
    note(warning + tracker.where)
    return tracker


def _open(
    wandb: Any, config: TrackingConfig, folder: Path, arguments: dict[str, Any]
) -> tuple[WandbTracker, str]:
    """Returns the tracker, and why it is not online although it should be (empty if it is)."""
    mode = wanted_mode(config)
    if mode == "auto":
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    root = _own_folders(Path(config.dir) if config.dir else folder)
    arguments |= {
        "dir": str(root.absolute()),
        "id": _run_id(folder),
        "resume": "allow",
        "reinit": "create_new",
    }
    run, mode, problem = _start(wandb, arguments, mode, folder)
    run.define_metric("train/update")
    run.define_metric("sft/step")
    run.define_metric("*", step_metric="train/update")
    run.define_metric("sft/*", step_metric="sft/step")
    return WandbTracker(wandb, run, mode), problem


def _start(
    wandb: Any,
    arguments: dict[str, Any],
    mode: str,
    folder: Path,
) -> tuple[Any, str, str]:
    """Returns the run, its mode and why the mode is not the wanted one (empty if it is)."""

    def init(mode: str) -> Any:
        # A Settings object is used up by init(), so each call gets its own. Our progress display
        # redraws lines, which a captured console would store by the thousand.
        settings = wandb.Settings(
            init_timeout=_INIT_TIMEOUT_S,
            finish_timeout=_FINISH_TIMEOUT_S,
            x_transaction_log_flush_interval=_FLUSH_S,
            console="off",
            quiet=True,
            silent=True,
        )
        return wandb.init(mode=mode, settings=settings, **arguments)

    if mode == "online":
        try:
            return init("online"), "online", ""
        except Exception as error:
            # W&B keeps the id of the attempt for itself until the process ends.
            arguments["id"] = _run_id(folder, renew=True)
            return init("offline"), "offline", _reason(error)
    return init("offline"), "offline", ""


def wanted_mode(config: TrackingConfig) -> str:
    """Returns online, offline or disabled as asked for, or auto: online where a key is stored.

    Raises:
        ConfigError: WANDB_MODE is none of these.
    """
    if config.mode != "auto":
        return config.mode
    given = os.environ.get("WANDB_MODE", "").strip().lower()
    if not given:
        os.environ.pop("WANDB_MODE", None)  # W&B itself refuses an empty value
    if given and given not in _MODES:
        raise ConfigError(f"WANDB_MODE = {given!r}: expected online, offline or disabled")
    return _MODES.get(given, "auto")


def _own_folders(root: Path) -> Path:
    """Makes the folder for W&B's files and points its staging and cache there too.

    Left alone, copies of tables and artifacts would lie outside the run folder and be lost when
    it is moved. Variables that the user has set are respected.
    """
    for variable, name in (("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        if os.environ.get(variable, _OURS.get(variable)) == _OURS.get(variable):
            path = (root / "wandb" / name).absolute()
            path.mkdir(parents=True, exist_ok=True)
            os.environ[variable] = _OURS[variable] = str(path)
    (root / "wandb").mkdir(parents=True, exist_ok=True)
    return root


_OURS: dict[str, str] = {}
"""Variables that this module has set, so that a second run moves them and a user's are kept."""


def _run_id(folder: Path, *, renew: bool = False) -> str:
    """Returns the id of the folder's W&B run: a continued run goes on under the same one."""
    file = folder / "wandb" / "run-id.txt"
    if renew or not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:12] + "\n", encoding="utf-8")
    return file.read_text(encoding="utf-8").strip()


def _unique_tags(tags: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(tag[:64] for tag in tags if tag))  # W&B refuses longer ones


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """One table row: parts become columns of their own, conversations and lists become text."""
    flat: dict[str, Any] = {}
    for key, value in plain(row).items():
        if key == "parts" and isinstance(value, dict):
            flat |= value
        else:
            flat[key] = str(value) if isinstance(value, list | dict) else value
    return flat


def _where(run: Any, mode: str) -> str:
    if mode == "online":
        return f"W&B: {run.url}"
    return f"W&B offline; send it later with: wandb sync {Path(run.dir).parent}"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=3)

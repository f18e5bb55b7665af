"""Weights & Biases as a tracker.

Without a stored key a run is tracked offline, and ``instructrec runs sync`` sends it later.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from instructrec.experiments.jsonl import plain
from instructrec.experiments.tracking import (
    About,
    Distributions,
    Level,
    TrackingConfig,
    flat_row,
    reason,
    warn,
)
from instructrec.redaction import redacted

_INIT_TIMEOUT_S = 30
_FLUSH_S = 5
_EXIT_CODES = {"finished": 0, "failed": 1, "interrupted": 75}
_BINS = 32
_TITLE_CHARS = 60
_INCREMENTS = 25
"""Each increment of a table names all before it, so a long run sends them ever more rarely: every
update at first, every second one after so many increments, every third after twice as many."""
_SENT: list[Any] = []
"""In place of each row that was sent, so that a long run keeps no text of it in memory."""
_BY_STEP = ("sft", "dpo")
"""Metrics that are logged by optimizer steps, not by updates."""
_AXES = {"sft": "sft/step", "dpo": "sft/step", "reward-model": "rm/step"}
"""Kind of run whose numbers stand over something else than updates."""
_BEST = {
    "eval/total/mean": "max,last",
    "reward/total/mean": "max,last",
    "sft/val_loss": "min,last",
    "dpo/val_loss": "min,last",
    "ppo/kl_ref": "max,last",
}
"""Numbers whose best or worst is shown in the table of runs, beside the latest."""


class WandbTracker:
    """Mirrors a run to an open W&B run; the first exception switches it off with one warning."""

    def __init__(self, wandb: Any, run: Any, mode: str) -> None:
        self._wandb = wandb
        self._run = run
        self._table: Any = None
        self._increments = 0
        self._unsent = 0
        self._update = 0
        self.mode = mode
        self.where = _where(run, mode)

    def log(self, metrics: Mapping[str, Any], spread: Distributions | None = None) -> None:
        """Sends the numbers of one update (without ``step=``: W&B drops steps that go back)."""

        def send(run: Any) -> None:
            values = {key: value for key, value in plain(metrics).items() if value is not None}
            for name, numbers in (spread or {}).items():
                counts = np.histogram(numbers, bins=_BINS)
                values[f"histogram/{name}"] = self._wandb.Histogram(np_histogram=counts)
            run.log(values)

        self._safely(send)

    def log_samples(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows to one growing table, whose columns the first rows decide."""
        if rows:
            self._safely(lambda run: self._append([flat_row(row) for row in rows], run))

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends a whole table."""

        def send(run: Any) -> None:
            table = self._new_table([flat_row(row) for row in rows], "IMMUTABLE")
            run.log({name: table})

        self._safely(send)

    def alert(self, title: str, text: str, level: Level) -> None:
        """Sends an alert, which W&B passes on by mail or chat; nothing happens offline."""
        grave = "ERROR" if level == "error" else "WARN"
        # W&B holds back alerts with one title for a while; each of ours comes once.
        self._safely(
            lambda run: run.alert(
                title=title[:_TITLE_CHARS], text=redacted(text), level=grave, wait_duration=0.001
            )
        )

    def use_policy(self, name: str) -> None:
        """Links the run to the artifact that it started from: online, where there is one."""
        if self.mode == "online" and self._run is not None:
            with suppress(Exception):  # of another project, deleted, never sent: no matter
                self._run.use_artifact(f"{_artifact_name(name)}:latest", type="model")

    def log_policy(self, folder: Path, name: str, metadata: Mapping[str, Any]) -> None:
        """Sends the files of a policy as an artifact; they are not copied first."""

        def send(run: Any) -> None:
            artifact = self._wandb.Artifact(
                _artifact_name(name), type="model", metadata=plain(metadata)
            )
            artifact.add_dir(str(folder.absolute()), policy="immutable", skip_cache=True)
            run.log_artifact(artifact)

        self._safely(send)

    def finish(self, status: str, summary: Mapping[str, Any] | None = None) -> None:
        """Writes ``final/<key>`` scalars into the run's summary and closes the run."""

        def end(run: Any) -> None:
            final = {
                f"final/{key}": value
                for key, value in plain(summary or {}).items()
                if isinstance(value, bool | int | float | str)
            }
            if self._unsent:
                self._send_samples(run)
            run.summary.update({"status": status, **final})
            run.finish(exit_code=_EXIT_CODES.get(status, 1))

        self._safely(end)
        self._run = None

    def abandon(self) -> None:
        """Ends W&B's own process: it does not answer, and the program's end would wait for it."""
        self._run = None
        with suppress(Exception):
            _end_service(self._wandb)

    def _append(self, rows: list[dict[str, Any]], run: Any) -> None:
        if self._table is None:
            self._table = self._new_table(rows, "INCREMENTAL")
        else:
            self._add(self._table, rows)
        self._unsent += 1
        self._update = rows[-1].get("update", 0)
        if self._unsent > self._increments // _INCREMENTS:
            self._send_samples(run)

    def _send_samples(self, run: Any) -> None:
        run.log({"samples": self._table, "train/update": self._update})
        # The next increment begins behind these rows, which W&B counts and reads no more.
        self._table.data[:] = [_SENT] * len(self._table.data)
        self._increments, self._unsent = self._increments + 1, 0

    def _new_table(self, rows: list[dict[str, Any]], log_mode: str) -> Any:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = self._wandb.Table(columns=columns, log_mode=log_mode, allow_mixed_types=True)
        self._add(table, rows)
        return table

    def _add(self, table: Any, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            table.add_data(*(row.get(column) for column in table.columns))

    def _safely(self, action: Callable[[Any], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            if self._run is None:  # abandoned in the meantime, which has been said
                return
            run, self._run = self._run, None
            warn(f"W&B failed and is switched off; the run goes on ({reason(error)})")
            if isinstance(error, ConnectionError):  # its process has died
                self.abandon()
            else:
                with suppress(Exception):
                    run.finish(exit_code=1)


def open_wandb(
    config: TrackingConfig, folder: Path, about: About, wandb: Any = None
) -> tuple[WandbTracker, str]:
    """Opens the W&B run of a run folder.

    Args:
        config: The user's choice; not disabled.
        folder: The run folder.
        about: What the run is.
        wandb: The module; None imports it.

    Returns:
        The tracker, and why it is not online although it should be (empty if it is).
    """
    mode = config.wanted_mode
    # No crash reports about the user's machine unless they asked for them.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    if wandb is None:
        import wandb
    keyless = ""
    if mode in ("auto", "online") and not _has_key(wandb):
        keyless = "no W&B key was found, and nobody is asked for one" if mode == "online" else ""
        mode = "offline"
    mode = "online" if mode == "auto" else mode
    root = _own_folders(Path(config.dir) if config.dir else folder)
    arguments = {
        "project": config.project,
        "entity": config.entity,
        "name": about.name,
        "group": config.group or about.group,
        "job_type": about.job_type,
        "tags": _unique_tags([*about.tags, *config.tags]),
        "config": about.config,
        "dir": str(root.absolute()),
        "id": _run_id(folder),
        "resume": "allow",
        "reinit": "create_new",
    }
    run, mode, problem = _start(wandb, arguments, mode, folder, config.wait_s)
    run.define_metric("train/update")
    run.define_metric("sft/step")
    run.define_metric("rm/step")
    axis = _AXES.get(about.job_type, "train/update")
    run.define_metric("*", step_metric=axis)
    for name in _BY_STEP:
        run.define_metric(f"{name}/*", step_metric="sft/step")
    run.define_metric("rm/*", step_metric="rm/step")
    for key, shown in _BEST.items():
        of_step = key.split("/")[0] in _BY_STEP
        run.define_metric(key, step_metric="sft/step" if of_step else axis, summary=shown)
    return WandbTracker(wandb, run, mode), keyless or problem


def _has_key(wandb: Any) -> bool:
    """Whether a key is known; without one, W&B itself would ask for it at a terminal."""
    given = os.environ.pop("WANDB_MODE", None)  # W&B looks for no key where it says offline
    try:
        return bool(wandb.login(prompt=False, verify=False))
    finally:
        if given is not None:
            os.environ["WANDB_MODE"] = given


def _start(
    wandb: Any, arguments: dict[str, Any], mode: str, folder: Path, wait_s: float
) -> tuple[Any, str, str]:
    """Returns the run, its mode and why the mode is not the wanted one (empty if it is)."""

    def init(mode: str) -> Any:
        # A Settings object is used up by init(), so each call gets its own. Our progress display
        # redraws lines, which a captured console would store by the thousand.
        settings = wandb.Settings(
            init_timeout=_INIT_TIMEOUT_S,
            finish_timeout=0.9 * wait_s,  # before the run loses its patience: this has a reason
            finish_timeout_raises=True,
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
            return init("offline"), "offline", f"W&B cannot be reached ({reason(error)})"
    return init("offline"), "offline", ""


def _end_service(wandb: Any) -> None:
    """Ends the process that W&B has started beside this one, and what waits for it at the exit."""
    import psutil

    connection = getattr(wandb.setup(), "_connection", None)
    if connection is not None:
        connection._cleanup()  # takes its hook off the exit; there is no public way
    for child in psutil.Process().children():
        if child.name().startswith("wandb"):
            child.kill()


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


def _artifact_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:120]


def _where(run: Any, mode: str) -> str:
    if mode == "online":
        return f"W&B: {run.url}"
    return f"W&B offline; send it later with: wandb sync {Path(run.dir).parent}"

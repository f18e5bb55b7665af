"""W&B files that runs have kept on the disk: finding them, and sending them.

``wandb sync`` does the sending, and leaves a mark beside what it has sent. A table or artifact is
kept under its absolute path, so that only the machine and place of the run can send it whole.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from instructrec.errors import CheckpointError, TrackingError
from instructrec.experiments.listing import table
from instructrec.experiments.runs_reading import size_of
from instructrec.experiments.runs_table import human_bytes
from instructrec.experiments.yaml_files import read_config

_CONNECT_S = 10.0
Send = Callable[[Sequence[Path]], None]
"""Sends folders of offline runs; what it could not send stays without a mark."""


@dataclass(frozen=True)
class OfflineFiles:
    """What one start of a run has kept for W&B."""

    run: str
    """The run's name."""
    folder: Path
    """W&B's folder, ``offline-run-<date>-<id>``."""
    size_bytes: int
    """All files of it."""

    @property
    def is_sent(self) -> bool:
        """Whether ``wandb sync`` has sent it, and nothing was written since."""
        return any(not _is_stale(mark) for mark in self.folder.glob("*.wandb.synced"))


def _is_stale(mark: Path) -> bool:
    """Whether the file of a mark has grown since the mark was made."""
    file = mark.with_suffix("")
    return file.exists() and file.stat().st_mtime > mark.stat().st_mtime


def find_offline(runs: Mapping[str, Path]) -> list[OfflineFiles]:
    """Finds what runs have kept for W&B, sent or not; one folder for each start of a run.

    Args:
        runs: Name -> folder of a run or a comparison.
    """
    return [
        OfflineFiles(name, folder, size_of(folder))
        for name, path in runs.items()
        for folder in _offline_folders(path)
    ]


def sync(
    found: Sequence[OfflineFiles],
    *,
    dry_run: bool = False,
    has_key: Callable[[], bool] | None = None,
    obstacle: Callable[[], str] | None = None,
    send: Send | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Lists what was kept, and sends what was not sent.

    Args:
        found: What the runs have kept.
        dry_run: Only list it.
        has_key: Says whether there is a key of W&B; None looks for the stored one.
        obstacle: Says why the server cannot be reached, or nothing; None tries it.
        send: What sends; None runs ``wandb sync``.
        say: Receives lines for people.

    Raises:
        TrackingError: There is no key or no network, or something could not be sent.
    """
    if not found:
        say("no offline W&B files: nothing to send.")
        return
    say(_listed(found))
    unsent = [files for files in found if not files.is_sent]
    if dry_run or not unsent:
        say(f"\n{len(unsent)} of {len(found)} to send." if unsent else "\nall of it was sent.")
        return
    if not (has_key or stored_key)():
        raise TrackingError(
            f"{len(unsent)} of {len(found)} offline runs are not sent, because no W&B key was "
            "found: expected one in WANDB_API_KEY, or stored by `wandb login`. Give one and say "
            "`instructrec runs sync` again; the files stay where they are."
        )
    if why := (obstacle or unreachable)():
        raise TrackingError(
            f"{len(unsent)} of {len(found)} offline runs are not sent, because W&B's server cannot "
            f"be reached ({why}): expected a network. Try again with one; the files stay."
        )
    for files in unsent:
        for mark in files.folder.glob("*.wandb.synced"):  # W&B must not take it for the new one
            mark.unlink()
    (send or _send)([files.folder for files in unsent])
    missing = [str(files.folder) for files in unsent if not files.is_sent]
    if missing:
        raise TrackingError(
            f"{len(missing)} of {len(unsent)} offline runs could not be sent: "
            f"{', '.join(missing)}. What W&B says stands above; the files stay where they are."
        )
    say(f"\n{len(unsent)} sent.")


def stored_key() -> bool:
    """Says, without asking anybody, whether W&B knows a key for its server."""
    # Somebody wants to send: a mode for new runs does not matter, and would hide the key.
    os.environ.pop("WANDB_MODE", None)
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def unreachable() -> str:
    """Says why W&B's server cannot be reached, within seconds; ``wandb sync`` would try for hours.

    Returns:
        The reason; empty where it answers, or where a proxy stands in between.
    """
    import wandb

    if urllib.request.getproxies():
        return ""
    server = urlsplit(wandb.setup().settings.base_url)
    port = server.port or (80 if server.scheme == "http" else 443)
    try:
        socket.create_connection((server.hostname or "", port), timeout=_CONNECT_S).close()
    except OSError as error:
        return f"{server.netloc}: {error}"
    return ""


def _send(folders: Sequence[Path]) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", *(str(folder) for folder in folders)]
    subprocess.run(command, check=False, env=environment)


def _listed(found: Sequence[OfflineFiles]) -> str:
    rows = [("run", "W&B", "size", "files")]
    for files in found:
        state = "sent" if files.is_sent else "not sent"
        rows.append((files.run, state, human_bytes(files.size_bytes), str(files.folder)))
    return table(rows)


def _offline_folders(run: Path) -> list[Path]:
    """Those in the run folder, and those where ``tracking.dir`` has put them."""
    folders = sorted((run / "wandb").glob("offline-run-*"))
    try:
        elsewhere = (read_config(run).get("tracking") or {}).get("dir")
        run_id = (run / "wandb" / "run-id.txt").read_text(encoding="utf-8").strip()
    except (CheckpointError, OSError, ValueError, AttributeError):
        return folders
    if elsewhere and run_id:
        folders += sorted((Path(elsewhere) / "wandb").glob(f"offline-run-*-{run_id}*"))
    return folders

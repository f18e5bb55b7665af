"""Folders that cannot be written to: refused at the start, and the end of a run in its course."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from instructrec.crash_points import listening
from instructrec.errors import CheckpointError
from instructrec.experiments.cli import main
from instructrec.experiments.locks import held
from instructrec.experiments.runfolder import RunFolder, RunInfo, read_metrics

NOBODY = 65534
INFO = RunInfo("train", "ppo", "v", 0, "tiny", "task")


@contextmanager
def guest() -> Iterator[Path]:
    """A folder of somebody to whom permissions apply, who we are meanwhile: root ignores them."""
    place = Path(tempfile.mkdtemp())  # those of pytest are closed to others
    was_root = os.geteuid() == 0
    if was_root:
        os.chown(place, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield place
    finally:
        if was_root:
            os.seteuid(0)
        for folder in (place, *place.rglob("*/")):
            folder.chmod(0o700)
        shutil.rmtree(place)


def test_a_run_folder_that_may_not_be_written_to_is_refused_before_anything_is_done() -> None:
    with guest() as place:
        run = RunFolder.create(place / "run", INFO, {})
        before = (run.path / "run.json").read_bytes()
        run.path.chmod(0o500)
        with pytest.raises(CheckpointError, match=r"run cannot be made or held \(it may be read"):
            held(run.path, "train").__enter__()
        assert not list(place.glob(".*.lock"))
        with pytest.raises(CheckpointError, match=r"written to \(Permission denied\).*output\.dir"):
            RunFolder.create(run.path, INFO, {}, resume=True)
        place.chmod(0o500)
        with pytest.raises(CheckpointError, match=r"other cannot be made or held \(Permission"):
            held(place / "other", "train").__enter__()
        assert (run.path / "run.json").read_bytes() == before


def test_what_ended_a_run_is_told_where_its_folder_takes_no_more() -> None:
    with guest() as place:
        folder = RunFolder.create(place / "run", INFO, {})
        with pytest.raises(CheckpointError, match="the reason"), folder:
            folder.path.chmod(0o500)
            raise CheckpointError("the reason")


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_ends_the_run_behind_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "tiny_smoke", "--name", "run", "--tracking.mode", "disabled"]
    assert main([*train, "--output.dir", str(tmp_path)]) == 0  # also reads all that it imports
    with guest() as place:
        train += ["--output.dir", str(place)]
        run = place / "run"
        kept = run / "checkpoints"

        def close(point: str) -> None:
            if point == "update.reported" and kept.exists():
                kept.chmod(0o500)
                run.chmod(0o500)

        with listening(close):
            assert main(train) == 8
        error = capsys.readouterr().err
        assert "cannot write the checkpoint" in error and "Permission denied" in error
        assert "writable again, then resume" in error
        assert [path.name for path in kept.iterdir()] == ["update-000001"]
        assert main([*train, "--resume"]) == 8
        assert "it may be read only" in capsys.readouterr().err
        assert main([*train, "--overwrite"]) == 8
        assert [path.name for path in kept.iterdir()] == ["update-000001"]
        run.chmod(0o700)
        kept.chmod(0o700)
        assert main([*train, "--resume"]) == 0
        assert [row["train/update"] for row in read_metrics(run)] == [1, 2]
        assert RunFolder.open(run).record()["status"] == "finished"


@pytest.mark.slow
def test_a_read_only_disk_is_refused_at_the_start(tmp_path: Path) -> None:
    script = f'mount -t tmpfs -o ro none "{tmp_path}" && exec "$@"'
    before = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if shutil.which("unshare") is None or subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("disks cannot be mounted here")
    train = [sys.executable, "-m", "instructrec.experiments.cli", "train", "tiny_smoke"]
    done = subprocess.run(
        [*before, *train, "--output.dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 8
    assert "Read-only file system" in done.stderr and "Traceback" not in done.stderr
    assert "Choose another one" in done.stderr

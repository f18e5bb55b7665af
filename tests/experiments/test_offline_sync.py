"""``instructrec runs sync``: what runs have kept for W&B is found, listed and sent."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from instructrec.errors import TrackingError
from instructrec.experiments.cli import main
from instructrec.experiments.offline_sync import OfflineFiles, find_offline, sync
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.runs_commands import remove
from instructrec.experiments.runs_reading import read_run, read_runs

INFO = RunInfo("train", "ppo", "ppo-parity", 1, "tiny", "parity")


def make_run(root: Path, name: str, starts: Sequence[str], **tracking: str) -> RunFolder:
    """A finished run with W&B files of some starts; ``+`` marks one that was sent."""
    run = RunFolder.create(root / name, INFO, {"tracking": tracking})
    run.finish("finished")
    place = Path(tracking.get("dir") or run.path) / "wandb"
    for start in starts:
        folder = place / f"offline-run-{start.rstrip('+')}-id{name}"
        folder.mkdir(parents=True)
        (folder / f"run-id{name}.wandb").write_bytes(b"0" * 100)
        if start.endswith("+"):
            (folder / f"run-id{name}.wandb.synced").touch()
    (run.path / "wandb").mkdir(exist_ok=True)
    (run.path / "wandb" / "run-id.txt").write_text(f"id{name}\n")
    return run


def no_obstacle() -> str:
    return ""


def found_in(root: Path) -> list[OfflineFiles]:
    return find_offline({line.name: line.path for line in read_runs(root)[0]})


def sender(works: Callable[[Path], bool] = lambda folder: True) -> Callable[..., None]:
    """Sends nothing, and leaves the mark that ``wandb sync`` leaves."""

    def send(folders: Sequence[Path]) -> None:
        for folder in folders:
            if works(folder):
                (file,) = folder.glob("*.wandb")
                file.with_name(file.name + ".synced").touch()

    return send


def test_files_of_every_start_are_found_with_their_state(tmp_path: Path) -> None:
    make_run(tmp_path, "a", ["20260101_000000+", "20260102_000000"])
    make_run(tmp_path, "b", [])
    states = [(f.run, f.is_sent, f.size_bytes) for f in found_in(tmp_path)]
    assert states == [("a", True, 100), ("a", False, 100)]


def test_files_that_a_run_has_put_elsewhere_are_found(tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    make_run(tmp_path / "runs", "a", ["20260101_000000"], dir=elsewhere)
    make_run(tmp_path / "runs", "b", ["20260101_000000"], dir=elsewhere)
    folders = [(f.run, f.folder.name) for f in found_in(tmp_path / "runs")]
    assert folders == [(n, f"offline-run-20260101_000000-id{n}") for n in ("a", "b")]


def test_only_what_was_not_sent_is_sent(tmp_path: Path) -> None:
    make_run(tmp_path, "a", ["20260101_000000+", "20260102_000000"])
    given, said = list[Path](), list[str]()

    def send(folders: Sequence[Path]) -> None:
        given.extend(folders)
        sender()(folders)

    sync(found_in(tmp_path), has_key=lambda: True, obstacle=no_obstacle, send=send, say=said.append)
    assert [folder.name for folder in given] == ["offline-run-20260102_000000-ida"]
    assert said[-1].strip() == "1 sent."
    sync(found_in(tmp_path), has_key=lambda: True, obstacle=no_obstacle, send=send, say=said.append)
    assert len(given) == 1 and said[-1].strip() == "all of it was sent."


def test_a_dry_run_needs_no_key_and_sends_nothing(tmp_path: Path) -> None:
    make_run(tmp_path, "a", ["20260101_000000"])
    said: list[str] = []
    sync(found_in(tmp_path), dry_run=True, say=said.append)
    assert "not sent" in said[0] and "offline-run-20260101_000000-ida" in said[0]
    assert not found_in(tmp_path)[0].is_sent


def test_no_key_is_said_plainly(tmp_path: Path) -> None:
    make_run(tmp_path, "a", ["20260101_000000"])
    with pytest.raises(TrackingError, match=r"no W&B key.*wandb login"):
        sync(found_in(tmp_path), has_key=lambda: False, send=sender(), say=lambda _: None)
    assert not found_in(tmp_path)[0].is_sent


def test_no_network_is_said_plainly(tmp_path: Path) -> None:
    make_run(tmp_path, "a", ["20260101_000000"])
    with pytest.raises(TrackingError, match=r"cannot be reached \(the cable is out\)"):
        sync(
            found_in(tmp_path),
            has_key=lambda: True,
            obstacle=lambda: "the cable is out",
            send=sender(),
            say=lambda _: None,
        )
    assert not found_in(tmp_path)[0].is_sent


def test_what_could_not_be_sent_is_named(tmp_path: Path) -> None:
    make_run(tmp_path, "a", ["20260101_000000"])
    make_run(tmp_path, "b", ["20260101_000000"])
    only_a = sender(lambda folder: folder.name.endswith("ida"))
    with pytest.raises(TrackingError, match=r"1 of 2 .*-idb"):
        sync(
            found_in(tmp_path),
            has_key=lambda: True,
            obstacle=no_obstacle,
            send=only_a,
            say=lambda _: None,
        )


def test_nothing_to_send_is_no_mistake(tmp_path: Path) -> None:
    said: list[str] = []
    sync([], say=said.append)
    assert said == ["no offline W&B files: nothing to send."]


def test_deleting_a_run_mentions_what_was_not_sent(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", ["20260101_000000"])
    said: list[str] = []
    remove([read_run(run.path)], ask=lambda _: False, say=said.append)
    assert any("not sent" in line for line in said)
    assert run.path.exists()


def test_the_files_of_a_comparison_are_sent_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, "a", ["20260101_000000"])
    folder = tmp_path / "compare-a-vs-b"
    (folder / "wandb" / "offline-run-20260102_000000-x").mkdir(parents=True)
    (folder / "compare.json").write_text("{}")
    assert main(["runs", "sync", "--dry_run", "--dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 to send" in shown and "compare-a-vs-b" in shown
    for named in ("a", "compare-*"):
        assert main(["runs", "sync", named, "--dry_run", "--dir", str(tmp_path)]) == 0
        assert "1 of 1 to send" in capsys.readouterr().out


def test_every_name_has_to_mean_something(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        make_run(tmp_path, name, ["20260101_000000"])
    command = ["runs", "sync", "first", "secnd", "--dry_run", "--dir", str(tmp_path)]
    assert main(command) == 2
    assert "'secnd'" in (said := capsys.readouterr().err) and "'second'" in said


@pytest.mark.slow
def test_the_command_without_key_or_network_fails_and_a_dry_run_does_not(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "a", ["20260101_000000"])
    environment = os.environ | {"HOME": str(tmp_path), "WANDB_MODE": "offline"}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9"}
    environment.pop("WANDB_API_KEY", None)
    command = [sys.executable, "-m", "instructrec.experiments.cli", "runs", "sync"]
    key = {"WANDB_API_KEY": "0" * 40}
    for extra, more, code, words in (
        ([], {}, 9, "no W&B key"),
        ([], key, 9, "cannot be reached (127.0.0.1:9"),
        (["--dry_run"], {}, 0, "1 of 1 to send"),
    ):
        done = subprocess.run(
            [*command, *extra],
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, done.stderr
        assert words in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_files_that_have_grown_since_they_were_sent_are_sent_again(tmp_path: Path) -> None:
    make_run(tmp_path, "a", ["20260101_000000+"])
    (found,) = found_in(tmp_path)
    (file,) = found.folder.glob("*.wandb")
    mark = file.with_name(file.name + ".synced")
    os.utime(mark, (1, 1))
    assert not found.is_sent
    sync([found], has_key=lambda: True, obstacle=no_obstacle, send=sender(), say=lambda _: None)
    assert found.is_sent and mark.stat().st_mtime > 1


def test_a_running_run_is_left_out_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "a", ["20260101_000000"])
    record = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(record | {"status": "running"}))
    command = ["runs", "sync", "--dir", str(tmp_path), "--dry_run"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "'a' says that it is running: left out" in told and "nothing to send" in told
    assert main([*command, "--force"]) == 0
    assert "1 of 1 to send" in capsys.readouterr().out

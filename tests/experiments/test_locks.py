"""One process at a time: who is refused, who is not, and what is left of the lock."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import CheckpointError
from instructrec.experiments.config import EvaluateConfig, OutputConfig
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.locks import held


def hold(path: Path, shared: bool, said: Connection) -> None:
    with held(path, "train", shared=shared):
        said.send(os.getpid())
        signal.pause()


class Holder:
    """Another process that holds a folder until it is killed."""

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        context = multiprocessing.get_context("fork")
        hears, says = context.Pipe()
        self.process: Any = context.Process(target=hold, args=(path, shared, says))
        self.process.start()
        self.pid = hears.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    with Holder(folder) as other:
        said = rf"mine is in use.*\(train: {other.pid} on "
        with pytest.raises(CheckpointError, match=said), held(folder, "train"):
            raise AssertionError("two are at work")
    assert CheckpointError.exit_code == 8


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with Holder(tmp_path / "mine"):
        pass
    lock = tmp_path / ".mine.lock"
    assert lock.exists()
    with held(tmp_path / "mine", "sft"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_for_a_lock_alone_goes_with_it(tmp_path: Path) -> None:
    with held(tmp_path / "runs" / "deep" / "mine", "train"):
        assert (tmp_path / "runs" / "deep").is_dir()
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "runs" / "mine", "train"):
        (tmp_path / "runs" / "mine").mkdir()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


def test_several_may_share_but_not_with_one_that_wants_it_alone(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with Holder(folder, shared=True):
        with held(folder, "evaluate", shared=True):
            pass
        assert (tmp_path / ".mine.lock").exists()  # the other one still has it
        with pytest.raises(CheckpointError, match="in use"), held(folder, "train"):
            pass
    refused = pytest.raises(CheckpointError, match="in use")
    with held(folder, "train"), refused, held(folder, "evaluate", shared=True):
        pass


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(CheckpointError, match="cannot be made or held")
    with refused, held(tmp_path / "file" / "mine", "train"):
        pass


def test_the_same_evaluation_runs_once_at_a_time(tmp_path: Path) -> None:
    config = EvaluateConfig(task="parity", limit=4, output=OutputConfig(dir=str(tmp_path)))

    def measure() -> Any:
        return run_evaluation("oracle", config, overwrite=True, say=lambda text: None)

    file = measure().path
    assert file is not None
    folder = file.parent.parent
    with Holder(folder), pytest.raises(CheckpointError, match="in use"):
        measure()
    assert len(measure().rows) == 4  # after a kill, too
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]

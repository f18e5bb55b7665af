"""How several processes end when one of them fails where the others do not look."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from instructrec import endings, processes
from instructrec.errors import DataError, PolicyError, ProcessError, RewardError

TwoProcesses = Callable[[Callable[[], Any]], list[Any]]
Launcher = Callable[[int], list[dict[str, str]]]
OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "ALIKE", 0.3)


def fails_in(number: int, error: BaseException) -> Callable[[], None]:
    """Work that fails in one process while the other waits for its share of a sum."""

    def work() -> None:
        total = [torch.ones(2)]
        processes.sum_(total)
        if processes.rank() == number:
            raise error
        processes.sum_(total)

    return work


def exit_code(end: BaseException) -> Any:
    assert isinstance(end, SystemExit)
    return end.code


def test_the_main_process_says_which_one_ran_out_of_memory(
    in_two_processes: TwoProcesses, capfd: pytest.CaptureFixture[str]
) -> None:
    main, other = in_two_processes(fails_in(1, OUT_OF_MEMORY))
    assert isinstance(main, ProcessError)
    said = "OutOfMemoryError: CUDA out of memory. (process 1 of 2); its traceback stands above."
    assert str(main) == said
    assert exit_code(other) == main.exit_code == 1
    assert capfd.readouterr().err.count("OutOfMemoryError: CUDA out of memory.") == 1


def test_an_error_of_ours_ends_all_in_its_class_with_its_code_and_is_told_once(
    in_two_processes: TwoProcesses, capfd: pytest.CaptureFixture[str]
) -> None:
    main, other = in_two_processes(fails_in(1, PolicyError("no model.")))
    assert isinstance(main, PolicyError) and str(main) == "no model. (process 1 of 2)"
    assert exit_code(other) == PolicyError.exit_code
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("error", "code"), [(OUT_OF_MEMORY, 1), (DataError("no rows."), 3)])
def test_what_the_main_process_fails_at_it_raises_itself(
    error: Exception, code: int, in_two_processes: TwoProcesses
) -> None:
    main, other = in_two_processes(fails_in(0, error))
    assert type(main) is type(error) and str(main) == str(error)
    assert exit_code(other) == code


def test_an_error_that_all_meet_is_told_by_the_main_one(in_two_processes: TwoProcesses) -> None:
    def work() -> None:
        if processes.is_main():
            time.sleep(1)  # it comes later than the others have patience
        raise RewardError("all rewards failed.")

    main, other = in_two_processes(work)
    assert isinstance(main, RewardError) and str(main) == "all rewards failed."
    assert exit_code(other) == RewardError.exit_code


def test_a_process_that_the_main_one_does_not_hear_tells_itself(
    in_two_processes: TwoProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "TELLING", 0.5)

    def work() -> str:
        if processes.rank() == 1:
            raise DataError("mine.")
        time.sleep(2)
        return "well"

    main, other = in_two_processes(work)
    assert main == "well"
    assert isinstance(other, DataError) and str(other) == "mine."


def test_a_mistake_in_a_call_is_no_lost_process(in_two_processes: TwoProcesses) -> None:
    def work() -> str:
        try:
            processes.broadcast_([torch.eye(2).to_sparse()])
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"
        return "sent"

    for said in in_two_processes(work):
        assert said.startswith("NotImplementedError") and "SparseCPU" in said


def _ends_by(number: int, environment: dict[str, str], file: Path) -> None:
    """Sends itself a signal in the second process; writes how it ends."""
    os.environ |= environment
    # A shell ignores interruptions on behalf of what it starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with processes.joined("cpu"):
            processes.gather(0)
            if processes.rank() == 1:
                os.kill(os.getpid(), number)
            processes.gather(0)
    except BaseException as error:
        file.write_text(f"{type(error).__name__}: {error}")


def ends_by(number: int, launcher: Launcher, folder: Path) -> tuple[list[int | None], list[str]]:
    """Exit codes of two processes, of which a signal reaches the second, and what they said."""
    fork = multiprocessing.get_context("fork")
    files = [folder / f"said-{i}.txt" for i in range(2)]
    started = [
        fork.Process(target=_ends_by, args=(number, environment, file))
        for environment, file in zip(launcher(2), files, strict=True)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=60)
        process.kill()
    return [p.exitcode for p in started], [f.read_text() if f.exists() else "" for f in files]


def test_an_interruption_of_one_interrupts_all(tmp_path: Path, launcher: Launcher) -> None:
    codes, said = ends_by(signal.SIGINT, launcher, tmp_path)
    assert codes == [0, 0]
    assert said == ["KeyboardInterrupt:  (process 1 of 2)", "KeyboardInterrupt: "]


def test_a_killed_process_is_reported_as_gone(
    tmp_path: Path, launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "HEARING", 0.1)
    codes, said = ends_by(signal.SIGKILL, launcher, tmp_path)
    assert codes == [0, -signal.SIGKILL]
    assert said[0].startswith("ProcessError: another one of 2 processes has gone without a word")

"""What every test process starts with: one thread, no network, tracking that stays on disk."""

from __future__ import annotations

import multiprocessing
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Set before anything imports torch, transformers or wandb, which read them once.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "agg"

# A deadline would measure how busy the machine is, not what the code does.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Several test processes share the machine; torch is not imported for tests without it."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _wandb_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Runs that a test opens are written to a temporary folder, not to the working tree."""
    folder = tmp_path_factory.mktemp("wandb")
    os.environ["WANDB_DIR"] = str(folder)
    yield folder
    del os.environ["WANDB_DIR"]


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def printed_by(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], str]:
    """Runs the code that stands in the card of a model's folder there; returns what it prints."""

    def run(folder: Path) -> str:
        card = (folder / "README.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        capsys.readouterr()
        with monkeypatch.context() as there:
            there.chdir(folder)
            exec(code, {})
        return capsys.readouterr().out.strip()

    return run


def _as_process(work: Callable[[], Any], environment: dict[str, str], file: Path) -> None:
    """Runs the work as one process of a group and writes what it returned, or raised."""
    import torch
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from instructrec import processes

    os.environ |= environment
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()  # what a test before the fork left behind
    try:
        with processes.joined("cpu"):
            result = work()
    except (Exception, SystemExit) as error:
        result = error
    torch.save(result, file)


@pytest.fixture
def launcher() -> Callable[[int], list[dict[str, str]]]:
    """What a launcher puts into the environment of each of several processes."""

    def environments(count: int) -> list[dict[str, str]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            common = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        common["WORLD_SIZE"] = str(count)
        return [{**common, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]

    return environments


@pytest.fixture
def in_two_processes(
    tmp_path: Path, launcher: Callable[[int], list[dict[str, str]]]
) -> Callable[[Callable[[], Any]], list[Any]]:
    """Runs a function in two processes of one group; returns what each returned, or its error."""

    def run(work: Callable[[], Any]) -> list[Any]:
        import torch

        fork = multiprocessing.get_context("fork")  # the libraries are imported once
        files = [tmp_path / f"process-{number}.pt" for number in range(2)]
        started = [
            fork.Process(target=_as_process, args=(work, environment, file))
            for environment, file in zip(launcher(2), files, strict=True)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(timeout=240)
            process.kill()
        return [torch.load(file, weights_only=False) for file in files]

    return run

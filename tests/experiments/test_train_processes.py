"""Whole commands under a launcher: one run folder, one voice, and an end that is everybody's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from instructrec import processes
from instructrec.errors import ConfigError, PolicyError
from instructrec.experiments.cli import main
from instructrec.experiments.config import OutputConfig, TaskConfig, TrainConfig
from instructrec.experiments.jsonl import read_rows
from instructrec.experiments.runfolder import RunFolder, read_metrics
from instructrec.experiments.tracking import TrackingConfig
from instructrec.experiments.train import run_training
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import PPOConfig

TRAIN = [sys.executable, "-m", "instructrec.experiments.train", "tiny_smoke"]
Launcher = Callable[[int], list[dict[str, str]]]


def start(folder: Path, launcher: Launcher, *arguments: str) -> list[subprocess.Popen[str]]:
    """Starts two processes as a launcher does, but leaves their ends apart."""
    return [
        subprocess.Popen(
            [*TRAIN, *arguments],
            cwd=folder,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in launcher(2)
    ]


def ends(started: list[subprocess.Popen[str]]) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, output and errors of all."""
    said = [process.communicate(timeout=240) for process in started]
    codes = [process.returncode for process in started]
    return codes, [output for output, _ in said], [error for _, error in said]


@pytest.mark.slow
def test_accelerate_launch_writes_one_run(tmp_path: Path, root: Path) -> None:
    config = root / "experiments" / "accelerate" / "cpu-2.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    command = [*launch, *TRAIN[1:], "--policy.device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in each of 2 processes") == 1
    folder = RunFolder.open(tmp_path / "runs" / "tiny-smoke-s0")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny-smoke-s0"]
    assert (folder.record()["status"], folder.record()["processes"]) == ("finished", 2)
    rows = read_metrics(folder.path)
    assert [row["train/update"] for row in rows] == [1, 2]
    assert [row["rollout/episodes"] for row in rows] == [8, 8]
    samples = read_rows(folder.samples_path)
    assert len(samples) == 16 and len({row["id"] for row in samples}) == 16
    assert (folder.policy / "model.safetensors").is_file()
    assert folder.config()["ppo"]["episodes_per_update"] == 8


@pytest.mark.slow
def test_a_launcher_that_would_split_the_weights_is_refused(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp"]
    launch += ["--num_processes", "2", "--main_process_port", "0", *TRAIN[1:]]
    done = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode != 0
    assert "instructrec: error: the launcher asks for FSDP (ACCELERATE_USE_FSDP)" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_reward_that_fails_in_one_process_ends_all_with_its_code(
    tmp_path: Path, launcher: Launcher
) -> None:
    (tmp_path / "broken.py").write_text(
        "import os\n\n\ndef score(completions, **columns):\n"
        "    if os.environ['RANK'] == '1':\n        raise ValueError('no score here')\n"
        "    return [0.0] * len(completions)\n"
    )
    reward = ["--rewards.broken", "broken.py:score"]
    codes, outputs, errors = ends(start(tmp_path, launcher, *reward))
    assert codes == [5, 5], errors
    assert "4 of 8 rewards of this rollout failed" in errors[0] and "no score here" in errors[0]
    assert (outputs[1], errors[1]) == ("", "")
    record = RunFolder.open(tmp_path / "runs" / "tiny-smoke-s0").record()
    assert record["status"] == "failed" and "no score here" in record["error"]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_behind_a_checkpoint_that_they_resume(
    tmp_path: Path, launcher: Launcher
) -> None:
    many = ["--ppo.num_updates", "400", "--ppo.eval_every", "0"]
    started = start(tmp_path, launcher, *many)
    folder = RunFolder(tmp_path / "runs" / "tiny-smoke-s0")
    deadline = time.monotonic() + 120
    while not (folder.metrics_path.exists() and folder.metrics_path.stat().st_size):
        assert time.monotonic() < deadline and all(p.poll() is None for p in started)
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    codes, _, errors = ends(started)
    assert codes == [75, 75], errors
    assert "--resume goes on from there" in errors[0] and "Traceback" not in "".join(errors)
    assert folder.record()["status"] == "interrupted"
    done = int(read_metrics(folder.path)[-1]["train/update"])
    assert done < 400
    more = ["--ppo.num_updates", str(done + 1), "--ppo.eval_every", "0"]
    codes, outputs, errors = ends(start(tmp_path, launcher, *more, "--resume"))
    assert codes == [0, 0], errors
    assert f"resuming after update {done}" in outputs[0]
    updates = [row["train/update"] for row in read_metrics(folder.path)]
    assert updates == [*range(1, done + 2)]


@pytest.mark.parametrize(
    "arguments", [["train", "tiny_smoke", "--sanity"], ["sft", "short_answers_sft"], ["probe"]]
)
def test_what_needs_one_process_is_refused_to_several(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(arguments) == 2
    assert "runs in one process, but WORLD_SIZE = 2" in capsys.readouterr().err


def test_a_share_that_does_not_come_out_even_makes_no_folder(
    tmp_path: Path, in_two_processes: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(
        task=TaskConfig("closed_answers"),
        rewards={"exact_match": 1.0},
        policy=PolicyConfig(model="tiny", device="cpu"),
        ppo=PPOConfig(episodes_per_update=10, num_mini_batches=2),
    )
    said, other = in_two_processes(lambda: run_training(config))
    assert isinstance(said, ConfigError) and "shared by 2 processes" in str(said)
    assert isinstance(other, SystemExit) and other.code == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_runs_out_of_memory_ends_both_and_the_run_says_which(
    number: int,
    tmp_path: Path,
    in_two_processes: Callable[..., list[Any]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    from instructrec.rl.learner import PPOLearner  # imported once, before the processes part
    from instructrec.rl.ppo import train_ppo

    class Large(PPOLearner):
        def micro_batch_loss(self, rows: list[int]) -> torch.Tensor:
            if processes.rank() == number:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().micro_batch_loss(rows)

    small = PPOConfig(num_updates=1, episodes_per_update=4, num_mini_batches=1, response_length=4)
    config = TrainConfig(
        task=TaskConfig("parity", options={"size": 40}),
        rewards={"exact_match": 1.0},
        policy=PolicyConfig(model="tiny", device="cpu", dtype="float32"),
        ppo=small,
        tracking=TrackingConfig(mode="disabled"),
        output=OutputConfig(dir=str(tmp_path)),
    )
    main, other = in_two_processes(
        lambda: run_training(config, train_ppo=partial(train_ppo, learner=Large))
    )
    said = "PolicyError: out of memory in the training step with one episode at a time."
    record = RunFolder.open(config.resolved().folder).record()
    assert record["status"] == "failed" and said in record["error"]
    assert isinstance(other, SystemExit) and other.code == PolicyError.exit_code
    if number == 1:
        assert isinstance(main, PolicyError) and str(main).endswith("(process 1 of 2)")
        assert said not in capfd.readouterr().err  # the main process says it, once
    else:
        assert isinstance(main, PolicyError)


def test_the_launch_files_name_the_launcher_that_works(root: Path) -> None:
    files = sorted((root / "experiments" / "accelerate").glob("*.yaml"))
    assert [file.stem for file in files] == ["cpu-2", "gpu-8", "nodes-2x8"]
    for file in files:
        settings = yaml.safe_load(file.read_text())
        assert settings["distributed_type"] == "MULTI_GPU" and settings["mixed_precision"] == "no"
        assert settings["num_processes"] % settings["num_machines"] == 0

"""Whole runs with the real W&B: it holds what the folder holds, and no trouble stops a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from instructrec.experiments.jsonl import Row
from instructrec.experiments.runfolder import RunFolder, read_metrics, read_rows

pytestmark = pytest.mark.slow
NAMES = {"name": "ppo-parity-s1", "job_type": "train", "group": "ppo-parity"}
NO_SERVER = "http://127.0.0.1:9"
TRAIN = (
    *(sys.executable, "-m", "instructrec.experiments.cli", "train", "tiny_smoke"),
    *("--name", "run", "--ppo.num_updates", "3", "--eval.limit", "4"),
)


def environment(home: Path, **more: str) -> dict[str, str]:
    """That of a user who has never heard of W&B."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "TRACKIO_"))}
    return {**kept, "HOME": str(home), "WANDB_BASE_URL": NO_SERVER, **more}


def train(place: Path, *options: str, before: tuple[str, ...] = (), **variables: str) -> Any:
    return subprocess.run(
        [*before, *TRAIN, *options],
        cwd=place,
        env=environment(place, **variables),
        capture_output=True,
        text=True,
        timeout=280,
        stdin=subprocess.DEVNULL,
    )


def inspect(folder: Path) -> list[Row]:
    """The records of an offline W&B run, by W&B's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    told = subprocess.run(
        command,
        check=True,
        env=environment(folder.parent),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return [json.loads(line) for line in told.stdout.splitlines()]


def offline_folder(run: RunFolder) -> Path:
    (found,) = (run.path / "wandb").glob("offline-run-*")
    return found


def history_of(records: list[Row]) -> list[Row]:
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def test_wandb_holds_what_the_run_folder_holds(tmp_path: Path) -> None:
    done = train(tmp_path, "--tracking.log_policy", "true")  # without a key: offline
    assert done.returncode == 0, done.stderr
    run = RunFolder.open(tmp_path / "runs" / "run")
    assert "W&B offline; send it later" in done.stdout
    records = inspect(offline_folder(run))
    rows, history = read_metrics(run.path), history_of(records)
    sent = [item for item in history if "time/total_s" in item]
    assert len(rows) == len(sent) == 3
    for row, item in zip(rows, sent, strict=True):
        known = {key: value for key, value in row.items() if value is not None}
        assert {key: item[key] for key in known} == pytest.approx(known)
    names = {key.split(".")[0] for key in sent[0] if key.startswith("histogram/")}
    assert {"histogram/total", "histogram/response_len", "histogram/advantage"} <= names
    _check_samples(run)
    _check_config_and_summary(run, records)
    artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
    models = [artifact for artifact in artifacts if artifact.get("type") == "model"]
    assert len(models) == 1
    assert run.summary()["policy_hash"] in json.dumps(models[0])


def _check_samples(run: RunFolder) -> None:
    """The increments of the table, one after another, are ``samples.jsonl``."""
    files = sorted(
        offline_folder(run).glob("files/media/table/samples_*.table.json"),
        key=lambda file: int(file.name.split("_")[1]),
    )
    tables = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    columns = tables[0]["columns"]
    assert {"update", "id", "prompt", "response", "reference", "total", "advantage"} <= set(columns)
    sent = [dict(zip(columns, row, strict=True)) for table in tables for row in table["data"]]
    kept = read_rows(run.samples_path)
    assert [row["id"] for row in sent] == [row["id"] for row in kept]
    for row, expected in zip(sent, kept, strict=True):
        flat = {**expected, **expected["parts"]}
        del flat["parts"]
        assert {key: row[key] for key in flat} == pytest.approx(flat)


def _check_config_and_summary(run: RunFolder, records: list[Row]) -> None:
    about = next(record["run"] for record in records if record["type"] == "run")
    assert (about["display_name"], about["run_group"]) == ("tiny-smoke-s0", "tiny-smoke")
    text = json.dumps(about["config"])
    assert "learning_rate" in text and "git_commit" in text
    final = _summary_of(records)
    assert final["status"] == "finished"
    mean = run.summary()["eval/total/mean"]
    assert final["final/eval/total/mean"] == pytest.approx(mean)


def test_a_key_without_a_network_means_offline(tmp_path: Path) -> None:
    done = train(tmp_path, WANDB_API_KEY="0" * 40)
    assert done.returncode == 0, done.stderr
    run = RunFolder.open(tmp_path / "runs" / "run")
    assert run.record()["status"] == "finished"
    assert "WARNING: W&B cannot be reached" in done.stdout
    folders = list((run.path / "wandb").glob("offline-run-*"))
    assert len(folders) == 1
    assert sum("time/total_s" in item for item in history_of(inspect(folders[0]))) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_wandb_that_dies_or_hangs_stops_neither_the_run_nor_its_end(
    tmp_path: Path, number: signal.Signals
) -> None:
    options = ("--ppo.num_updates", "30", "--ppo.eval_every", "0", "--tracking.wait_s", "3")
    process = subprocess.Popen(
        [*TRAIN, *options],
        cwd=tmp_path,
        env=environment(tmp_path, WANDB_MODE="offline"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    (core,) = [child for child in children if child.name().startswith("wandb")]
    core.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "Traceback" not in error
    assert len(read_metrics(metrics.parent)) == 30
    assert RunFolder.open(metrics.parent).record()["status"] == "finished"


@pytest.fixture
def full_disk(tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    """A folder on a disk of its own with next to no room, and what a command begins with there."""
    folder = tmp_path / "full"
    folder.mkdir()
    script = f'mount -t tmpfs -o size=32k small "{folder}" && exec "$@"'
    before = ("unshare", "-rm", "sh", "-c", script, "sh")
    try:
        made = subprocess.run([*before, "true"], capture_output=True, timeout=60)
    except OSError:
        pytest.skip("there is no unshare here")
    if made.returncode:
        pytest.skip("small disks cannot be mounted here")
    return folder, before


def test_a_full_disk_under_wandb_stops_nothing(
    tmp_path: Path, full_disk: tuple[Path, tuple[str, ...]]
) -> None:
    folder, before = full_disk
    done = train(tmp_path, "--tracking.dir", str(folder), before=before, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    run = RunFolder.open(tmp_path / "runs" / "run")
    assert run.record()["status"] == "finished"
    assert len(read_metrics(run.path)) == 3


def test_a_full_disk_under_the_run_is_one_line(
    tmp_path: Path, full_disk: tuple[Path, tuple[str, ...]]
) -> None:
    folder, before = full_disk
    done = train(tmp_path, "--output.dir", str(folder), before=before, WANDB_MODE="offline")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "free some space" in done.stderr and "Traceback" not in done.stderr


def test_the_real_wandb_records_offline_what_was_logged(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from instructrec.experiments.tracking import TrackingConfig, open_tracking
tracker = open_tracking(TrackingConfig(), Path({str(tmp_path)!r}), **{NAMES!r})
assert tracker.mode == "offline", tracker.mode
for update in (1, 2):
    tracker.log({{"train/update": float(update), "reward/total/mean": update / 10}})
    tracker.log_samples([{{"update": update, "prompt": "2?", "parts": {{"exact": 1.0}}}}])
tracker.finish("finished", {{"eval/total/mean": 0.5}})
"""
    environment = os.environ | {"WANDB_MODE": "offline", "HOME": str(tmp_path / "home")}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    told = subprocess.run(
        command, check=True, env=environment, capture_output=True, text=True, timeout=120
    )
    folder = next((tmp_path / "wandb").glob("offline-run-*"))
    assert f"wandb sync {folder}" in told.stdout
    inspected = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    records = [json.loads(line) for line in inspected.stdout.splitlines()]
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    curve = [
        (h["train/update"], h["reward/total/mean"]) for h in history if "samples" not in str(h)
    ]
    assert curve == [(1, 0.1), (2, 0.2)]
    run = next(r["run"] for r in records if r["type"] == "run")
    assert (run["run_group"], run["job_type"]) == ("ppo-parity", "train")
    summary = [r["summary"]["update"] for r in records if r["type"] == "summary"]
    assert {"final/eval/total/mean": 0.5, "status": "finished"} in summary
    tables = [json.loads(file.read_text()) for file in folder.glob("files/media/table/samples_*")]
    rows = sorted(tuple(table["data"][0]) for table in tables if len(table["data"]) == 1)
    assert rows == [(1, "2?", 1.0), (2, "2?", 1.0)]
    assert not (tmp_path / "home" / ".local").exists()


PIPELINE = """
name: loop
policy: {model: tiny, device: cpu, dtype: float32}
task: {options: {size: 60}}
gold: {digest: "gold.py:digest"}
sft: {demonstrations: 4, max_steps: 1, batch_size: 4}
samples: {limit: 20, n: 3}
mentor: {select: all}
reward_model: {validation_fraction: 0.4, fit: {max_steps: 2, batch_size: 8}}
ppo:
  {num_updates: 2, episodes_per_update: 8, num_mini_batches: 2, response_length: 6, eval_every: 1}
best_of: 3
eval: {limit: 12, validation_limit: 6}
"""
GOLD = '''
def digest(completions, **columns):
    """A number of the text, which hardly any two share."""
    return [sum(i * ord(c) for i, c in enumerate(text, 1)) % 101 / 100 for text in completions]
'''


def test_a_whole_pipeline_stands_in_one_group_of_wandb_with_its_lineage(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text(PIPELINE)
    (tmp_path / "gold.py").write_text(GOLD)
    command = [sys.executable, "-m", "instructrec.experiments.cli", "pipeline", "loop.yaml"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(tmp_path, WANDB_MODE="offline"),
        capture_output=True,
        text=True,
        timeout=560,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    _check_pipeline(tmp_path / "runs" / "loop")


def _check_pipeline(folder: Path) -> None:
    """Group, job types and lineage of its runs, and the numbers of its folders."""
    job_types = {"sft": "sft", "reward-model-1": "reward-model", "ppo-1": "train", ".": "compare"}
    tracked = {path.parent.parent.resolve() for path in folder.rglob("offline-run-*")}
    assert tracked == {(folder / name).resolve() for name in job_types}
    records = {name: inspect(offline_folder(RunFolder(folder / name))) for name in job_types}
    about = {
        name: next(r["run"] for r in found if r["type"] == "run") for name, found in records.items()
    }
    assert {name: found["job_type"] for name, found in about.items()} == job_types
    assert {found["run_group"] for found in about.values()} == {"loop"}
    for name in ("reward-model-1", "ppo-1"):  # both began from the SFT policy
        parent = RunFolder.open(folder / name).info().parent
        assert parent == "runs/loop/sft" and parent in json.dumps(about[name]["config"])
    updates = [item for item in history_of(records["ppo-1"]) if "time/total_s" in item]
    assert [item["reward/gold/mean"] for item in updates] == pytest.approx(
        [row["reward/gold/mean"] for row in read_metrics(folder / "ppo-1")]
    )
    assert _summary_of(records["reward-model-1"])["final/eval/pair_accuracy/mean"] == pytest.approx(
        RunFolder(folder / "reward-model-1").summary()["eval/pair_accuracy/mean"]
    )
    found = json.loads((folder / "pipeline.json").read_text())
    told, gold = _summary_of(records["."]), found["policies"]["SFT"]["gold"]
    assert told["status"] == "finished"
    assert [told[f"final/SFT/gold/{key}"] for key in ("mean", "low", "high")] == pytest.approx(
        [gold[key] for key in ("mean", "low", "high")]
    )
    tables = {
        file.name.split("_")[0] for file in folder.glob("wandb/offline-run-*/files/media/table/*")
    }
    assert {"policies", "differences", "rounds", "points"} <= tables


def _summary_of(records: list[Row]) -> Row:
    final: Row = {}
    for record in records:
        if record["type"] == "summary":
            final |= record["summary"].get("update") or {}
    return final

"""A run goes on with the data that it was started on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructrec.errors import CheckpointError, ConfigError
from instructrec.experiments import data_lock
from instructrec.experiments.config import OutputConfig, TaskConfig, TrainConfig
from instructrec.experiments.data_lock import Splits
from instructrec.experiments.preference_data import PreferenceTask
from instructrec.experiments.reward_model_config import RewardModelConfig, RewardOutputConfig
from instructrec.experiments.reward_run import run_reward_training
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.setup_run import make_materials
from instructrec.experiments.tracking import TrackingConfig
from instructrec.experiments.train import run_training
from instructrec.policies.config import PolicyConfig
from instructrec.rl.config import PPOConfig
from instructrec.rl.reward_config import FitConfig

INFO = RunInfo("train", "ppo", "v", 0, "tiny", "data")


def written(path: Path, last: str) -> TrainConfig:
    rows = [{"prompt": f"write {i}", "reference": "a"} for i in range(60)]
    rows[-1]["reference"] = last
    path.mkdir(exist_ok=True)
    data = path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TrainConfig(
        name="run",
        task=TaskConfig(name=str(data)),
        ppo=PPOConfig(num_updates=2, episodes_per_update=4, num_mini_batches=1),
        output=OutputConfig(dir=str(path)),
    )


def splits(path: Path, last: str) -> Splits:
    return make_materials(written(path, last)).splits


def test_one_changed_answer_is_another_data_set(tmp_path: Path) -> None:
    before = splits(tmp_path, "a")
    folder = RunFolder.create(tmp_path / "run", INFO, {}, command=["train"])
    data_lock.note_data(folder, before)
    assert folder.record()["data"] == data_lock.fingerprints(before)
    data_lock.refuse_other_data(folder.path, splits(tmp_path, "a"))
    with pytest.raises(CheckpointError, match=r"since the run was started \((\w|, )+ split"):
        data_lock.refuse_other_data(folder.path, splits(tmp_path, "b"))


def test_a_run_from_before_data_was_noted_goes_on(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", INFO, {}, command=["train"])
    data_lock.refuse_other_data(folder.path, splits(tmp_path, "a"))


@pytest.mark.parametrize("algorithm", ["reward_model", "alignment"])
def test_a_reward_model_is_not_resumed_on_other_data(tmp_path: Path, algorithm: str) -> None:
    pairs = tmp_path / "pairs.jsonl"
    config = RewardModelConfig(
        algorithm=algorithm,
        task=PreferenceTask(str(pairs), {"validation_fraction": 0.4}),
        policy=PolicyConfig(model="tiny", dtype="float32", device="cpu"),
        fit=FitConfig(max_steps=1, batch_size=8),
        tracking=TrackingConfig(mode="disabled"),
        output=RewardOutputConfig(dir=str(tmp_path)),
    )

    def write(rejected: str) -> None:
        rows = [{"prompt": f"name {i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(40)]
        rows[-1]["rejected"] = rejected
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def broken(line: str) -> None:
        raise KeyboardInterrupt

    write("no")
    with pytest.raises(KeyboardInterrupt):  # as soon as the folder is there
        run_reward_training(config, say=broken)
    record = (config.folder / "run.json").read_text()
    write("never")
    with pytest.raises(CheckpointError, match=r"the data of .* has changed .* split"):
        run_reward_training(config, resume=True, say=str)
    assert (config.folder / "run.json").read_text() == record
    with pytest.raises(ConfigError, match="expected --resume beside it"):
        run_reward_training(config, allow_change=["data"], say=str)
    outcome = run_reward_training(config, resume=True, allow_change=["data"], say=str)
    now = outcome.folder.record()
    assert now["allowed_changes"] == ["data"] and now["data"] != json.loads(record)["data"]


@pytest.mark.slow
def test_a_run_is_not_resumed_on_other_data(tmp_path: Path) -> None:
    config = written(tmp_path, "a")

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with pytest.raises(Killed):  # as soon as the folder is there
        run_training(config, load_policy=_tiny, train_ppo=killed, say=lambda _: None)
    record = (config.folder / "run.json").read_text()
    assert "data" in json.loads(record)
    written(tmp_path, "b")
    with pytest.raises(CheckpointError, match="the data of"):
        run_training(config, resume=True, load_policy=_tiny, say=lambda _: None)
    assert (config.folder / "run.json").read_text() == record


def _tiny(*_: object) -> object:
    from instructrec.policies.causal_lm import load_policy

    return load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))

"""A run goes on with the data that it was started on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instructrec.errors import CheckpointError
from instructrec.experiments import data_lock
from instructrec.experiments.config import OutputConfig, TaskConfig, TrainConfig
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.setup_run import Materials, make_materials
from instructrec.experiments.train import run_training
from instructrec.rl.config import PPOConfig

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


def materials(path: Path, last: str) -> Materials:
    return make_materials(written(path, last))


def test_one_changed_answer_is_another_data_set(tmp_path: Path) -> None:
    before = materials(tmp_path, "a")
    folder = RunFolder.create(tmp_path / "run", INFO, {}, command=["train"])
    data_lock.note_data(folder, before)
    assert folder.record()["data"] == data_lock.fingerprints(before)
    data_lock.refuse_other_data(folder.path, materials(tmp_path, "a"))
    with pytest.raises(CheckpointError, match=r"since the run was started \((\w|, )+ split"):
        data_lock.refuse_other_data(folder.path, materials(tmp_path, "b"))


def test_a_run_from_before_data_was_noted_goes_on(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", INFO, {}, command=["train"])
    data_lock.refuse_other_data(folder.path, materials(tmp_path, "a"))


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
    from instructrec.policies.config import PolicyConfig

    return load_policy(PolicyConfig(model="tiny", dtype="float32", device="cpu"))

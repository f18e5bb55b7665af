"""Going on with a run from the command line's side: flags, settings, data."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path

import pytest

from instructrec.errors import CheckpointError, ConfigError, RunInterrupted
from instructrec.experiments import continuing
from instructrec.experiments.cli import main
from instructrec.experiments.config import OutputConfig, TaskConfig, TrainConfig, refuse_changed
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.setup_run import Materials, make_materials
from instructrec.policies.config import PolicyConfig
from instructrec.rl.checkpoint import Snapshot, checkpoint_path, write_checkpoint


def begun(folder: Path, size: int = 40) -> tuple[TrainConfig, RunFolder, Materials]:
    config = TrainConfig(
        name="run",
        task=TaskConfig(name="parity", options={"size": size}),
        output=OutputConfig(dir=str(folder)),
    ).resolved()
    info = RunInfo("train", "ppo", "v", 0, "tiny", "parity")
    run = RunFolder.create(config.folder, info, config.to_dict(), overwrite=True)
    materials = make_materials(config)
    continuing.note(run, materials.splits, [])
    return config, run, materials


def test_a_changed_setting_is_refused_unless_it_is_named(tmp_path: Path) -> None:
    config, run, _ = begun(tmp_path)
    changed = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, gamma=0.5))
    with pytest.raises(ConfigError, match=r"ppo\.gamma: 1\.0 -> 0\.5.*--allow_change KEY"):
        refuse_changed(changed, run.path)
    with pytest.raises(ConfigError, match=r"ppo\.gamma"):
        refuse_changed(changed, run.path, ["ppo.cliprange"])
    refuse_changed(changed, run.path, ["ppo.gamma"])


def test_what_was_allowed_stands_in_the_record(tmp_path: Path) -> None:
    config, run, materials = begun(tmp_path)
    continuing.note(run, materials.splits, ["ppo.gamma"])
    continuing.note(run, materials.splits, ["data"])
    assert run.record()["allowed_changes"] == ["ppo.gamma", "data"]
    said: list[str] = []
    _, goes_on = continuing.continued(config, True, ["data"], said.append)
    assert goes_on and said == ["allowed to differ from here on: data"]


def test_a_stop_at_once_says_how_it_goes_on_where_it_can(tmp_path: Path) -> None:
    _, run, _ = begun(tmp_path)

    def stop() -> None:
        with continuing.resumable(run):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # its training took no time, and left nothing
        stop()
    write_checkpoint(checkpoint_path(run.checkpoints, 3), Snapshot({}, {}))
    with pytest.raises(RunInterrupted, match=r"before all that was trained.*--resume goes on"):
        stop()


def test_a_finished_run_without_checkpoints_is_not_trained_again(tmp_path: Path) -> None:
    config, run, _ = begun(tmp_path)
    assert continuing.continued(config, True, [], print)  # it has not finished: it begins anew
    run.finish("finished", {"updates": config.ppo.num_updates})
    with pytest.raises(CheckpointError, match=r"no checkpoints any more.* Train it anew with --ov"):
        continuing.continued(config, True, [], print)
    run.policy.mkdir()
    continued, goes_on = continuing.continued(config, True, [], print)
    assert goes_on
    loaded = list[str | None]()

    def load(settings: PolicyConfig, *_: object) -> types.SimpleNamespace:
        loaded.append(settings.model)
        return types.SimpleNamespace()

    found = continuing.finished(continued, load, print)  # type: ignore[arg-type]
    assert found is not None and loaded == [str(run.policy)]
    assert found[1] == {"updates": config.ppo.num_updates}
    longer = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, num_updates=500))
    with pytest.raises(CheckpointError, match=r"num_updates = 500\. Start a new run from its"):
        continuing.continued(longer, True, [], print)
    write_checkpoint(checkpoint_path(run.checkpoints, 3), Snapshot({}, {}))
    assert continuing.continued(longer, True, [], print)[1]
    assert continuing.finished(longer, load, print) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--allow_change", "data"], "expected --resume beside it"),
        (["--resume", "--allow_change", "data", "--seeds", "1", "2"], "about one run"),
    ],
)
def test_allowing_belongs_to_going_on_with_one_run(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny_smoke", *flags]) == 2
    assert message in capsys.readouterr().err

"""What the record of an evaluation says when it did not come to its end."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import CheckpointError, ConfigError
from instructrec.experiments.cli import main
from instructrec.experiments.config import EvaluateConfig, OutputConfig, PlaceConfig
from instructrec.experiments.evaluate_policy import make_plan, run_evaluation
from instructrec.experiments.evaluation_place import place
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.rewards import register_reward

ENDS: list[type[BaseException]] = []


@register_reward("ending_reward", range=(0.0, 1.0))
def ending_reward(completions: list[str], **columns: object) -> list[float]:
    if ENDS:
        raise ENDS[0]("the end")
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (ConfigError, "failed")]
)
def test_it_says_how_it_ended_and_the_same_command_goes_on(
    tmp_path: Path, error: type[BaseException], status: str
) -> None:
    output = OutputConfig(dir=str(tmp_path))
    config = EvaluateConfig(
        limit=6, name="mine", rewards={"ending_reward": 1.0}, output=output, bounds=False
    )
    ENDS.append(error)
    try:
        with pytest.raises(error):
            run_evaluation("random", config, say=str)
    finally:
        ENDS.clear()
    record = RunFolder.open(tmp_path / "mine").record()
    assert record["status"] == status and record["finished"] is not None
    run_evaluation("random", config, say=str)
    assert RunFolder.open(tmp_path / "mine").record()["status"] == "finished"


def test_what_is_there_already_is_told_in_the_words_of_this_command(tmp_path: Path) -> None:
    output = OutputConfig(dir=str(tmp_path))
    config = EvaluateConfig(task="parity", limit=4, name="mine", output=output, bounds=False)
    run_evaluation("random", config, say=str)
    with pytest.raises(CheckpointError, match="holds this evaluation, finished") as found:
        run_evaluation("random", config, say=str)
    assert "--overwrite" in str(found.value) and "--resume" not in str(found.value)
    other = dataclasses.replace(config, temperature=1.0)
    with pytest.raises(CheckpointError, match="another run, or other settings"):
        run_evaluation("random", other, say=str)
    run_evaluation("random", other, overwrite=True, say=str)


def test_a_place_that_the_rows_of_a_run_do_not_go_to_is_refused(tmp_path: Path) -> None:
    info = RunInfo("train", "ppo", "v", 7, "tiny", "parity")
    run = RunFolder.create(tmp_path / "runs" / "mine", info, {"task": {"name": "parity"}})
    run.policy.mkdir()

    def file(**given: Any) -> Path:
        config = EvaluateConfig(**given)
        plan = make_plan(str(run.path), config, run)
        with ExitStack() as stack:
            return place(str(run.path), plan, config, run, False, None, stack.enter_context)[1]

    elsewhere = PlaceConfig(str(tmp_path / "elsewhere"))
    with pytest.raises(ConfigError, match=r"goes into its own folder, .*mine.* give --name"):
        file(output=elsewhere)
    assert file(output=PlaceConfig(str(tmp_path / "runs"))).parent == run.path / "eval"
    assert file().parent == run.path / "eval"
    assert file(output=elsewhere, name="apart").is_relative_to(tmp_path / "elsewhere" / "apart")
    # Greedy answers are those of the run's seed; others are as well of what was drawn for them.
    greedy = RunFolder.open(tmp_path / "elsewhere" / "apart").info()
    assert (greedy.seed, greedy.parent) == (7, str(run.path))
    file(output=elsewhere, name="drawn", temperature=1.0, seed=4)
    assert RunFolder.open(tmp_path / "elsewhere" / "drawn").info().seed == 4


def test_settings_of_training_are_none_of_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "oracle", "--output.samples_per_update", "3"]) == 2
    assert "unknown key 'output.samples_per_update'" in capsys.readouterr().err

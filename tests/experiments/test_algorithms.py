"""The comparison of algorithms: what it runs, on equal terms, and in what order."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from instructrec.experiments import command_line
from instructrec.experiments.cli import command_parser
from instructrec.experiments.config import TrainConfig


@pytest.fixture
def script(script_of: Callable[[str], ModuleType]) -> ModuleType:
    return script_of("algorithms")


def config(arguments: list[str]) -> TrainConfig:
    command, *rest = arguments
    values = command_line.parse(command_parser(command), command_line.recipes_to_config(rest))
    assert values.seeds == [1, 2] and values.resume
    made: TrainConfig = command_line.as_dataclass(TrainConfig, values)
    return made


def test_every_arm_sees_as_many_responses_from_the_same_start(script: ModuleType) -> None:
    arms = {arm: config(script.training(arm, [1, 2], script.START)) for arm in script.ARMS}
    assert [run.variant for run in arms.values()] == [f"algorithms-{arm}" for arm in arms]
    assert {run.resolved().policy.model for run in arms.values()} == {"runs/short-answers-sft-s0"}
    played = {
        arm: run.ppo.num_updates * run.ppo.episodes_per_update
        for arm, run in arms.items()
        if arm != "sft"
    }
    sft = arms["sft"].sft
    shown = {sft.max_steps * sft.batch_size, sft.demonstrations}
    assert set(played.values()) | shown == {4096}
    assert len({str((run.task, run.eval.limit, run.rewards)) for run in arms.values()}) == 1
    assert {arm: run.ppo.advantage for arm, run in arms.items()}["group"] == "group"


def test_arms_are_trained_one_after_the_other_and_compared(script: ModuleType) -> None:
    ran: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        ran.append(arguments)
        return 0

    more = ["--arms", "gae", "sft", "--dir", "out", "--policy.device", "cpu"]
    assert script.main(["--seeds", "0", "1", *more], run=run) == 0
    assert [words[0] for words in ran] == ["train", "sft", "compare"]
    assert "--policy.device" in ran[0] and ran[0][-3:] == ["--seeds", "0", "1"]
    assert ran[2][1:4] == [
        "gae=out/algorithms-gae-s0,out/algorithms-gae-s1",
        "sft=out/algorithms-sft-s0,out/algorithms-sft-s1",
        "start=runs/short-answers-sft-s0,runs/short-answers-sft-s1",
    ]


def test_a_failed_arm_ends_the_comparison(script: ModuleType) -> None:
    assert script.main(["--arms", "gae", "raft"], run=lambda arguments: 7) == 7

"""The cost of several processes: by hand, against a measurement, and measured for real."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cost_model import Link, Work, calibrated, check, markdown
from benchmarks.cost_model import main as cost_model
from benchmarks.prepare import prepare
from benchmarks.scaling import environments
from benchmarks.scaling import main as scaling
from benchmarks.side_scaling import faults, run
from benchmarks.workload import Workload

LINK = Link(bytes_per_s=100.0, latency_s=0.5)
WORK = Work(rollout_s=6.0, learning_s=4.0, steps=2, gradient_bytes=400.0)


def test_a_ring_sends_each_share_twice_around() -> None:
    assert LINK.sum_s(400.0, 1) == 0
    assert LINK.sum_s(400.0, 2) == 2 * 200 / 100 + 2 * 0.5
    assert LINK.sum_s(400.0, 4) == 6 * 100 / 100 + 6 * 0.5


def test_an_update_together_is_the_slowed_work_and_the_sums() -> None:
    assert WORK.together_s(1, LINK) == 10
    assert WORK.together_s(2, LINK) == 10 + 2 * 5
    assert WORK.efficiency(2, LINK) == 0.5
    shared = replace(WORK, contention=1.5, longest=2.0)
    assert shared.together_s(2, LINK) == 1.5 * (2 * 6 + 4) + 2 * 5
    assert shared.together_s(1, LINK) == 10  # alone, it shares and waits for nothing


def test_two_sums_give_back_the_link() -> None:
    sums = [(size, LINK.sum_s(size, 4)) for size in (4000.0, 4.0)]
    found = Link.measured(sums[0], sums[1], 4)
    assert found.bytes_per_s == pytest.approx(100) and found.latency_s == pytest.approx(0.5)
    with pytest.raises(ValueError, match="Measure again on an idle machine"):
        Link.measured((4000.0, 1.0), (4.0, 1.0), 2)
    with pytest.raises(ValueError, match="over 1 processes"):
        Link.measured(sums[0], sums[1], 1)


def measured(together_s: float) -> dict[str, Any]:
    """A case of ten seconds alone, twelve beside another, and sums of two seconds."""
    alone = {"seconds": 10.0, "rollout_s": 5.0, "score_s": 1.0}
    return {
        "processes": 2,
        "steps": 3,
        "workload": {"episodes": 32},
        "alone": [alone, alone],
        "apart": [{**alone, "seconds": 12.0}],
        "together": [{**alone, "seconds": together_s}],
        "link": {"large_bytes": 400.0, "large_s": 2.0, "small_bytes": 4.0, "small_s": 0.1},
    }


def test_the_model_is_calibrated_without_the_times_together() -> None:
    work, link = calibrated(measured(99.0))
    assert (work.rollout_s, work.learning_s, work.contention) == (6.0, 4.0, 1.2)
    assert link.sum_s(400.0, 2) == pytest.approx(2.0)
    assert calibrated(measured(1.0)) == (work, link)
    assert check(measured(20.0)) == pytest.approx(
        {"predicted_s": 18.0, "measured_s": 20.0, "error": -0.1}
    )


def test_predictions_are_called_so_and_a_miss_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"cpu": "a processor", "cores": 2}
    result = {"machine": machine, "commit": "abc", "rounds": 3, "cases": {"tiny": measured(20.0)}}
    file = tmp_path / "scaling.json"
    file.write_text(json.dumps(result))
    assert cost_model([str(file), "--check", "--processes", "2", "8"]) == 0
    said = capsys.readouterr().out
    assert "| tiny | 2 | 10 s | 12 s | 20 s | 18 s | -10% |" in said
    assert "Predictions, not measured" in said and "| tiny | 8 |" in said
    assert "| 100 GB/s |" in markdown(result, [8], bytes_per_s=100e9)
    result["cases"] = {"tiny": measured(30.0)}
    file.write_text(json.dumps(result))
    assert cost_model([str(file)]) == 0 and cost_model([str(file), "--check"]) == 1
    assert "off by more than 15%: tiny" in capsys.readouterr().err


def test_work_that_is_not_what_is_timed_is_named() -> None:
    work = Workload("m", "p", episodes=4, response_length=8, epochs=2)
    row = {"response_len": 8}
    assert faults(work, 2, [row] * 8, steps=2) == []
    found = faults(work, 2, [*[row] * 6, {"response_len": 3}], steps=1)
    assert [text.split(" instead")[0] for text in found] == [
        "7 episodes",
        "1 responses of another length, e.g. 3",
        "1 optimizer steps",
    ]


def test_processes_apart_do_not_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    apart, together = environments(2, together=False), environments(2, together=True)
    assert all("WORLD_SIZE" not in each and each["OMP_NUM_THREADS"] == "1" for each in apart)
    assert [(each["WORLD_SIZE"], each["RANK"]) for each in together] == [("2", "0"), ("2", "1")]
    assert together[0]["MASTER_PORT"] == together[1]["MASTER_PORT"]


@pytest.mark.slow
def test_one_process_and_two_do_the_work_that_is_timed(
    tmp_path: Path, in_two_processes: Callable[[Callable[[], Any]], list[Any]]
) -> None:
    prepare("tiny", tmp_path, num_prompts=8, response_length=4)
    folder, prompts = str(tmp_path / "model"), str(tmp_path / "prompts.json")
    work = Workload(folder, prompts, episodes=4, response_length=4, epochs=2, micro_batch=2)
    work = replace(work, dtype="float32", updates=2)
    alone = run(work, tmp_path)
    together, other = in_two_processes(lambda: run(work, tmp_path))
    assert (len(alone["updates"]), len(together["updates"]), other["updates"]) == (2, 2, [])
    assert alone["link"] is None and all(each["reduce_s"] == 0 for each in alone["updates"])
    for update in together["updates"]:
        assert 0 < update["reduce_s"] < update["update_s"] < update["seconds"]
    assert together["link"]["large_bytes"] > 1e5 and together["link"]["small_bytes"] == 4
    assert together["steps"] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)  # five processes, each of which loads the libraries
def test_the_command_measures_the_tiny_model(tmp_path: Path) -> None:
    given = ["--models", "tiny", "--episodes", "4", "--response-length", "4", "--micro-batch", "2"]
    given += ["--epochs", "2", "--rounds", "1", "--updates", "1", "--out", str(tmp_path)]
    assert scaling(given) == 0
    case = json.loads((tmp_path / "scaling.json").read_text())["cases"]["tiny"]
    kinds = ("alone", "apart", "together")
    assert [len(case[kind]) for kind in kinds] == [1, 2, 1]
    (alone,), (together,) = case["alone"], case["together"]
    assert case["efficiency"]["median"] == alone["seconds"] / together["seconds"]

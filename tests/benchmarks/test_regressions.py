"""Baselines: kept part by part, and compared with the same work alone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ppo as benchmark
from benchmarks.parts import PARTS
from benchmarks.regressions import compare, machine_name, write_baseline
from benchmarks.summary import spread
from benchmarks.workload import Workload

WORK = Workload("folder/model", "folder/prompts.json", episodes=16, response_length=32)


def result(*names: str, work: Workload = WORK, speed: float = 3.0, **more: float) -> dict[str, Any]:
    """A run of some parts with one side and its peer."""
    sides = {name: {"workload": asdict(work)} for name in ("ours", "peer")}
    kinds = {"speed": speed, "limit_frac": 0.5, "memory": 1.0, **more}
    parts = {
        name: {
            "sides": sides,
            "ratios": {f"{name}/ours/{kind}": spread([value]) for kind, value in kinds.items()},
        }
        for name in names
    }
    origin = {"machine": {"cpu": "chip"}, "versions": {}, "commit": "abc", "rounds": 3}
    return {"model": "tiny", **origin, "parts": parts}


def kept(path: Path, *runs: dict[str, Any]) -> dict[str, Any]:
    """The baseline behind some runs."""
    for run in runs:
        write_baseline(run, path)
    return json.loads(path.read_text())


def test_writing_one_part_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "machine.json"
    found = kept(path, result("full", "grpo"), result("full", speed=4.0) | {"commit": "def"})
    assert list(found["parts"]) == ["full", "grpo"]
    assert found["parts"]["full"]["ratios"]["full/ours/speed"]["median"] == 4.0
    assert [found["parts"][name]["commit"] for name in ("full", "grpo")] == ["def", "abc"]
    assert "model" not in found["parts"]["full"]["workloads"]["ours"]  # a path of one machine


@pytest.mark.parametrize(
    ("kind", "now", "worse"),
    [
        ("speed", 2.6, False),
        ("speed", 2.5, True),
        ("speed", 9.0, False),
        ("limit_frac", 0.4, True),
        ("memory", 1.04, False),
        ("memory", 1.06, True),
        ("memory", 0.1, False),
    ],
)
def test_what_counts_as_a_regression(tmp_path: Path, kind: str, now: float, worse: bool) -> None:
    found = compare(kept(tmp_path / "b.json", result("full")), result("full", **{kind: now}))
    assert found.status == int(worse) and len(found.compared) == 3
    assert [line.partition(":")[0] for line in found.worse] == [f"full/ours/{kind}"] * worse


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"episodes": 4}, "ours: episodes 4, the baseline has 16"),
        ({"epochs": 1}, "ours: epochs 1, the baseline has 4"),
        ({"prompt_length": 64}, "ours: prompt_length 64, the baseline has None"),
    ],
)
def test_other_work_is_not_compared(
    tmp_path: Path, changes: dict[str, Any], difference: str
) -> None:
    now = result("full", work=replace(WORK, **changes), speed=0.1)
    found = compare(kept(tmp_path / "b.json", result("full")), now)
    assert found.status == 2 and not found.compared and not found.worse
    assert difference in found.not_compared[0] and "no regression" not in found.text()


def test_the_same_work_in_another_folder_is_compared(tmp_path: Path) -> None:
    elsewhere = result("full", work=replace(WORK, model="other", prompts="other"))
    assert compare(kept(tmp_path / "b.json", result("full")), elsewhere).status == 0


def test_ratios_and_parts_of_one_side_alone_are_named(tmp_path: Path) -> None:
    baseline = kept(tmp_path / "b.json", result("full", "half"))
    del baseline["parts"]["full"]["ratios"]["full/ours/limit_frac"]
    now = result("full", "grpo")
    del now["parts"]["full"]["ratios"]["full/ours/speed"]
    found = compare(baseline, now)
    assert found.status == 2 and found.compared == ["full/ours/memory"]
    assert found.not_compared == ["full/ours/speed: only the baseline has it"]
    assert found.unknown == ["full/ours/limit_frac", "grpo"] and found.not_run == ["half"]
    for line in (*found.not_compared, "does not have: full/ours/limit_frac, grpo", "run: half"):
        assert line in found.text()


def test_what_the_baseline_does_not_have_is_told_and_fails_nothing(tmp_path: Path) -> None:
    found = compare(kept(tmp_path / "b.json", result("full")), result("full", update=2.0))
    assert found.status == 0 and found.unknown == ["full/ours/update"]
    assert compare(kept(tmp_path / "b.json"), result("grpo")).status == 2  # nothing at all


def test_a_part_of_one_side_is_kept_in_no_baseline(tmp_path: Path) -> None:
    alone = result("full")
    alone["parts"]["small_passes"] = {**alone["parts"]["full"], "ratios": {}}
    assert list(kept(tmp_path / "b.json", alone)["parts"]) == ["full"]


def test_sides_that_are_missing_or_new_are_other_work(tmp_path: Path) -> None:
    now = result("full")
    now["parts"]["full"]["sides"]["a third"] = now["parts"]["full"]["sides"].pop("peer")
    (line,) = compare(kept(tmp_path / "b.json", result("full")), now).not_compared
    assert "peer is missing" in line and "a third is new" in line


def test_a_workload_from_before_a_field_existed_has_its_default(tmp_path: Path) -> None:
    baseline = kept(tmp_path / "b.json", result("full"))
    for work in baseline["parts"]["full"]["workloads"].values():
        del work["prompt_length"]
    assert compare(baseline, result("full")).status == 0


def test_the_check_reads_the_baseline_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "machine.json"
    assert benchmark.check_baseline(result("full"), path) == 2
    write_baseline(result("full"), path)
    assert benchmark.check_baseline(result("full"), path) == 0
    assert benchmark.check_baseline(result("full", speed=1.5), path) == 1
    assert "full/ours/speed: 1.5, the baseline has 3" in capsys.readouterr().out


def test_the_baseline_is_named_by_what_decides_the_numbers() -> None:
    info = {"cpu": "AMD EPYC", "cores": 2, "gpus": []}
    assert machine_name(info, "smollm2-135m") == "amd-epyc-2-cores-smollm2-135m"
    info["gpus"] = ["NVIDIA H100 80GB HBM3"]
    assert machine_name(info, "shape:smollm2") == "nvidia-h100-80gb-hbm3-shape-smollm2"


def test_committed_baselines_hold_the_work_of_the_parts() -> None:
    parts = {part.name: part for part in PARTS}
    for path in benchmark.BASELINES.glob("*.json"):
        for name, part in json.loads(path.read_text())["parts"].items():
            assert set(part["workloads"]) == {side.name for side in parts[name].sides}, path.name
            assert part["ratios"] and all(key.startswith(f"{name}/") for key in part["ratios"])

"""Statistics of the benchmark, and what counts as a regression."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peer_env
from benchmarks import ppo as benchmark
from benchmarks.figures import plot_phases
from benchmarks.growth import AXES, power
from benchmarks.growth import main as growth
from benchmarks.parts import PARTS, Part, Side, prompts_needed
from benchmarks.summary import markdown, own_shares, ratios, side_summary, spread
from benchmarks.workload import Report, Update, Workload
from instructrec.rl.config import PPOConfig

WORK = Workload("m", "p", episodes=8, response_length=4)
PART = Part("full", "a title", (Side("ours"), Side("peer", "trl112")))
ONCE = replace(PART, rounds=1)
LIMIT = {
    "matrix_flops_per_s": 100.0,
    "copy_bytes_per_s": 10.0,
    "peak_flops_per_s": 200.0,
    "tokens": 80,
    "flops": {"decode": 20.0, "update": 80.0},
    "seconds": {"decode": 0.5, "update": 0.5},
}


def report(*seconds: float, memory: int = 100, drift: float | None = None) -> Report:
    """A report whose first update is the warm-up."""
    phases = [{"update": 0.75 * s, "other": 0.25 * s} for s in seconds]
    updates = [
        Update(s, phase, [4] * 8, "", 4, 0.0, drift)
        for s, phase in zip(seconds, phases, strict=True)
    ]
    return Report("x", 0.001, updates, peak_rss_bytes=memory)


def test_the_warm_up_does_not_count_and_rounds_give_a_spread() -> None:
    rounds = [report(99.0, 2.0, 4.0, 3.0), report(99.0, 4.0), report(99.0, 1.0)]
    found = side_summary(rounds, WORK, LIMIT)
    assert found["episodes_per_s"] == {"median": 8 / 3, "min": 2.0, "max": 8.0}
    assert found["tokens_per_s"]["median"] == pytest.approx(80 / 3)
    assert found["mfu"]["median"] == pytest.approx(100 / 3 / 200)
    assert found["limit_frac"]["median"] == pytest.approx(1 / 3)
    assert found["phases_s"] == {"update": 0.75 * 3, "other": 0.25 * 3}  # 2, 4, 3, 4 and 1
    assert found["update_limit_frac"] == pytest.approx(80 / 2.25 / 100)


def test_ratios_are_taken_within_a_round() -> None:
    ours = [report(0, 1.0, memory=50), report(0, 10.0, memory=60)]
    peer = [report(0, 4.0), report(0, 30.0)]
    found = ratios(PART, {"ours": ours, "peer": peer}, {"ours": WORK, "peer": WORK})
    assert found["full/ours/speed"] == {"median": 3.5, "min": 3.0, "max": 4.0}
    assert found["full/ours/update"] == found["full/ours/speed"]  # three quarters on both sides
    assert found["full/ours/memory"] == spread([0.5, 0.6])
    cold = {name: replace(WORK, warmup=0) for name in ("ours", "peer")}
    assert list(ratios(PART, {"ours": ours, "peer": peer}, cold)) == ["full/ours/memory"]
    half = {"ours": WORK, "peer": replace(WORK, episodes=4)}
    assert ratios(PART, {"ours": ours, "peer": peer}, half)["full/ours/speed"]["max"] == 8.0


def result() -> dict[str, Any]:
    reports = {"ours": [report(0, 1.0, memory=50, drift=0.004)], "peer": [report(0, 4.0)]}
    works = {"ours": WORK, "peer": WORK}
    sides = {
        name: {
            "workload": {"episodes": 8},
            **side_summary(found, works[name], LIMIT),
            "gate": {"gradient": 0.0123} if name == "ours" else None,
        }
        for name, found in reports.items()
    }
    shares = own_shares(PART, sides)
    assert list(shares) == ["full/ours/limit_frac"] and not own_shares(ONCE, sides)
    part = {"title": "a title", "sides": sides, "ratios": ratios(PART, reports, works) | shares}
    return {
        "model": "tiny",
        "commit": "abc",
        "rounds": 1,
        "machine": {"cpu": "chip", "gpus": [], "cores": 2, "os": "os"},
        "parts": {"full": part},
    }


def test_tables_and_plot_show_every_side(tmp_path: Path) -> None:
    text = markdown(result())
    assert "| ours | 8 (8 to 8) |" in text and "| peer | 2 (2 to 2) |" in text
    assert "| full/ours/speed | 4 (4 to 4) |" in text
    assert "0.75 (0.5)" in text  # seconds of the update, and the least
    assert text.count("Gate of") == 1
    assert "Gate of ours, differences to plain passes: gradient 0.012" in text
    assert "| 0.001 | 0.004 |" in text and "| 0.001 | - |" in text  # log-prob error and drift
    plot_phases(result()["parts"], tmp_path / "phases.png")
    assert (tmp_path / "phases.png").stat().st_size > 1000


def test_every_part_changes_fields_that_a_workload_has() -> None:
    known = {field.name for field in fields(Workload)}
    for part in PARTS:
        assert set(part.changes) <= known and part.sides
        assert all(set(side.changes) <= known for side in part.sides)


def test_prompts_are_made_for_the_largest_rollout_of_their_lengths() -> None:
    assert prompts_needed([part for part in PARTS if not part.on_demand], WORK) == {(None, 4): 128}
    wanted = {(None, 4): 128, (None, 64): 8, (64, 128): 64, (104, 276): 256}
    assert prompts_needed(PARTS, WORK) == wanted


def test_the_command_line_decides_sizes_but_not_what_makes_a_side() -> None:
    given = benchmark.parser().parse_args(["--episodes", "4", "--prompt-length", "20"])
    parts = {part.name: part for part in benchmark.chosen_parts(given, ["full", "defaults"])}
    works = [side.workload(WORK, parts["full"]) for side in parts["full"].sides]
    assert {(work.episodes, work.prompt_length) for work in works} == {(4, 20)}
    assert [work.critic for work in works] == ["shared", "separate", "shared"]
    works = [side.workload(WORK, parts["defaults"]) for side in parts["defaults"].sides]
    assert [work.episodes for work in works] == [128, 8]
    given = benchmark.parser().parse_args(["--sides", "ours"])
    chosen = benchmark.chosen_parts(given, None)
    assert {side.program for part in chosen for side in part.sides} == {"ours"}
    assert "h100" not in {part.name for part in chosen} and chosen[0].peer is None
    assert ratios(chosen[0], {}, {}) == {}


def test_our_defaults_in_the_benchmark_are_our_defaults() -> None:
    part = next(part for part in PARTS if part.name == "defaults")
    work, config = part.sides[0].workload(WORK, part), PPOConfig()
    assert (work.episodes, work.epochs) == (config.episodes_per_update, config.num_ppo_epochs)
    assert (work.mini_batches, work.generations) == (config.num_mini_batches, 1)
    assert (work.learning_rate, work.kl_coef) == (config.learning_rate, config.kl_coef)
    assert (work.critic, work.train) == (config.critic, "full")


def test_an_interpreter_without_trl_112_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"expected an interpreter with trl 1\.12\.0"):
        peer_env.trl112_python(tmp_path / "python")


def test_the_power_is_the_slope_between_logarithms() -> None:
    assert power([1, 2, 4], [3.0, 3.0, 3.0]) == pytest.approx(0)
    assert power([1, 2, 4], [3.0, 6.0, 12.0]) == pytest.approx(1)
    assert power([1, 10], [1.0, 100.0]) == pytest.approx(2)


@pytest.mark.slow
def test_growth_measures_every_axis(tmp_path: Path) -> None:
    given = ["--model", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    assert growth(given) == 0
    found = json.loads((tmp_path / "growth.json").read_text())["axes"]
    assert list(found) == [axis.name for axis in AXES]
    for axis in AXES:
        assert [row[axis.name] for row in found[axis.name]["rows"]] == list(axis.tiny)
        assert all(row["episode_s"] > 0 for row in found[axis.name]["rows"])


@pytest.mark.slow
@pytest.mark.timeout(600)  # five processes, each of which loads the libraries
def test_the_command_compares_goes_on_where_it_was_and_refuses_other_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "tiny", "--device", "cpu", "--dtype", "float32", "--out", str(tmp_path)]
    given += ["--parts", "grpo", "--rounds", "1", "--episodes", "8", "--response-length", "4"]
    assert benchmark.main(given) == 0
    (path,) = tmp_path.glob("*/ppo.json")
    first = json.loads(path.read_text())["parts"]["grpo"]
    assert set(first["sides"]) == {"ours", "TRL 1.16 GRPO"}
    assert first["ratios"]["grpo/ours/speed"]["median"] > 0
    assert "TRL 1.16 GRPO" in capsys.readouterr().out and (path.parent / "ppo.png").is_file()

    assert benchmark.main(given) == 0  # nothing is run again, so the numbers are the same
    again = json.loads(path.read_text())["parts"]["grpo"]
    assert again["ratios"]["grpo/ours/speed"] == first["ratios"]["grpo/ours/speed"]

    (prepared,) = path.parent.glob("prepared-*/prompts.json")
    prompts = json.loads(prepared.read_text())
    prompts["logprobs"] = [[value - 1.0 for value in row] for row in prompts["logprobs"]]
    prepared.write_text(json.dumps(prompts))
    assert benchmark.main([*given, "--epochs", "2"]) == 1
    assert "GateError: log-probs of the frozen responses differ" in capsys.readouterr().err
    assert json.loads(path.read_text())["parts"] == {}

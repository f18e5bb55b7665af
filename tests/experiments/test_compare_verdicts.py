"""Of which runs a verdict speaks, and what it says of those that nobody made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec.experiments.compare import CompareConfig, compare
from instructrec.experiments.compare_text import verdict
from instructrec.experiments.jsonl import write_json

Write = Callable[..., Path]
PAIR = {
    **{"a": "new", "b": "old", "mean": 0.5, "low": 0.4, "high": 0.6, "p_holm": 0.001},
    **{"runs_low": None, "runs_high": None, "decided_here": True, "decided": "these runs"},
}
OVER_RUNS = {"runs_low": 0.3, "runs_high": 0.7}
SIZE = "by 0.500 [+0.400, +0.600], p = 0.001"


@pytest.mark.parametrize(
    ("of_pair", "said"),
    [
        (
            {"a_runs": 3, "b_runs": 1, **OVER_RUNS},
            f"the 3 runs of new are better than the one run of old {SIZE}; of other runs of new "
            "[+0.300, +0.700]; other seeds of old are not known.",
        ),
        (
            {"a_runs": 3, "b_runs": 2, **OVER_RUNS},
            f"the 3 runs of new are better than the 2 runs of old {SIZE}; of other runs "
            "[+0.300, +0.700], as far as 2 runs of old tell.",
        ),
        (
            {"a_runs": 1, "b_runs": 2},
            f"the one run of new is better than the 2 runs of old {SIZE}; other seeds are not "
            "known.",
        ),
        (
            {"a_runs": None, "b_runs": 1},
            f"new is better than the one run of old {SIZE}; other seeds of old are not known.",
        ),
        (
            {"a_runs": 3, "b_runs": None, **OVER_RUNS, "decided": "yes"},
            f"new is better than old {SIZE}; of other runs [+0.300, +0.700].",
        ),
        ({"a_runs": None, "b_runs": None, "decided": "yes"}, f"new is better than old {SIZE}."),
        (
            {"a_runs": 3, "b_runs": 1, "runs_low": -0.1, "runs_high": 1.1, "decided": "no"},
            f"undecided: the 3 runs of new are better than the one run of old {SIZE}, but others "
            "may be worse: [-0.100, +1.100].",
        ),
    ],
)
def test_a_verdict_says_of_which_runs_it_speaks(of_pair: dict[str, Any], said: str) -> None:
    assert verdict(PAIR | of_pair) == said


def test_the_better_policy_is_named_first_whichever_it_is() -> None:
    turned = {"mean": -0.5, "low": -0.6, "high": -0.4, "runs_low": -0.7, "runs_high": -0.3}
    assert verdict(PAIR | turned | {"a_runs": 1, "b_runs": 3}) == (
        f"the 3 runs of old are better than the one run of new {SIZE}; of other runs of old "
        "[+0.300, +0.700]; other seeds of new are not known."
    )


def compared(tmp_path: Path, *runs: Path) -> dict[str, Any]:
    config = CompareConfig(out=str(tmp_path / "out"))
    return compare([str(run) for run in runs], config, say=lambda text: None)


def test_one_run_beside_three_leaves_its_other_seeds_unknown(
    tmp_path: Path, write_run: Write
) -> None:
    new = [write_run(tmp_path / f"new-s{s}", right=30, seed=s, variant="new") for s in range(3)]
    old = write_run(tmp_path / "old-s0", right=10, variant="old")
    results = compared(tmp_path, *new, old)
    (pair,) = results["parts"]["total"]["pairs"]
    assert (pair["a_runs"], pair["b_runs"], pair["decided"]) == (3, 1, "these runs")
    assert "; of other runs of new [+0.3" in results["verdicts"][0]
    assert results["verdicts"][0].endswith("; other seeds of old are not known.")
    assert any("old has 1 run" in note for note in results["warnings"])


def test_a_model_as_it_is_has_no_other_seeds_unless_a_run_has_trained_it(
    tmp_path: Path, write_run: Write, write_evaluation: Write
) -> None:
    new = [write_run(tmp_path / f"new-s{s}", right=30, seed=s, variant="new") for s in range(3)]
    measured = tmp_path / "start"
    write_evaluation(measured / "eval" / "all.jsonl", 10)
    write_json(measured / "summary.json", {"eval_file": "eval/all.jsonl"})
    (measured / "config.yaml").write_text("seed: 0\n")
    about = {"job_type": "eval", "algorithm": "none", "variant": "start", "seed": None}
    about |= {"format_version": 1, "status": "finished", "task": "letters"}
    for record, decided in (
        ({"base_model": "some-model"}, "yes"),
        ({"base_model": "some-model", "seed": 4}, "these runs"),  # sampled: others would differ
        ({"base_model": "runs/sft-s0", "parent": "runs/sft-s0"}, "these runs"),
        ({"base_model": "runs/sft-s0/policy"}, "these runs"),
        ({"base_model": "responses.jsonl"}, "these runs"),
    ):
        write_json(measured / "run.json", about | record)
        results = compared(tmp_path, *new, measured)
        (pair,) = results["parts"]["total"]["pairs"]
        assert pair["decided"] == decided, record
        told = any("start has 1 run" in note for note in results["warnings"])
        assert told == (decided != "yes")

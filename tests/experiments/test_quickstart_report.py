"""The quickstart's findings, on evaluations made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from instructrec.errors import DataError
from instructrec.experiments import quickstart_report as report
from instructrec.experiments.evaluation import Evaluation
from instructrec.experiments.jsonl import Row
from instructrec.experiments.quickstart import _next_name
from instructrec.experiments.quickstart_report import STAGES, Stage


def row(number: int, score: float | None, item: str = "", sample: int = 0) -> Row:
    return {
        "id": f"i{number}",
        "sample": sample,
        "prompt": f"Question {number}?",
        "response": "yes" if score else "no",
        "reference": "yes",
        "parts": {"exact_match": score},
        "total": score,
        "status": {"exact_match": "scored" if score is not None else "not_applicable"},
        "stop_reason": "eos",
        "response_len": 2,
        "logprob": -1.0,
        "item": item or str(number),
        "family": "f",
    }


def greedy(scores: Sequence[float | None], items: list[str] | None = None) -> Evaluation:
    items = items or [""] * len(scores)
    rows = [row(i, s, item) for i, (s, item) in enumerate(zip(scores, items, strict=True))]
    return Evaluation(rows, {"sampling": {"temperature": 0.0}, "samples": 1})


def stage(name: str, scores: Sequence[float | None], train_s: float = 0.0) -> Stage:
    sampled = Evaluation(
        [row(0, float(k < 2), sample=k) for k in range(4)],
        {"sampling": {"temperature": 1.0}, "samples": 4},
    )
    return Stage(name, greedy(scores), sampled, train_s)


def four() -> dict[str, Stage]:
    scores: dict[str, list[float]] = {
        "base": [0.0] * 8,
        "sft": [0, 0, 0, 0, 1, 1, 0, 1],
        "sft-best": [0, 0, 1, 0, 1, 1, 0, 1],
        "ppo": [1, 1, 1, 0, 1, 1, 1, 0],
    }
    return {name: stage(name, values, 90.0 * (name != "base")) for name, values in scores.items()}


def test_the_table_has_a_row_for_each_policy() -> None:
    lines = report.results_table(list(four().values())).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == list(STAGES.values())
    ppo = lines[4].split()
    assert ppo[1] == "0.750" and "0.500" in ppo and "(k=4)" in ppo
    assert lines[1].endswith("-") and lines[4].endswith("1 min 30 s")


def test_differences_pair_by_instruction_and_not_by_place() -> None:
    after, before = greedy([1.0, 0.0, 1.0]), greedy([0.0, 0.0, 1.0])
    shuffled = Evaluation(before.rows[::-1], before.header)
    assert report.difference(after, shuffled).mean == pytest.approx(1 / 3)


def test_differences_are_clustered_by_item() -> None:
    scores = [1.0] * 10 + [0.0] * 10
    alone = report.difference(greedy(scores), greedy([0.0] * 20))
    items = ["a"] * 5 + ["b"] * 5 + ["c"] * 5 + ["d"] * 5
    clustered = report.difference(greedy(scores, items), greedy([0.0] * 20, items))
    assert (alone.n_clusters, clustered.n_clusters) == (20, 4)
    assert clustered.high - clustered.low > alone.high - alone.low


def test_differences_leave_out_what_one_side_could_not_score() -> None:
    found = report.difference(greedy([1.0, None, 1.0]), greedy([0.0, 0.0, 1.0]))
    assert found.n == 2 and found.mean == 0.5


def test_different_instructions_are_not_compared() -> None:
    with pytest.raises(DataError, match="'i2'"):
        report.difference(greedy([1.0, 1.0]), greedy([1.0, 1.0, 0.0]))


def test_the_verdict_says_whether_zero_is_excluded() -> None:
    stages = four()
    stages["ppo"] = stage("ppo", [1.0] * 8)
    short, best = report.difference_lines(stages)
    assert short.startswith("PPO - short SFT: +0.625") and "excludes 0" in short
    stages["sft-best"] = stages["ppo"]
    assert "+0.000" in report.difference_lines(stages)[1]
    assert "includes 0" in report.difference_lines(stages)[1] and best != short


def test_samples_show_losses_and_what_stays_wrong_too() -> None:
    before = greedy([0.0] * 20 + [1.0] * 20)
    after = greedy([1.0] * 10 + [0.0] * 10 + [1.0] * 15 + [0.0] * 5)
    kinds = [kind for kind, _ in report.pick_samples(before, after, seed=0)]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "gained": 4,
        "lost": 2,
        "right before and after": 2,
        "wrong before and after": 2,
    }


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_one_kind_makes_up_for_the_others(score: float) -> None:
    same = greedy([score] * 30)
    picked = report.pick_samples(same, same, seed=1)
    assert len(picked) == len({key for _, key in picked}) == 10


def test_few_instructions_give_few_samples() -> None:
    assert len(report.pick_samples(greedy([0.0, 1.0]), greedy([1.0, 1.0]), seed=0)) == 2


def test_samples_depend_on_the_seed_alone() -> None:
    before, after = greedy([0.0] * 50), greedy([1.0] * 50)
    first = report.pick_samples(before, after, seed=0)
    assert first == report.pick_samples(before, after, seed=0)
    assert first != report.pick_samples(before, after, seed=1)


def test_sample_lines_mark_what_is_right() -> None:
    text = "\n".join(report.sample_lines(four(), seed=0))
    assert "(gained)" in text and "(lost)" in text
    assert "PPO        ok  yes" in text and "zero-shot      no" in text


def test_the_report_holds_responses_that_look_like_markup(tmp_path: Path) -> None:
    path = report.write_report(tmp_path, {"Before": "```\n# not a title"})
    assert path.read_text(encoding="utf-8").count("````") == 2


def test_the_summary_holds_every_number_of_the_table() -> None:
    summary = report.summary_of(four())
    assert summary["stages"]["ppo"]["exact_match"]["mean"] == 0.75
    assert summary["stages"]["ppo"]["families"] == {"f": 0.75}
    assert summary["differences"]["ppo-sft"]["mean"] == pytest.approx(0.375)
    assert all(math.isfinite(v) for v in summary["stages"]["sft"]["sampled"].values())


def test_each_quickstart_gets_the_next_number(tmp_path: Path) -> None:
    assert _next_name(tmp_path) == "quickstart-1"
    for name in ("quickstart-1", "quickstart-9", "quickstart-old", "other"):
        (tmp_path / name).mkdir()
    assert _next_name(tmp_path) == "quickstart-10"

"""Comparing policies: from run folders to a verdict, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import CheckpointError, ConfigError, DataError
from instructrec.experiments.cli import main
from instructrec.experiments.compare import CompareConfig, compare
from instructrec.experiments.compare_charts import curves
from instructrec.experiments.contenders import read_comparison
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.tracking import TrackingConfig

HEADER = {
    "task": "letters",
    "split": "test",
    "reward": {"match": 1.0},
    "episodes": {"env": "instruction"},
    "sampling": {"temperature": 0.0},
}
ROW = {"prompt": "question", "response": "try 0", "reference": "r", "response_len": None}
Scores = Callable[[int], dict[str, float | None]]


def evaluation(
    path: Path, scores: Scores, *, size: int = 40, header: dict[str, Any] | None = None, **row: Any
) -> Path:
    """A file of responses whose scores are given by instruction."""
    rows = []
    for i in range(size):
        parts = scores(i)
        rows.append(
            {
                "id": f"q{i}",
                "sample": 0,
                "prompt": f"question {i}",
                "response": f"answer {i} of {path.stem}",
                "reference": "r",
                "parts": parts,
                "total": parts["match"],
                "status": dict.fromkeys(parts, "scored"),
                "stop_reason": "eos",
                "response_len": 3,
                "logprob": -1.0,
                "item": None,
                "family": "even" if i % 2 == 0 else "odd",
            }
            | row
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(path.with_suffix(".json"), HEADER | (header or {}) | {"rows": size, "samples": 1})
    return path


def run_folder(path: Path, scores: Scores, *, seed: int, variant: str, **settings: Any) -> Path:
    """A finished training run with that evaluation."""
    evaluation(path / "eval" / "test.jsonl", scores)
    info = {"job_type": "train", "algorithm": "ppo", "variant": variant, "seed": seed}
    record = {"format_version": 1, "status": "finished", "base_model": "tiny", "task": "letters"}
    write_json(path / "run.json", record | info)
    write_json(path / "summary.json", {"eval_file": "eval/test.jsonl"})
    (path / "config.yaml").write_text(f"seed: {seed}\nppo: {{learning_rate: {settings or 1}}}\n")
    rows = [{"train/update": u, "reward/total/mean": 0.1 * u, "ppo/kl_ref": 4.0} for u in (1, 2)]
    text = "".join(json.dumps(row | {"rollout/response_len": 2.0}) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(text)
    return path


def good(i: int) -> dict[str, float | None]:
    return {"match": float(i % 4 != 0), "short": 0.0}


def bad(i: int) -> dict[str, float | None]:
    return {"match": float(i % 4 == 1), "short": 1.0}


def silent(_: str) -> None:
    pass


def test_a_clear_difference_is_decided_and_said_in_words(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "new.jsonl", good)
    b = evaluation(tmp_path / "old.jsonl", bad)
    said: list[str] = []
    config = CompareConfig(out=str(tmp_path / "out"))
    results = compare([str(a), str(b)], config, say=said.append)
    (pair,) = results["parts"]["total"]["pairs"]
    assert pair["mean"] == pytest.approx(0.5) and 0.3 < pair["low"] < pair["high"] < 0.7
    assert (pair["wins"], pair["ties"], pair["losses"]) == (20, 20, 0)
    assert pair["decided"] == "these runs" and pair["p_holm"] < 0.001
    verdict = results["verdicts"][0]
    assert verdict.startswith("the one run of new is better than the one run of old by 0.500")
    assert verdict.endswith("; other seeds are not known.")
    assert results["verdicts"][0] in said[0]
    even = results["parts"]["total"]["tasks"]["even"]
    assert even["policies"]["new"]["mean"] == pytest.approx(0.5)
    notes = " ".join(results["warnings"])
    assert "Three seeds" in notes and "new is better than old in total, but worse in short" in notes
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written == json.loads(json.dumps(results))
    assert "| new - old | total | +0.500 |" in (tmp_path / "out" / "compare.md").read_text()


def test_equal_policies_are_undecided(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "one.jsonl", good)
    b = evaluation(tmp_path / "two.jsonl", lambda i: good(i + 2 * (i % 8 < 4)))
    said: list[str] = []
    tracking = TrackingConfig(mode="disabled", project="mine")
    config = CompareConfig(out=str(tmp_path / "out"), tracking=tracking)
    results = compare([str(a), str(b)], config, say=said.append)
    assert said[0].startswith("note: tracking.project given, but nothing is mirrored")
    assert results["verdicts"][0].startswith("undecided")
    assert results["parts"]["total"]["pairs"][0]["decided"] == "no"


def test_runs_of_one_variant_are_the_seeds_of_a_policy(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path / f"{name}-s{seed}", scores, seed=seed, variant=name)
        for name, scores in (("new", good), ("old", bad))
        for seed in (1, 0, 2)
    ]
    results = compare(list(map(str, folders)), CompareConfig(out=str(tmp_path / "o")), say=silent)
    assert {k: v["seeds"] for k, v in results["policies"].items()} == {
        "new": [0, 1, 2],
        "old": [0, 1, 2],
    }
    (pair,) = results["parts"]["total"]["pairs"]
    assert pair["improvement"] == 1.0 and pair["decided"] == "yes"
    assert (pair["runs_low"], pair["runs_high"]) == pytest.approx((0.34, 0.66), abs=0.01)
    assert "of other runs [+0.3" in results["verdicts"][0]
    notes = " ".join(results["warnings"])
    assert "2.00 nats per token from its reference" in notes and "Three seeds" not in notes
    page = (tmp_path / "o" / "compare.html").read_text()
    assert "learning curves" in page
    assert re.search(r"<small>other runs \+0\.3\d\d to \+0\.6\d\d</small>", page)  # the pair
    assert re.search(r"<small>other runs 0\.\d{3} to 0\.\d{3}</small>", page)  # its policies


def test_seeds_that_are_not_the_same_are_drawn_apart(tmp_path: Path) -> None:
    folders = [
        run_folder(tmp_path / f"{name}-s{seed}", scores, seed=seed, variant=name)
        for name, scores, seeds in (("new", good, (0, 1)), ("old", bad, (5, 6, 7)))
        for seed in seeds
    ]
    results = compare(list(map(str, folders)), CompareConfig(out=str(tmp_path / "o")), say=silent)
    (pair,) = results["parts"]["total"]["pairs"]
    assert 0.3 < pair["runs_low"] < 0.5 < pair["runs_high"] < 0.7


def test_one_run_against_several_resamples_their_seeds(tmp_path: Path) -> None:
    def luck(seed: int) -> Scores:
        return lambda i: {"match": float(i % 4 < seed), "short": 0.0}

    new = [run_folder(tmp_path / f"s{s}", luck(s), seed=s, variant="new") for s in (1, 2, 3)]
    old = evaluation(tmp_path / "old.jsonl", luck(1))
    named = [*map(str, new), str(old)]
    results = compare(named, CompareConfig(out=str(tmp_path / "o")), say=silent)
    (pair,) = results["parts"]["total"]["pairs"]
    assert pair["mean"] == pytest.approx(0.25) and pair["low"] > 0.1
    assert pair["runs_low"] < 0 and pair["runs_high"] > 0.5 and pair["decided"] == "no"
    verdict = results["verdicts"][0]
    assert verdict.startswith("undecided: the 3 runs of new are better than the one run of old by")


def test_a_single_item_says_nothing_of_chance(tmp_path: Path) -> None:
    named = [str(evaluation(tmp_path / f"{x}.jsonl", good, size=1)) for x in "ab"]
    with pytest.raises(DataError, match="fewer than two items have a score of 'total'"):
        compare(named, CompareConfig(out=str(tmp_path / "o")), say=silent)


def test_a_seed_that_had_other_settings_is_told(tmp_path: Path) -> None:
    first = run_folder(tmp_path / "a-s0", good, seed=0, variant="a")
    second = run_folder(tmp_path / "a-s1", good, seed=1, variant="a", rate=2)
    other = evaluation(tmp_path / "b.jsonl", bad)
    found = read_comparison([str(first), str(second), str(other)])
    assert any("the runs of a differ in ppo.learning_rate" in note for note in found.notes)


def test_names_put_runs_together(tmp_path: Path) -> None:
    files = [evaluation(tmp_path / f"{i}.jsonl", good) for i in range(3)]
    found = read_comparison([f"x={files[0]},{files[1]}", f"y={files[2]}"])
    assert [(c.name, len(c.members)) for c in found.contenders] == [("x", 2), ("y", 1)]


def test_instructions_without_a_score_are_left_out_for_all(tmp_path: Path) -> None:
    def sometimes(i: int) -> dict[str, float | None]:
        return {"match": None if i < 5 else 1.0, "short": 0.0}

    a = evaluation(tmp_path / "a.jsonl", sometimes)
    b = evaluation(tmp_path / "b.jsonl", bad)
    results = compare([str(a), str(b)], CompareConfig(out=str(tmp_path / "o")), say=silent)
    part = results["parts"]["total"]
    assert (part["instructions"], part["left_out"]) == (35, 5)
    assert part["policies"]["b"]["mean"] == pytest.approx(9 / 35)
    assert any("5 instructions without a score of total" in note for note in results["warnings"])


def test_other_expected_answers_are_the_first_of_all_notes(tmp_path: Path) -> None:
    a = run_folder(tmp_path / "a-s0", good, seed=0, variant="a")
    b = evaluation(tmp_path / "b.jsonl", bad, reference="something else")
    said: list[str] = []
    config = CompareConfig(out=str(tmp_path / "o"))
    results = compare([str(a), str(b)], config, say=said.append)
    note = results["warnings"][0]
    assert note.startswith("DIFFERENT REFERENCES on 40 of 40 instructions (q0 of b.jsonl and a-s0")
    assert f"note: {note}" in said[0]
    assert note in (tmp_path / "o" / "compare.md").read_text()
    page = (tmp_path / "o" / "compare.html").read_text()
    assert page.index("DIFFERENT REFERENCES") < page.index("<h2>Means")
    same = evaluation(tmp_path / "c.jsonl", bad)
    assert not read_comparison([str(a), str(same)]).notes


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a.jsonl", good)
    fewer = evaluation(tmp_path / "fewer.jsonl", good, size=30)
    asked = evaluation(tmp_path / "asked.jsonl", good, prompt="another question")
    run = run_folder(tmp_path / "r-s0", good, seed=0, variant="r")
    write_json(run / "summary.json", {})
    for named, error, message in (
        ([a], DataError, "1 policy to compare"),
        ([a, fewer], DataError, r"30 of up to 40 are the same.*--common"),
        ([a, asked], DataError, "answered different instructions"),
        ([a, run], DataError, "has no evaluation"),
        ([a, tmp_path / "nowhere"], CheckpointError, "no run folder"),
    ):
        with pytest.raises(error, match=message):
            read_comparison([str(path) for path in named])
    with pytest.raises(DataError, match="a run or a seed twice"):
        read_comparison([f"x={a},{a}", str(fewer)])
    found = read_comparison([str(a), str(fewer)], common=True)
    assert len(found.ids) == 30 and "only 30 of 40" in found.notes[0]


def test_an_unknown_metric_or_a_foreign_folder_changes_nothing(tmp_path: Path) -> None:
    named = [str(evaluation(tmp_path / f"{x}.jsonl", good)) for x in "ab"]
    with pytest.raises(ConfigError, match="matches"):
        compare(named, CompareConfig(metric="matches", out=str(tmp_path / "o")), say=silent)
    assert not (tmp_path / "o").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match="holds no comparison"):
        compare(named, CompareConfig(out=str(tmp_path / "mine")), say=silent)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_page_holds_hostile_text_as_text_and_runs_one_script(tmp_path: Path) -> None:
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(2)> \u202egnp.exe"
    a = evaluation(tmp_path / "a.jsonl", good, response=evil, prompt=evil)
    b = evaluation(tmp_path / "b.jsonl", bad, prompt=evil)
    compare([f"<b>={a}", f"b={b}"], CompareConfig(out=str(tmp_path / "o")), say=silent)
    page = (tmp_path / "o" / "compare.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "\\u202egnp" in page
    assert page.count("<script>") == 1 and "<img" not in page and "<b>" not in page
    assert "http" not in re.sub(r"http-equiv", "", page)
    (script,) = re.findall(r"<script>(.*)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in page


def test_nobody_is_ahead_where_means_are_the_same(tmp_path: Path) -> None:
    named = [str(evaluation(tmp_path / f"{x}.jsonl", good)) for x in "ab"]
    results = compare(named, CompareConfig(out=str(tmp_path / "o")), say=silent)
    assert results["verdicts"] == [
        "undecided: a and b have the same mean (interval unknown, all alike)."
    ]


def test_no_name_or_family_steers_the_terminal(tmp_path: Path) -> None:
    said: list[str] = []
    a, b = (evaluation(tmp_path / f"{x}.jsonl", good) for x in "ab")
    named = [f"\x1b[2Ja={a}", f"b={b}"]
    compare(named, CompareConfig(out=str(tmp_path / "o")), say=said.append)
    assert "\x1b" not in said[0] and "\\x1b[2Ja" in said[0]


def test_the_command_compares_what_evaluations_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for policy in ("oracle", "random"):
        command = ["evaluate", policy, "--task", "closed_answers", "--limit", "20"]
        assert main([*command, "--name", policy]) == 0
    assert main(["compare", "runs/oracle", "runs/random"]) == 0
    assert "oracle is better than random" in capsys.readouterr().out
    assert Path("runs/compare-oracle-vs-random/compare.html").is_file()


def test_a_response_stands_beside_its_own_score_and_the_mean_of_its_samples(tmp_path: Path) -> None:
    def drawn(path: Path, scores: list[list[float]]) -> Path:
        """Two samples for each instruction."""
        rows = [
            {**ROW, "id": f"q{i}", "sample": s, "parts": {"match": score}, "total": score}
            for i, samples in enumerate(scores)
            for s, score in enumerate(samples)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json(path.with_suffix(".json"), HEADER | {"rows": len(rows), "samples": 2})
        return path

    lucky = drawn(tmp_path / "lucky.jsonl", [[1.0, 0.0], [1.0, 0.5], [0.0, 0.0]])
    steady = drawn(tmp_path / "steady.jsonl", [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    compare([str(lucky), str(steady)], CompareConfig(out=str(tmp_path / "o")), say=silent)
    page = (tmp_path / "o" / "compare.html").read_text()
    rows = re.findall(r"<tr><td>([+-]\d\.\d{3})</td>(.*?)</tr>", page)
    assert [difference for difference, _ in rows] == ["+0.750", "-0.500", "+0.000"]
    assert "1.000; mean of 2: 0.750</small><br>try 0" in rows[0][1]
    assert "1.000; mean of 2: 0.500" in rows[1][1] and "1.000; mean of 2: 1.000" in rows[1][1]


def test_rows_are_ordered_by_the_difference_of_the_means_over_runs(tmp_path: Path) -> None:
    def of(*right: int) -> Scores:
        return lambda i: {"match": float(i in right), "short": 0.0}

    runs = [
        run_folder(tmp_path / f"a-s{s}", of(5, 0) if s else of(5), seed=s, variant="a")
        for s in range(3)
    ]
    other = evaluation(tmp_path / "b.jsonl", of(7))
    compare([*map(str, runs), str(other)], CompareConfig(out=str(tmp_path / "o")), say=silent)
    page = (tmp_path / "o" / "compare.html").read_text()
    found = re.findall(r"<tr><td>([+-]\d\.\d{3})</td>.*?question (\d+)<", page)
    assert found[:3] == [("+1.000", "5"), ("-1.000", "7"), ("+0.667", "0")]  # not run 0's +0.000


def test_tasks_have_bars_intervals_sizes_and_differences(tmp_path: Path) -> None:
    named = [str(evaluation(tmp_path / f"{x}.jsonl", f)) for x, f in (("a", good), ("b", bad))]
    config = CompareConfig(out=str(tmp_path / "o"))
    odd = compare(named, config, say=silent)["parts"]["total"]["tasks"]["odd"]
    assert odd["n"] == 20 and odd["policies"]["b"]["mean"] == pytest.approx(0.5)
    assert odd["policies"]["b"]["low"] < 0.5 < odd["policies"]["b"]["high"]
    assert odd["differences"]["b"]["mean"] == pytest.approx(0.5)
    assert 0.2 < odd["differences"]["b"]["low"] < odd["differences"]["b"]["high"] < 0.8
    table = (tmp_path / "o" / "compare.md").read_text()
    assert "| task | instructions | a | b | a - b |" in table and "| odd | 20 | 1.000 (0." in table
    page = (tmp_path / "o" / "compare.html").read_text()
    assert 'aria-label="means of odd with 95 % intervals"' in page


def test_wins_have_their_interval_and_one_reward_is_shown_once(tmp_path: Path) -> None:
    def only(scores: Scores) -> Scores:
        return lambda i: {"match": scores(i)["match"]}

    said: list[str] = []
    a, b = (evaluation(tmp_path / f"{x}.jsonl", only(f)) for x, f in (("a", good), ("b", bad)))
    results = compare([str(a), str(b)], CompareConfig(out=str(tmp_path / "o")), say=said.append)
    assert list(results["parts"]) == ["total", "match"]
    written = (tmp_path / "o" / "compare.md").read_text()
    page = (tmp_path / "o" / "compare.html").read_text()
    for shown in (said[0], written, page):
        assert "1.00 (0.84 to 1.00)" in shown and "match" not in shown
    assert 'title="probability that a run of the first' in page


def test_differences_that_are_all_alike_have_no_interval(tmp_path: Path) -> None:
    def always(score: float) -> Scores:
        return lambda i: {"match": score, "short": 0.0}

    said: list[str] = []
    a, b = (evaluation(tmp_path / f"{x}.jsonl", always(y), size=8) for x, y in (("a", 1), ("b", 0)))
    results = compare([str(a), str(b)], CompareConfig(out=str(tmp_path / "o")), say=said.append)
    assert "by 1.000 (interval unknown, all alike), p = 0.00781" in results["verdicts"][0]
    assert "[+1.000, +1.000]" not in said[0] + (tmp_path / "o" / "compare.md").read_text()
    assert "unknown (all alike)" in (tmp_path / "o" / "compare.html").read_text()


def test_curves_of_unlike_trainings_are_over_episodes_and_show_validation(tmp_path: Path) -> None:
    rl = run_folder(tmp_path / "rl-s0", good, seed=0, variant="rl")
    sft = run_folder(tmp_path / "sft-s0", bad, seed=0, variant="sft")
    rows = [{"train/update": u, "train/episodes": 128 * u, "eval/total/mean": 0.1} for u in (1, 4)]
    (rl / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"sft/step": u, "eval/total/mean": 0.2} for u in (2, 8)]
    (sft / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(sft / "run.json", json.loads((sft / "run.json").read_text()) | {"job_type": "sft"})
    (sft / "config.yaml").write_text("sft: {batch_size: 16}\n")
    drawn = curves(read_comparison([str(rl), str(sft)]))
    assert "validation split" in drawn and "Training reward" not in drawn
    assert ">32</text>" in drawn and ">episodes 512</text>" in drawn
    assert ">update 4</text>" in curves(read_comparison([str(rl), f"other={rl}"]))

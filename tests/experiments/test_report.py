"""The report on one run: what it says of finished, unfinished and failed runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from instructrec.errors import CheckpointError, ConfigError, DataError
from instructrec.experiments.before_after import changes, find_before, read_evaluation
from instructrec.experiments.cli import main
from instructrec.experiments.contenders import read_comparison
from instructrec.experiments.jsonl import write_json
from instructrec.experiments.report import ReportConfig, report
from instructrec.experiments.runfolder import RunFolder

Write = Callable[..., Path]


def silent(_: str) -> None:
    pass


def test_a_finished_run_is_told_in_words_numbers_and_a_page(
    tmp_path: Path, write_run: Write, write_evaluation: Write
) -> None:
    run = write_run(tmp_path / "runs" / "mine")
    write_evaluation(run / "eval" / "start-0.jsonl", 10)
    said: list[str] = []
    results = report(str(run), say=said.append)
    (first, *_), text = results["verdicts"], said[0]
    assert first.startswith("better: held-out total 0.250 before, 0.750 after (+0.500, 95 % ")
    assert first.endswith("): of this run; other seeds are not known.")
    assert first in text and "warning: update 2: looks odd" in text
    assert "mine: ppo from tiny on letters, finished after 6 updates in 2 min 00 s" in text
    assert "40% of what this machine could do" in text
    assert text.rstrip().endswith("again  instructrec train letters")  # without --resume
    assert results["course"]["ppo/kl_ref"] == {"first": 0.2, "last": pytest.approx(1.2)}
    assert results["phases"] == {
        "rollout": 1.0,
        "scoring": 1.0,
        "advantages": 1.0,
        "update": 1.0,
        "other": 1.0,
    }
    even = results["families"]["even"]
    assert (even["after"], even["n"], even["before"]) == (0.75, 20, 0.25)
    assert 0.5 < even["low"] < 0.75 < even["high"] < 0.9
    assert json.loads((run / "report" / "report.json").read_text()) == results
    markdown = (run / "report" / "report.md").read_text()
    assert "| match | 0.750 | 0.650 to 0.850 | 0.250 | +0.500 |" in markdown
    page = (run / "report" / "report.html").read_text()
    assert "Learning curves" in page and "<td>early</td>" in page and "<td>late</td>" in page
    report(str(run), say=silent)  # its own earlier report is no obstacle


def test_what_monitors_saw_and_did_is_told_with_the_responses_that_show_it(
    tmp_path: Path, write_run: Write
) -> None:
    run = write_run(tmp_path / "hacked")
    shown = {"id": "a", "prompt": "say *red*", "response": "red " * 100 + "<b>", "total": 1.0}
    alarm = {
        **{"update": 4, "monitor": "repetition", "action": "lower_lr"},
        **{"effect": "ppo.learning_rate 0.002 -> 0.001", "message": "it says the same."},
    }
    rows = [{"update": 2, "message": "looks odd"}, alarm | {"samples": [shown]}]
    rows.append(alarm | {"update": 5, "action": "warn", "effect": "", "samples": []})
    (run / "warnings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    results = report(str(run), say=said.append)
    assert results["warnings"] == ["update 2: looks odd"]
    assert [row["update"] for row in results["monitors"]] == [4, 5]
    told = "lower_lr: ppo.learning_rate 0.002 -> 0.001"
    assert told in said[0] and "it says the same." in said[0] and "red red" not in said[0]
    markdown = (run / "report" / "report.md").read_text()
    assert (
        f"| repetition | 4 | {told.replace('>', chr(92) + '>')} | it says the same. |" in markdown
    )
    assert "Responses that show it (repetition, update 4):" in markdown
    assert "| say *red* | red red" in markdown and "…" in markdown and "update 5)" not in markdown
    page = (run / "report" / "report.html").read_text()
    assert "<td>repetition, update 4</td>" in page and "red &lt;b&gt;" in page


def test_worse_and_undecided_are_called_so(
    tmp_path: Path, write_run: Write, write_evaluation: Write
) -> None:
    run = write_run(tmp_path / "runs" / "mine", right=20)
    for right, verdict in ((38, "worse"), (21, "undecided")):
        start = write_evaluation(tmp_path / f"{right}.jsonl", right)
        config = ReportConfig(before=str(start), out=str(tmp_path / verdict))
        found = report(str(run), config, say=silent)["changes"][0]
        assert found["verdict"] == verdict and found["before"] == right / 40


def test_the_start_is_found_at_the_parent_and_beside_the_run(
    tmp_path: Path, write_run: Write, write_evaluation: Write
) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "parent", right=12)
    child = write_run(runs / "child", base_model="elsewhere/parent", parent="elsewhere/parent")
    before = find_before(RunFolder.open(child), read_evaluation(child))
    assert before is not None and before.path == runs / "parent" / "eval" / "end-6.jsonl"

    (runs / "parent" / "summary.json").unlink()
    write_evaluation(runs / "parent" / "eval" / "start-2.jsonl", 3)  # not of what was passed on
    assert find_before(RunFolder.open(child), read_evaluation(child)) is None

    alone = write_run(runs / "alone", base_model="some-model")
    end = read_evaluation(alone)
    assert find_before(RunFolder.open(alone), end) is None
    measured = runs / "measured"
    write_evaluation(measured / "eval" / "other.jsonl", 5, reward={"match": 2.0})
    file = write_evaluation(measured / "eval" / "same.jsonl", 5)
    record = {"format_version": 1, "job_type": "eval", "base_model": "some-model"}
    write_json(measured / "run.json", record)
    before = find_before(RunFolder.open(alone), end)
    assert before is not None and before.path == file
    assert changes(before, end)[0].before == 5 / 40


def test_a_run_without_an_end_is_reported_as_far_as_it_went(
    tmp_path: Path, write_run: Write
) -> None:
    running = write_run(tmp_path / "running", right=None)
    results = report(str(running), say=silent)
    assert results["verdicts"] == [
        "not finished: it is still running, or was killed (--resume goes on)."
    ]
    assert results["done"] == 6 and not results["scores"]
    failed = write_run(
        tmp_path / "failed", right=None, status="failed", error="RewardError:\n```\nno"
    )
    for name in ("metrics.jsonl", "samples.jsonl", "warnings.jsonl"):
        (failed / name).unlink()
    results = report(str(failed), say=silent)
    assert results["verdicts"] == ["failed: RewardError: ``` no"] and results["done"] == 0
    evil = write_run(tmp_path / "evil", right=None, status="failed", error="\x1b[2Jno")
    said: list[str] = []
    report(str(evil), say=said.append)
    assert "\x1b" not in said[0] and "failed: \\x1b[2Jno" in said[0]


def test_a_record_that_lacks_its_status_ends_in_no_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    write_json(folder / "run.json", {"format_version": 1, "job_type": "train"})
    (folder / "config.yaml").write_text("name: foreign\n")
    assert report(str(folder), say=silent)["status"] is None
    with pytest.raises(DataError, match="has no evaluation"):
        read_comparison([str(folder)])


def test_without_a_start_nothing_is_claimed(tmp_path: Path, write_run: Write) -> None:
    run = write_run(tmp_path / "runs" / "mine")
    results = report(str(run), say=silent)
    assert results["before"] is None and not results["changes"]
    assert results["verdicts"][0].startswith("better than before? Not known")


def test_what_cannot_be_reported_is_refused(
    tmp_path: Path, write_run: Write, write_evaluation: Write
) -> None:
    run = write_run(tmp_path / "runs" / "mine")
    running = write_run(tmp_path / "running", right=None)
    several = write_run(tmp_path / "several", job_type="compare")
    write_run(several / "ppo")
    other = write_evaluation(tmp_path / "other.jsonl", 5, sampling={"temperature": 1.0})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("keep")
    for named, config, error, message in (
        (tmp_path / "none", ReportConfig(), CheckpointError, "no run folder"),
        (several, ReportConfig(), ConfigError, r"holds several runs: .*\(ppo\)"),
        (run, ReportConfig(before=str(other)), DataError, "another sampling"),
        (running, ReportConfig(before=str(other)), DataError, "no final evaluation"),
        (run, ReportConfig(out=str(tmp_path / "full")), ConfigError, "holds no report"),
    ):
        with pytest.raises(error, match=message):
            report(str(named), config, say=silent)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_the_command_reports_on_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "oracle", "--task", "closed_answers", "--limit", "20"]
    assert main([*command, "--name", "best"]) == 0
    assert main(["report", "runs/best", "--out", "told"]) == 0
    out = capsys.readouterr().out
    assert "an evaluation of oracle on closed_answers, finished" in out
    page = Path("told/report.html").read_text()
    assert "What was measured" in page and "Learning curves" not in page


def test_families_count_instructions_and_not_responses(
    write_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "r")
    file = run / "eval" / "end-6.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    twice = [row | {"sample": sample} for row in rows for sample in (0, 1)]
    file.write_text("".join(json.dumps(row) + "\n" for row in twice))
    header = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps(header | {"samples": 2, "rows": 80}))
    results = report(str(run), say=silent)
    assert {name: found["n"] for name, found in results["families"].items()} == {
        "even": 20,
        "odd": 20,
    }


def test_levels_have_a_table_of_their_own(write_run: Write, tmp_path: Path) -> None:
    run = write_run(tmp_path / "r")
    file = run / "eval" / "end-6.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    leveled = [row | {"level": 2 - (i < 10)} for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in leveled))
    results = report(str(run), say=silent)
    assert list(results["levels"]) == ["1", "2"] and results["levels"]["1"]["n"] == 10
    markdown = (run / "report" / "report.md").read_text()
    assert "| level | instructions | score | 95 % interval |" in markdown
    assert "| 2 | 30 | 0.667 | 0." in markdown

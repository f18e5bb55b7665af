"""``instructrec runs``: the table, its filters, and what may be deleted."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import CheckpointError, ConfigError
from instructrec.experiments.cli import main
from instructrec.experiments.locks import held
from instructrec.experiments.runfolder import RunFolder, RunInfo
from instructrec.experiments.runs_reading import SILENT_S, Filters, read_run, read_runs
from instructrec.experiments.runs_removal import chosen_for_space, chosen_runs, remove
from instructrec.experiments.runs_table import human_age, human_bytes, to_text


def make_run(
    root: Path, name: str, *, status: Any = "finished", score: float | None = 0.5, **about: Any
) -> RunFolder:
    info = {"job_type": "train", "algorithm": "ppo", "variant": "ppo-parity", "seed": 1}
    info |= {"base_model": "tiny", "task": "parity", **about}
    run = RunFolder.create(root / name, RunInfo(**info), {"seed": 1})
    with run.metrics_log() as log:
        for update in (1, 2, 3):
            log.write({"train/update": float(update)})
    (run.checkpoints / "update-3").mkdir(parents=True)
    (run.checkpoints / "update-3" / "weights").write_bytes(b"0" * 5000)
    run.policy.mkdir()
    numbers = {"eval/total/mean": score, "eval/total/ci_low": 0.4, "eval/total/ci_high": 0.6}
    if status != "running":
        run.finish(status, {**numbers, "updates": 3} if score is not None else None)
    return run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ``runs`` in the working folder with three runs, one of them in a quickstart."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs", "ppo-parity-s1")
    make_run(tmp_path / "runs", "sft-s1", algorithm="sft", variant="sft", status="failed")
    make_run(tmp_path / "runs", "quickstart-1/ppo", task="closed_answers", score=0.812)
    return tmp_path / "runs"


def names_of(root: Path, **filters: Any) -> list[str]:
    wanted = filters.pop("names", ())
    return sorted(x.name for x in read_runs(root)[0] if Filters(**filters).match(x, wanted))


# The table ----------------------------------------------------------------------------------------


def test_a_run_is_told_in_one_line(runs: Path) -> None:
    line = read_run(runs / "quickstart-1" / "ppo", runs)
    assert (line.name, line.status, line.algorithm) == ("quickstart-1/ppo", "finished", "ppo")
    assert (line.task, line.model, line.seed, line.updates) == ("closed_answers", "tiny", 1, 3)
    assert (line.score, line.low, line.high) == (0.812, 0.4, 0.6)
    assert line.size_bytes == sum(f.stat().st_size for f in line.path.rglob("*") if f.is_file())
    assert line.duration_s is not None and 0 <= line.duration_s < 60
    shown = to_text([line], [])
    assert "0.812 [0.400, 0.600]" in shown
    assert "quickstart-1/ppo  finished  ppo" in shown
    assert line.checkpoint_bytes == 5000
    assert "5.0 kB" in shown and "of it 5.0 kB of checkpoints (`instructrec runs rm" in shown


def test_a_run_without_an_end_shows_what_it_has(runs: Path) -> None:
    make_run(runs, "going", status="running", score=None)
    line = read_run(runs / "going")
    assert (line.status, line.updates, line.score) == ("running", 3, None)
    assert not line.is_doubtful


def test_a_run_that_has_been_silent_for_long_is_doubted(runs: Path) -> None:
    run = make_run(runs, "killed", status="running", score=None)
    for path in [run.path / "run.json", run.metrics_path, run.checkpoints]:
        before = path.stat().st_mtime - SILENT_S - 60
        os.utime(path, (before, before))
    line = read_run(run.path, runs)
    assert line.is_doubtful
    shown = to_text([line], [])
    assert "running?" in shown and "--resume" in shown


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["ppo-parity-s1", "quickstart-1/ppo", "sft-s1"]),
        ({"status": "failed"}, ["sft-s1"]),
        ({"task": "closed*"}, ["quickstart-1/ppo"]),
        ({"algorithm": "ppo", "task": "parity"}, ["ppo-parity-s1"]),
        ({"variant": "sft"}, ["sft-s1"]),
        ({"names": ("quickstart-1/*",)}, ["quickstart-1/ppo"]),
        ({"names": ("ppo*", "sft-s1")}, ["ppo-parity-s1", "quickstart-1/ppo", "sft-s1"]),
        ({"names": ("ppo*",), "task": "parity"}, ["ppo-parity-s1"]),
        ({"status": "interrupted"}, []),
    ],
)
def test_runs_are_filtered(runs: Path, filters: dict[str, Any], expected: list[str]) -> None:
    assert names_of(runs, **filters) == expected


def test_what_is_no_run_is_named_and_breaks_nothing(runs: Path) -> None:
    (runs / "notes").mkdir()
    (runs / "notes" / "a.txt").write_text("mine")
    (runs / "compare-a-vs-b").mkdir()
    (runs / "compare-a-vs-b" / "compare.json").write_text("{}")
    for name, text in {"torn": "{", "list": "[]", "foreign": "{}", "newer": ""}.items():
        (runs / name).mkdir()
        (runs / name / "run.json").write_text(text)
    (runs / "newer" / "run.json").write_text('{"format_version": 99, "job_type": "train"}')
    (runs / "link").symlink_to(runs / "sft-s1")
    strange = {"format_version": 1, "job_type": 3, "seed": "x", "started": 5, "status": None}
    (runs / "strange").mkdir()
    (runs / "strange" / "run.json").write_text(json.dumps(strange))
    (runs / "strange" / "metrics.jsonl").write_bytes(b'\xff\n[1]\n{"train/update": 1e')
    (runs / "sft-s1" / "summary.json").write_text("{")
    lines, skipped = read_runs(runs)
    assert {line.name for line in lines} >= {"strange", "sft-s1", "ppo-parity-s1"}
    reasons = {other.path.name: other.reason for other in skipped}
    assert set(reasons) == {
        *("notes", "compare-a-vs-b", "torn", "list", "foreign", "newer", "link")
    }
    assert reasons["compare-a-vs-b"] == "a comparison"
    assert "link" in reasons["link"] and "newer" in reasons["newer"]
    shown = to_text(lines, skipped)
    assert all(str(other.path) in shown for other in skipped)
    assert "sft-s1: " in shown and "summary.json" in shown


def test_a_torn_last_line_is_passed_over(runs: Path) -> None:
    run = make_run(runs, "cut", status="interrupted", score=None)
    with open(run.metrics_path, "a", encoding="utf-8") as file:
        file.write('{"train/update": 4.0, "rew')
    assert read_run(run.path).updates == 3


def test_the_command_lists_and_filters(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "--status", "failed"]) == 0
    shown = capsys.readouterr().out
    assert "sft-s1" in shown and "ppo-parity-s1" not in shown and "1 run, " in shown
    assert main(["runs", "list", "ppo-parity*", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["runs"]
    assert found["name"] == "ppo-parity-s1" and found["score"] == 0.5
    assert main(["runs", "list", "--dir", "nowhere"]) == 2
    assert "nowhere is no folder" in capsys.readouterr().err


def test_sizes_and_ages_are_for_people() -> None:
    assert [human_bytes(n) for n in (0, 999, 1200, 3.4e6, 2.04e9)] == [
        *("0 B", "999 B", "1.2 kB", "3.4 MB", "2.0 GB")
    ]
    ages = [human_age(seconds) for seconds in (5, 125, 7300, 200_000)]
    assert ages == ["now", "2 min ago", "2 h ago", "2 d ago"]


# Deleting -----------------------------------------------------------------------------------------


def test_runs_are_deleted_and_nothing_else(runs: Path) -> None:
    remove(chosen_runs(runs, ["sft-s1", "runs/quickstart-1/ppo", "sft-*"]))
    assert names_of(runs) == ["ppo-parity-s1"]
    assert (runs / "quickstart-1").is_dir()


def test_a_name_means_the_run_of_that_place_before_others_called_the_same(runs: Path) -> None:
    make_run(runs, "quickstart-1/sft-s1")
    remove(chosen_runs(runs, ["sft-s1"]))
    assert names_of(runs) == ["ppo-parity-s1", "quickstart-1/ppo", "quickstart-1/sft-s1"]
    remove(chosen_runs(runs, ["sft-s1"]))
    assert names_of(runs) == ["ppo-parity-s1", "quickstart-1/ppo"]


def test_checkpoints_alone_are_deleted(runs: Path) -> None:
    before = read_run(runs / "sft-s1")
    remove([before], checkpoints=True)
    after = read_run(runs / "sft-s1")
    assert before.size_bytes - after.size_bytes == 5000
    assert not (runs / "sft-s1" / "checkpoints").exists()
    remove([after], checkpoints=True)  # nothing to do is no mistake


def test_checkpoints_go_where_they_are_not_needed_any_more(runs: Path) -> None:
    make_run(runs, "going", status="running", score=None)
    (make_run(runs, "unsaved").path / "policy").rmdir()
    said = list[str]()
    chosen = chosen_for_space(runs, [], say=said.append)
    assert sorted(line.name for line in chosen) == ["ppo-parity-s1", "quickstart-1/ppo"]
    assert len(said) == 3 and all(text.startswith("left out: ") for text in said)
    assert any("sft-s1 (failed) goes on from its checkpoints" in text for text in said)
    assert any("unsaved has left no policy" in text for text in said)
    remove(chosen, checkpoints=True)
    for line in chosen:
        kept = {path.name for path in line.path.iterdir()}
        assert kept >= {"policy", "metrics.jsonl", "run.json", "summary.json"}
        assert "checkpoints" not in kept
    assert all((runs / name / "checkpoints").is_dir() for name in ("sft-s1", "going", "unsaved"))
    assert chosen_for_space(runs, ["*"], say=said.append) == []


def test_its_own_name_takes_the_checkpoints_of_an_unfinished_run(runs: Path) -> None:
    (chosen,) = chosen_for_space(runs, ["sft-s1"])
    assert chosen.name == "sft-s1"
    make_run(runs, "going", status="running", score=None)
    with pytest.raises(CheckpointError, match="says that it is running"):
        chosen_for_space(runs, ["going"])


def test_a_run_at_work_is_not_touched_whatever_its_record_says(runs: Path) -> None:
    lines = chosen_runs(runs, ["sft-s1"])
    with (
        held(runs / "sft-s1", "ppo"),
        pytest.raises(CheckpointError, match=r"in use.*process is at work"),
    ):
        remove(lines)
    assert (runs / "sft-s1" / "checkpoints" / "update-3" / "weights").exists()
    remove(lines)
    assert not list(runs.glob(".*.lock"))


def test_filters_say_what_is_deleted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "rm", "--yes"]) == 2
    assert "nothing says which runs" in capsys.readouterr().err
    assert main(["runs", "rm", "--checkpoints", "--task", "closed*", "--yes"]) == 0
    assert "deleted: 5.0 kB" in capsys.readouterr().out
    assert not (runs / "quickstart-1" / "ppo" / "checkpoints").exists()
    assert (runs / "ppo-parity-s1" / "checkpoints").exists()
    assert main(["runs", "rm", "--status", "failed", "--yes"]) == 0
    assert names_of(runs) == ["ppo-parity-s1", "quickstart-1/ppo"]
    assert main(["runs", "rm", "ppo*", "--status", "failed", "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().out


def test_a_no_deletes_nothing(runs: Path) -> None:
    asked, said = list[str](), list[str]()

    def refuse(question: str) -> bool:
        asked.append(question)
        return False

    remove(chosen_runs(runs, ["*-s1"]), ask=refuse, say=said.append)
    assert names_of(runs) == ["ppo-parity-s1", "quickstart-1/ppo", "sft-s1"]
    assert len(asked) == 1 and "these 2 run folders" in asked[0]
    assert said[-1] == "nothing was deleted."


def test_without_a_terminal_it_does_not_wait_for_an_answer(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "rm", "sft-s1"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert main(["runs", "rm", "sft-s1", "--yes"]) == 0
    assert not (runs / "sft-s1").exists()


def test_the_end_of_the_input_is_a_no(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())  # Ctrl-D
    assert main(["runs", "rm", "sft-s1"]) == 0
    assert (runs / "sft-s1").exists()


def test_a_running_run_stays_unless_forced(runs: Path) -> None:
    make_run(runs, "going", status="running", score=None)
    with pytest.raises(CheckpointError, match=r"says that it is running.*--force"):
        chosen_runs(runs, ["sft-s1", "going"])
    assert (runs / "sft-s1").exists()
    remove(chosen_runs(runs, ["going"], force=True))
    assert not (runs / "going").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("sft-s2", ConfigError, "unknown run 'sft-s2'. Did you mean 'sft-s1'"),
        ("notes", CheckpointError, "no run folder"),
        ("link", CheckpointError, "is a link"),
        ("way/run", ConfigError, "outside"),
        ("../outside/run", ConfigError, "outside"),
        ("quickstart-1", CheckpointError, "no run folder"),
        (".", CheckpointError, "no run folder"),
        ("..", ConfigError, "outside"),
    ],
)
def test_what_is_no_run_of_this_folder_is_not_deleted(
    runs: Path, name: str, error: type[Exception], message: str
) -> None:
    outside = runs.parent / "outside"
    make_run(outside, "run")
    (runs / "notes").mkdir()
    (runs / "link").symlink_to(outside / "run")
    (runs / "way").symlink_to(outside)
    with pytest.raises(error, match=message):
        chosen_runs(runs, [name])


def test_a_link_inside_a_run_is_not_followed(runs: Path) -> None:
    mine = runs.parent / "mine"
    mine.mkdir()
    (mine / "precious").write_text("x")
    (runs / "sft-s1" / "data").symlink_to(mine)
    remove(chosen_runs(runs, ["sft-s1"]))
    assert (mine / "precious").exists()
    line = read_run(runs / "ppo-parity-s1")
    (line.path / "checkpoints" / "update-3" / "weights").unlink()
    (line.path / "checkpoints" / "update-3").rmdir()
    (line.path / "checkpoints").rmdir()
    (line.path / "checkpoints").symlink_to(mine)
    with pytest.raises(CheckpointError, match="is a link"):
        remove([line], checkpoints=True)
    assert (mine / "precious").exists()

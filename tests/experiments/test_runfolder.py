from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest

from instructrec.errors import CheckpointError, RunInterrupted
from instructrec.experiments.machine import command_line
from instructrec.experiments.runfolder import (
    RunFolder,
    RunInfo,
    read_metrics,
    read_rows,
)
from instructrec.experiments.yaml_files import read_config

INFO = RunInfo(
    job_type="train",
    algorithm="ppo",
    variant="ppo-parity",
    seed=3,
    base_model="tiny",
    task="parity",
)
CONFIG = {"seed": 3, "ppo": {"lam": 1.0, "stop_strings": ("\n",)}}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_new_folder_says_what_runs(tmp_path):
    run = RunFolder.create(tmp_path / "runs" / "a", INFO, CONFIG, command=["train", "--seed", "3"])
    record = run.record()
    assert record["status"] == "running"
    assert record["finished"] is None
    assert record["command"] == ["train", "--seed", "3"]
    assert {"python", "instructrec", "numpy"} <= set(record["versions"])
    assert record["machine"]["cores"] >= 1
    assert record["machine"]["memory_bytes"] > 1e8
    assert run.info() == INFO
    assert run.config() == {"seed": 3, "ppo": {"lam": 1.0, "stop_strings": ["\n"]}}
    assert run.summary() == {}


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "a").mkdir()
    assert RunFolder.create(tmp_path / "a", INFO, CONFIG).record()["status"] == "running"


def test_an_existing_folder_is_refused_and_untouched(tmp_path):
    RunFolder.create(tmp_path / "a", INFO, CONFIG)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"exists already.*--resume.*--overwrite"):
        RunFolder.create(tmp_path / "a", INFO, CONFIG)
    assert contents(tmp_path) == before


def test_overwrite_deletes_a_run(tmp_path):
    old = RunFolder.create(tmp_path / "a", INFO, CONFIG)
    old.metrics_log().write({"train/update": 1.0})
    new = RunFolder.create(tmp_path / "a", replace(INFO, seed=4), CONFIG, overwrite=True)
    assert new.info().seed == 4
    assert not new.metrics_path.exists()


@pytest.mark.parametrize("run_json", [None, "{}", "not json", '{"name": "another tool\'s run"}'])
def test_overwrite_never_deletes_what_is_not_a_run(tmp_path, run_json):
    thesis = tmp_path / "a"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("years of work")
    if run_json is not None:
        (thesis / "run.json").write_text(run_json)
    before = contents(thesis)
    with pytest.raises(CheckpointError, match="not a run folder that instructrec made"):
        RunFolder.create(thesis, INFO, CONFIG, overwrite=True)
    assert contents(thesis) == before


def test_overwrite_does_not_follow_a_link(tmp_path):
    RunFolder.create(tmp_path / "a", INFO, CONFIG)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(CheckpointError, match="was not overwritten"):
        RunFolder.create(tmp_path / "link", INFO, CONFIG, overwrite=True)
    assert (tmp_path / "a" / "run.json").exists()


def test_resume_continues_the_same_run(tmp_path):
    run = RunFolder.create(tmp_path / "a", INFO, CONFIG)
    started = run.record()["started"]
    run.finish("failed", error="ValueError: x")
    resumed = RunFolder.create(tmp_path / "a", INFO, CONFIG | {"more": 1}, resume=True)
    record = resumed.record()
    assert record["status"] == "running"
    assert record["started"] == started
    assert len(record["resumed"]) == 1
    assert "error" not in record
    assert resumed.config()["more"] == 1


def test_resume_refuses_another_run(tmp_path):
    RunFolder.create(tmp_path / "a", INFO, CONFIG)
    with pytest.raises(CheckpointError, match=r"holds another run \(seed: 3 -> 5\)"):
        RunFolder.create(tmp_path / "a", replace(INFO, seed=5), CONFIG, resume=True)


def test_resume_needs_something_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="is no run folder"):
        RunFolder.create(tmp_path / "a", INFO, CONFIG, resume=True)
    assert not (tmp_path / "a").exists()


def test_a_place_that_cannot_hold_folders_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/a cannot be made.*output\.dir"):
        RunFolder.create(tmp_path / "file" / "a", INFO, CONFIG)


def test_a_start_that_breaks_off_leaves_no_half_of_a_folder(tmp_path):
    with pytest.raises(UnicodeEncodeError):  # behind run.json, as a kill may be
        RunFolder.create(tmp_path / "a", INFO, "\ud800")
    assert not (tmp_path / "a").exists()
    RunFolder.create(tmp_path / "a", INFO, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("text", [None, ": [", "", "- 1"])
def test_settings_that_cannot_be_read_are_named(tmp_path, text):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.yaml cannot be read.*Put the file back"):
        read_config(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    run = RunFolder.create(tmp_path / "a", INFO, CONFIG)
    (run.path / "run.json").write_text(json.dumps(run.record() | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        RunFolder.open(run.path)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (KeyboardInterrupt(), "interrupted"),
        (RunInterrupted("saved"), "interrupted"),
        (ValueError("the loss is a banana"), "failed"),
    ],
)
def test_the_end_of_a_run_is_recorded(tmp_path, error, status):
    def work():
        with RunFolder.create(tmp_path / "a", INFO, CONFIG):
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    record = RunFolder.open(tmp_path / "a").record()
    assert record["status"] == status
    assert record["finished"] is not None
    assert record.get("error") == (
        "ValueError: the loss is a banana" if status == "failed" else None
    )


def test_the_status_that_was_set_inside_stays(tmp_path):
    with RunFolder.create(tmp_path / "a", INFO, CONFIG) as run:
        run.finish("interrupted", {"eval/total/mean": np.float64(0.5)})
    assert run.record()["status"] == "interrupted"
    assert run.summary() == {"eval/total/mean": 0.5}


def test_metrics_are_on_the_disk_line_by_line(tmp_path):
    run = RunFolder.create(tmp_path / "a", INFO, CONFIG)
    log = run.metrics_log()
    log.write({"train/update": 1.0, "reward/total/mean": np.float32(0.5)})
    log.write({"train/update": 2.0, "reward/total/mean": 0.75})
    assert read_metrics(run.path) == [
        {"train/update": 1.0, "reward/total/mean": 0.5},
        {"train/update": 2.0, "reward/total/mean": 0.75},
    ]
    log.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("-inf")])
def test_a_number_that_is_not_finite_becomes_null_with_a_warning(tmp_path, value):
    run = RunFolder.create(tmp_path / "a", INFO, CONFIG)
    with (
        run.metrics_log() as log,
        pytest.warns(RuntimeWarning, match=r"update 1\.0: ppo/kl_ref is not"),
    ):
        log.write({"train/update": 1.0, "ppo/kl_ref": value, "ppo/lr": 1e-5})
    assert read_metrics(run.path) == [{"train/update": 1.0, "ppo/kl_ref": None, "ppo/lr": 1e-5}]


def test_a_resumed_run_drops_the_lines_that_it_writes_again(tmp_path):
    run = RunFolder.create(tmp_path / "a", INFO, CONFIG)
    with run.metrics_log() as log, run.samples_log() as samples:
        for update in range(1, 6):
            log.write({"train/update": float(update), "run": 1})
            samples.write({"update": update, "run": 1})
    with open(run.metrics_path, "a") as file:
        file.write('{"train/update": 6.0, "ru')
    with run.metrics_log(resumed_update=3) as log, run.samples_log(3) as samples:
        log.write({"train/update": 4.0, "run": 2})
        samples.write({"update": 4, "run": 2})
    expected = [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert [(m["train/update"], m["run"]) for m in read_metrics(run.path)] == expected
    assert [(r["update"], r["run"]) for r in read_rows(run.samples_path)] == expected


def test_a_run_resumed_from_the_start_keeps_no_line(tmp_path):
    run = RunFolder.create(tmp_path / "a", INFO, CONFIG)
    with run.metrics_log() as log:
        log.write({"train/update": 1.0})
    with run.metrics_log(resumed_update=0):
        pass
    assert read_metrics(run.path) == []


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("closed_answers", "closed_answers-test-greedy-16.jsonl"),
        ("data/my facts.jsonl", "my_facts-test-greedy-16.jsonl"),
        ("my_tasks.py:capitals", "my_tasks-test-greedy-16.jsonl"),
        ("../../etc/passwd", "passwd-test-greedy-16.jsonl"),
    ],
)
def test_the_name_of_an_evaluation_stays_inside_the_folder(tmp_path, task, name):
    path = RunFolder(tmp_path).eval_path(task, "test", "greedy", 16)
    assert path == tmp_path / "eval" / name


def test_secrets_on_the_command_line_are_not_recorded():
    given = [
        "train",
        *("--judge.api_key=abc", "--judge.api-key", "def", "--hub_token", "ghi"),
        *("--ppo.max_new_tokens", "64", "--password=jkl", "tokenizer=x"),
    ]
    assert command_line(given) == [
        "train",
        *("--judge.api_key=***", "--judge.api-key", "***", "--hub_token", "***"),
        *("--ppo.max_new_tokens", "64", "--password=***", "tokenizer=x"),
    ]


def test_a_new_run_folder_is_private_and_may_be_opened(tmp_path):
    before = os.umask(0o022)
    try:
        run = RunFolder.create(tmp_path / "runs" / "a", INFO, CONFIG)
        assert run.path.stat().st_mode & 0o777 == 0o700
        run.path.chmod(0o750)
        run.finish("interrupted")
        RunFolder.create(run.path, INFO, CONFIG, resume=True)
        assert run.path.stat().st_mode & 0o777 == 0o750
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["samples.jsonl", "run.json", "eval/t-test-greedy-1.jsonl"])
def test_a_run_whose_files_are_links_is_not_continued(tmp_path, name):
    run = RunFolder.create(tmp_path / "run", INFO, CONFIG)
    run.finish("interrupted")
    target, link = tmp_path / "elsewhere.jsonl", run.path / name
    link.parent.mkdir(exist_ok=True)
    target.write_bytes(link.read_bytes() if link.exists() else b'{"mine": 1}\n')
    content = target.read_bytes()
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    with pytest.raises(CheckpointError, match="is a link"):
        RunFolder.create(run.path, INFO, CONFIG, resume=True)
    assert target.read_bytes() == content


@pytest.mark.parametrize("named", ["../../secret.jsonl", "/etc/passwd", "eval/../../x", 3])
def test_an_evaluation_outside_the_folder_is_not_read(tmp_path, named):
    run = RunFolder.create(tmp_path / "run", INFO, CONFIG)
    run.finish("finished", {"eval_file": named})
    with pytest.raises(CheckpointError, match="eval_file"):
        run.summary()


def test_what_a_killed_writer_had_begun_is_gone_when_the_run_goes_on(tmp_path):
    run = RunFolder.create(tmp_path / "run", INFO, {"seed": 1})
    (run.path / "eval").mkdir()
    begun = [run.path / ".run.json.0123abcd.tmp", run.path / "eval" / ".a.json.0123abcd.tmp"]
    mine = [run.path / ".notes.tmp", run.path / "eval" / "a.jsonl"]
    for path in (*begun, *mine):
        path.write_text("half")
    RunFolder.create(run.path, INFO, {"seed": 1}, resume=True)
    assert [path.exists() for path in (*begun, *mine)] == [False, False, True, True]

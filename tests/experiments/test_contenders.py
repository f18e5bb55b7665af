"""What is compared and reported: names, paths, and files that are something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from instructrec.errors import DataError
from instructrec.experiments.contenders import read_comparison
from instructrec.experiments.report import report

Write = Callable[..., Path]


def test_a_file_that_is_no_evaluation_is_told_so(tmp_path: Path, write_evaluation: Write) -> None:
    good, other = str(write_evaluation(tmp_path / "good.jsonl", 30)), tmp_path / "data.jsonl"
    for text in ("", '{"prompt": "a"}\n'):
        other.write_text(text)
        with pytest.raises(DataError, match=r"data\.jsonl is no evaluation.*data\.json beside it"):
            read_comparison([good, str(other)])
    other.with_suffix(".json").write_text('{"select": "best"}')  # as beside preference pairs
    with pytest.raises(DataError, match="is no evaluation"):
        read_comparison([good, str(other)])


def test_a_report_stands_without_the_header_of_its_last_evaluation(write_run: Write, tmp_path):
    folder = write_run(tmp_path / "run")
    (file,) = (folder / "eval").glob("*.json")
    file.unlink()
    assert report(str(folder), say=lambda _: None)


def test_a_path_may_have_an_equals_sign(tmp_path: Path, write_evaluation: Write) -> None:
    strange = write_evaluation(tmp_path / "lr=1" / "a.jsonl", 30)
    found = read_comparison([str(strange), str(write_evaluation(tmp_path / "b.jsonl", 20))])
    assert [contender.name for contender in found.contenders] == ["a", "b"]


@pytest.mark.parametrize("text", ["a=", "a={},", "={}"])
def test_a_name_without_a_path_is_refused(tmp_path: Path, write_evaluation: Write, text) -> None:
    files = [str(write_evaluation(tmp_path / f"{name}.jsonl", 30)) for name in "xy"]
    with pytest.raises(DataError, match="expected NAME=PATH or NAME=PATH,PATH"):
        read_comparison([text.format(files[0]), files[1]])


def test_files_of_one_name_are_not_taken_for_runs_of_one_policy(
    tmp_path: Path, write_evaluation: Write
) -> None:
    files = [str(write_evaluation(tmp_path / run / "test.jsonl", 30)) for run in "xy"]
    other = str(write_evaluation(tmp_path / "other.jsonl", 20))
    with pytest.raises(DataError, match=r"have one name, 'test'.*NAME=PATH"):
        read_comparison([*files, other])
    found = read_comparison([f"two={','.join(files)}", other])
    assert [len(contender.members) for contender in found.contenders] == [2, 1]


def test_a_run_named_like_a_scripted_policy_does_not_vanish(
    tmp_path: Path, write_evaluation: Write
) -> None:
    a, b = (str(write_evaluation(tmp_path / f"{name}.jsonl", 30)) for name in "ab")
    for named in ([f"oracle={a}", "oracle", b], ["oracle", f"oracle={a}", b]):
        with pytest.raises(DataError, match="give the runs another name"):
            read_comparison(named)
    found = read_comparison([f"oracle={a}", b])
    assert [contender.name for contender in found.contenders] == ["oracle", "b"]


def test_a_file_in_the_folder_of_a_run_has_its_seed(
    tmp_path: Path, write_evaluation: Write, write_run: Write
) -> None:
    runs = [write_run(tmp_path / f"run-{seed}", variant="run", seed=seed) for seed in (3, 1)]
    files = [str(write_evaluation(run / "eval" / "best.jsonl", 20)) for run in runs]
    elsewhere = str(write_evaluation(tmp_path / "elsewhere" / "x.jsonl", 20))
    found = read_comparison([*map(str, runs), f"best={','.join(files)}", elsewhere])
    assert [contender.seeds for contender in found.contenders] == [[1, 3], [1, 3], [None]]
    with pytest.raises(DataError, match="a run or a seed twice"):
        read_comparison([f"best={files[0]},{runs[0]}", elsewhere])

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from instructrec.errors import CheckpointError, DataError
from instructrec.experiments.jsonl import (
    JsonlWriter,
    plain,
    read_json,
    read_rows,
    write_atomic,
    write_json,
)
from instructrec.policies.base import StopReason


def test_values_become_what_json_can_hold(tmp_path):
    value = plain(
        {
            "numbers": (np.float64(0.5), np.int64(3), np.bool_(True), math.inf, math.nan),
            "array": np.array([[1.0, np.nan]]),
            "enum": StopReason.EOS,
            "path": tmp_path,
            7: None,
        }
    )
    assert value == {
        "numbers": [0.5, 3, True, None, None],
        "array": [[1.0, None]],
        "enum": "eos",
        "path": str(tmp_path),
        "7": None,
    }
    assert type(value["enum"]) is str
    assert type(value["numbers"][2]) is bool


def test_rows_come_back(tmp_path):
    path = tmp_path / "sub" / "rows.jsonl"
    with JsonlWriter(path) as writer:
        writer.write({"a": 1}, {"a": 2})
        assert read_rows(path) == [{"a": 1}, {"a": 2}]  # flushed while the file is still open
    with JsonlWriter(path) as writer:
        writer.write({"a": 3})
    assert [row["a"] for row in read_rows(path)] == [1, 2, 3]


@pytest.mark.parametrize("torn", ['{"a": 2', '{"a": "x', "{", '{"a": 1}\n{"b'])
def test_a_torn_last_line_is_left_out_and_overwritten(tmp_path, torn):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 0}\n' + torn)
    whole = len(read_rows(path))
    assert whole == 1 + torn.count("\n")
    with JsonlWriter(path) as writer:
        writer.write({"c": 5})
    assert read_rows(path)[whole:] == [{"c": 5}]
    assert path.read_bytes().endswith(b'}\n{"c": 5}\n')


def test_a_whole_last_line_without_a_line_end_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 0}\n{"a": 1}')
    with JsonlWriter(path) as writer:
        writer.write({"a": 2})
    assert [row["a"] for row in read_rows(path)] == [0, 1, 2]


def test_a_torn_multibyte_character_is_a_torn_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n' + '{"a": "é'.encode()[:-1])
    assert read_rows(path) == [{"a": 0}]


@pytest.mark.parametrize("broken", ['{"a": ', "[1]", "nonsense", "\udc80"])
def test_a_broken_line_in_the_middle_is_named(tmp_path, broken):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 0}\n' + broken.encode("utf-8", "surrogateescape") + b'\n{"a": 2}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: .* Found '"):
        read_rows(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError):  # half of a surrogate pair
        write_atomic(path, "{" + "x" * 100_000 + "\ud800")
    assert read_json(path) == {"a": 1} and os.listdir(tmp_path) == [path.name]


def test_several_writers_of_one_file_never_meet(tmp_path):
    path = tmp_path / "run.json"
    contents = [str(writer) * 50_000 for writer in range(4)]

    def write(content):
        for _ in range(25):
            write_atomic(path, content)
            assert path.read_text() in contents

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, contents))
    assert os.listdir(tmp_path) == [path.name]


def test_what_was_written_is_forced_to_the_disk(tmp_path, monkeypatch):
    forced, fsync = {}, os.fsync

    def note(descriptor):
        status = os.fstat(descriptor)
        forced[status.st_ino] = status.st_size
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    rows, whole = tmp_path / "rows" / "rows.jsonl", tmp_path / "whole" / "summary.json"
    whole.parent.mkdir()
    with JsonlWriter(rows) as writer:
        for number in range(3):
            writer.write({"a": number})
            assert forced[rows.stat().st_ino] == rows.stat().st_size > 0
    write_json(whole, {"a": 1})
    assert forced[whole.stat().st_ino] == whole.stat().st_size
    assert {rows.parent.stat().st_ino, whole.parent.stat().st_ino} <= forced.keys()


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null"])
def test_a_json_file_that_is_no_object_is_refused(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json"):
        read_json(path)

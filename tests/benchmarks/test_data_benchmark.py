"""A file of 100 MiB is read within a bounded memory, in the same order each time."""

import json

import pytest

from benchmarks import data


@pytest.mark.slow
def test_memory_does_not_follow_the_size_of_the_file(capsys):
    assert data.main(["--rows", "100000", "--check", "--most_mib", "24"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file_mib"] > 90 and abs(found["rows"] - 100_000) < 10


@pytest.mark.slow
def test_more_memory_than_allowed_is_a_failure(capsys):
    assert data.main(["--rows", "50", "--check", "--most_mib", "0"]) == 1
    assert "expected less than 0" in capsys.readouterr().err

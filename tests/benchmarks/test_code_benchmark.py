"""The benchmark of code execution, in small."""

from __future__ import annotations

import sys

import pytest

from benchmarks import code_execution


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="code is confined on Linux alone")
def test_verdicts_are_right_and_nothing_is_left() -> None:
    result = code_execution.measure(200, workers=2, timeout=1.0, bubblewrap="never")
    assert result["programs"] == {"benign": 160, "attack": 19, "forgery": 20, "bomb": 1}
    assert code_execution.is_right(result), result
    assert result["host_memory_rise_mib"] < 16


def test_a_wrong_verdict_is_noticed() -> None:
    fine = {"false_pass": 0, "false_fail": 0, "failed": 0, "left": {"processes": 0}}
    assert code_execution.is_right(fine)
    for fault in ("false_pass", "false_fail", "failed"):
        assert not code_execution.is_right({**fine, fault: 1})
    assert not code_execution.is_right({**fine, "left": {"processes": 1}})

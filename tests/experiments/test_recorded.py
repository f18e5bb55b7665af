"""A file of responses scored anew: all of them, each once, and nothing else by mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import ConfigError, DataError
from instructrec.experiments.config import EvaluateConfig, OutputConfig
from instructrec.experiments.evaluate_policy import run_evaluation
from instructrec.experiments.evaluation import Evaluation
from instructrec.experiments.jsonl import read_json, read_rows, write_json

Again = Callable[..., Evaluation]


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Three random responses to each of the first ten instructions of `parity`, validation."""
    output = OutputConfig(dir=str(tmp_path))
    config = EvaluateConfig(
        **{"task": "parity", "split": "validation", "limit": 10, "samples": 3, "temperature": 0.7},
        **{"name": "drawn", "bounds": False, "output": output},
    )
    file = run_evaluation("random", config, say=str).path
    assert file is not None
    return file


@pytest.fixture
def again(tmp_path: Path) -> Again:
    """Scores a file anew."""

    def run(file: Path, **given: Any) -> Evaluation:
        output = OutputConfig(dir=str(tmp_path))
        config = EvaluateConfig(bounds=False, output=output, **given)
        return run_evaluation(str(file), config, say=str)

    return run


def test_all_responses_of_a_file_are_scored_as_they_were_drawn(drawn: Path, again: Again) -> None:
    found = again(drawn)
    kept = ("id", "sample", "response", "total")
    before = [[row[key] for key in kept] for row in read_rows(drawn)]
    assert [[row[key] for key in kept] for row in found.rows] == before and len(before) == 30
    same = ("task", "split", "fingerprint", "sampling", "samples", "rows")
    header = read_json(drawn.with_suffix(".json"))
    assert {key: found.header[key] for key in same} == {key: header[key] for key in same}
    assert found.path is not None and "parity-validation-t0.7_x3_first10" in found.path.name


def test_fewer_can_be_asked_for(drawn: Path, again: Again) -> None:
    found = again(drawn, limit=4, samples=2)
    rows = [row for row in read_rows(drawn) if row["sample"] < 2][:8]
    # By prompt, in the file's order: the first two responses of each of the first four.
    assert [row["response"] for row in found.rows] == [row["response"] for row in rows]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"limit": 11}, DataError, "limit = 11, but .* has responses to 10 instructions"),
        ({"samples": 4, "temperature": 0.7}, DataError, "samples = 4, but .* none can count twice"),
        ({"temperature": 1.0}, ConfigError, r"temperature = 1.0 given, .* drawn already .*0\.7"),
        ({"temperature": 0.0}, ConfigError, r"temperature = 0.0 given, .* evaluate the policy its"),
        ({"top_k": 3}, ConfigError, "top_k = 3 given"),
    ],
)
def test_what_the_file_does_not_hold_is_refused(
    drawn: Path, again: Again, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        again(drawn, **given)


def test_a_file_that_was_cut_short_says_how_many_responses_can_be_taken(
    drawn: Path, again: Again
) -> None:
    drawn.write_text("".join(drawn.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"has 2 to 3 responses .* --samples 2 takes"):
        again(drawn)
    assert len(again(drawn, samples=2).rows) == 20


def test_a_task_that_is_another_one_by_now_is_refused_unless_it_is_named(
    drawn: Path, again: Again
) -> None:
    side = drawn.with_suffix(".json")
    write_json(side, read_json(side) | {"fingerprint": "of other options"})
    with pytest.raises(DataError, match="with other instructions of the task 'parity'"):
        again(drawn)
    assert len(again(drawn, task="parity", split="validation").rows) == 30
    write_json(side, read_json(side) | {"task": "capitals"})  # the name of a data file, shortened
    with pytest.raises(ConfigError, match="made with that task: name it with --task"):
        again(drawn)


def test_data_are_not_taken_for_responses(tmp_path: Path, again: Again) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"prompt": "q", "reference": "a"}) + "\n")
    with pytest.raises(DataError, match=r"row 1 has the columns prompt, reference.*with --task"):
        again(data)
    data.write_text("")
    with pytest.raises(DataError, match="has no rows"):
        again(data)
    table = tmp_path / "data.csv"
    table.write_text("prompt,reference\nq,a\n")
    with pytest.raises(ConfigError, match="is a data file: expected a policy"):
        again(table)


def test_a_file_of_ones_own_needs_no_ids_and_no_record(
    drawn: Path, tmp_path: Path, again: Again
) -> None:
    rows = [{key: row[key] for key in ("prompt", "response")} for row in read_rows(drawn)]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = again(own, task="parity", split="validation")
    assert [row["response"] for row in found.rows] == [row["response"] for row in rows]

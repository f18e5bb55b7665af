"""The script that measures learnability, on the tiny model: all stages, once each, and a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from instructrec.envs.tasks.base import iterate, make_task
from instructrec.policies.config import PolicyConfig

SMALL = (
    *("--model", "tiny", "--train", "full", "--device", "cpu", "--limit", "6"),
    *("--demonstrations", "4", "--updates", "1", "--episodes", "8"),
)


@pytest.mark.slow
def test_every_stage_is_measured_once_and_shown(
    script_of: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    script, said = script_of("learnability"), []
    arguments = ["--out", str(tmp_path), "--families", "rule_classification", *SMALL]
    assert script.main(arguments, say=said.append) == 0
    file = tmp_path / "learnability.json"
    known = json.loads(file.read_text())["cells"]["rule_classification-en1"]
    assert known.keys() == {"cell", "zero_shot", "pass_at_8", "demonstrations", "updates"}
    assert 0.0 <= known["updates"]["mean"] <= 1.0
    gain = known["updates"]["mean"] - known["demonstrations"]["mean"]
    assert known["updates"]["gain"] == pytest.approx(gain)
    table = (tmp_path / "learnability.md").read_text()
    assert "| rule_classification | 1 | en |" in table and "not measured yet" not in table
    before, said = file.read_bytes(), []
    del known["updates"]
    file.write_text(json.dumps(json.loads(before) | {"cells": {"rule_classification-en1": known}}))
    assert script.main(arguments, say=said.append) == 0
    assert file.read_bytes() == before
    assert len(said) == 2  # the stage that was missing, and the table
    with pytest.raises(SystemExit, match="another folder"):
        script.main([*arguments, "--limit", "7"])


@pytest.mark.parametrize("family", ["entity_extraction", "relation_extraction"])
def test_the_longest_answer_of_the_test_split_has_room_for_its_end(
    script_of: Callable[[str], ModuleType], tmp_path: Path, family: str
) -> None:
    script = script_of("learnability")
    probe = script.Probe(tmp_path, PolicyConfig(model="tiny"))
    probe._base = ThreeTokensALetter()
    task = make_task(family, split="test", level=3)
    longest = max(3 * len(item.columns["reference"]) for item in iterate(task))
    assert probe._length(script.Cell(family, 3, "en")) > longest


class ThreeTokensALetter:
    """A model of which only the tokenizer is looked at."""

    @staticmethod
    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [0, 0, 0] * len(text)}


def test_the_table_says_what_is_not_measured_and_where_no_signal_was_seen(
    script_of: Callable[[str], ModuleType],
) -> None:
    cell = {"family": "counting", "level": 1, "language": "en"}
    score = {"mean": 0.25, "ci_low": 0.2, "ci_high": 0.3}
    gain = {"gain": 0.0, "gain_low": -0.1, "gain_high": 0.1}
    text = script_of("learnability").markdown(
        {
            "one": {"cell": cell, "zero_shot": score},
            "two": {
                **{"cell": cell, "zero_shot": score, "pass_at_8": 0.5},
                **{"demonstrations": score, "updates": {**score, **gain}},
            },
        }
    )
    one, two = text.splitlines()[2:]
    assert one.count("not measured yet") == 5
    assert two.endswith("| 0.250 | 0.500 | 0.250 | 0.250 | +0.000 (-0.100 to +0.100) | none seen |")

"""What supervised fine-tuning imitates: references, or all answers of an episode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructrec.envs.tasks.base import Task, make_task
from instructrec.errors import DataError
from instructrec.experiments.demonstrations import chosen, examples
from instructrec.experiments.playing import SINGLE_ANSWERS, Episodes

TOOL = Episodes("tool", 3, {"tools": ["calculator"], "describe": "none"})


def rows(path: Path, *demonstrations: Any) -> Task:
    items = [
        {"prompt": f"Question {i}?", "reference": "4", "demonstration": given}
        for i, given in enumerate(demonstrations)
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return make_task(str(path), split="all")


def test_a_seed_takes_its_own_block() -> None:
    task = make_task("parity", size=10)
    assert [chosen(task, 4, seed) for seed in range(3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 0, 1],
    ]
    assert chosen(task, 99, 1) == list(range(10)) and chosen(task, 0, 0) == []


def test_a_single_answer_is_the_reference() -> None:
    task = make_task("parity")
    item = task[3]
    assert examples(task, [3], SINGLE_ANSWERS) == [(item.prompt, item.columns["reference"])]
    assert examples(task, [], TOOL) == []
    assert examples(task, [3], TOOL) == examples(task, [3], SINGLE_ANSWERS)


def test_each_answer_of_an_episode_stands_behind_what_the_environment_said(tmp_path: Path) -> None:
    call = "<tool>calculator(2 + 2)</tool>"
    task = rows(tmp_path / "rows.jsonl", [call, "4"], ["4"], None, [call, "<tool>", "4"])
    found = examples(task, [0, 1, 3, 2], TOOL)
    assert [answer for _, answer in found] == [call, "4", "4", call, "<tool>", "4", "4"]
    assert found[0][0] == "Question 0?" and found[2][0] == "Question 1?"
    assert found[1][0] == [
        {"role": "user", "content": "Question 0?"},
        {"role": "assistant", "content": call},
        {"role": "user", "content": "Result: 4"},
    ]
    last = found[5][0]
    assert last[:3] == found[4][0] and last[4]["content"].startswith("Error: expected <tool>")


def test_the_tools_stand_before_the_instruction_as_in_training() -> None:
    task = make_task("calculations")
    (first, _), (second, _) = examples(task, [0], Episodes("tool", 3))
    assert isinstance(first, str) and first.startswith("You can use tools.")
    assert first.endswith(str(task[0].prompt)) and second[0]["content"] == first  # type: ignore


def test_a_conversation_is_imitated_with_its_user(tmp_path: Path) -> None:
    task = rows(tmp_path / "rows.jsonl", ["a", "b"])
    found = examples(task, [0], Episodes("chat", 2, {"user": ["Sure?"]}))
    assert [m["content"] for m in found[1][0]] == ["Question 0?", "a", "Sure?"]  # type: ignore


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["4", "<tool>calculator(2 + 2)</tool>"], "has 2 answers, but its episode ends with nu"),
        (["<tool>"] * 4, "has 4 answers, but its episode ends with number 3"),
        ([], "expected a list of the answers"),
        ("4", "expected a list of the answers"),
        (["4", " "], "expected a list of the answers"),
    ],
)
def test_what_is_no_episode_is_refused(tmp_path: Path, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        examples(rows(tmp_path / "rows.jsonl", given), [0], TOOL)

"""The usual shapes of instruction data, and columns under other names."""

import json

import pytest

from instructrec.envs.tasks.base import iterate
from instructrec.envs.tasks.dataset import DatasetTask
from instructrec.errors import ConfigError, DataError

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "Go away"}


def load(tmp_path, *rows, name="data.jsonl", **options):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DatasetTask(path, **{"split": "all", **options})


@pytest.mark.parametrize(
    ("row", "prompt", "columns"),
    [
        ({"prompt": "Hi", "completion": "Hello"}, "Hi", {"reference": "Hello"}),
        ({"prompt": [USER], "completion": [ANSWER]}, (USER,), {"reference": "Hello"}),
        (
            {"prompt": "Hi", "completion": "Hello", "reference": "Hey"},
            "Hi",
            {"reference": "Hey", "completion": "Hello"},
        ),
        ({"messages": [USER, ANSWER]}, (USER,), {"reference": "Hello"}),
        ({"messages": [USER, ANSWER, USER]}, (USER, ANSWER, USER), {}),
        ({"prompt": [USER, ANSWER], "x": 1}, (USER,), {"reference": "Hello", "x": 1}),
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "Add.\n\n1 2",
            {"reference": "3"},
        ),
        ({"instruction": "Add.", "input": "", "output": 3}, "Add.", {"reference": "3"}),
        ({"instruction": "Sing."}, "Sing.", {}),
        (
            {"instruction": "Add.", "output": "four", "reference": "4"},
            "Add.",
            {"reference": "4", "output": "four"},
        ),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be kind."},
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            ({"role": "system", "content": "Be kind."}, USER),
            {"reference": "Hello"},
        ),
        ({"conversations": [USER, ANSWER]}, (USER,), {"reference": "Hello"}),
        (
            {"prompt": "Hi", "chosen": "Hello", "rejected": "Go"},
            "Hi",
            {"reference": "Hello", "rejected": "Go"},
        ),
        (
            {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
            (USER,),
            {"reference": "Hello", "rejected": "Go away"},
        ),
        (
            {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
            (USER,),
            {"reference": "Hello", "rejected": "Go away"},
        ),
    ],
)
def test_a_row_of_a_usual_shape_is_recognised(tmp_path, row, prompt, columns):
    item = load(tmp_path, row)[0]
    assert item.prompt == prompt
    assert dict(item.columns) == columns


def test_the_shapes_of_one_file_may_differ(tmp_path):
    task = load(tmp_path, {"prompt": "a", "completion": "b"}, {"instruction": "c", "output": "d"})
    assert [(i.prompt, i.columns["reference"]) for i in iterate(task)] == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ANSWER]}, "move the answer to 'reference'"),
        ({"messages": [USER, ANSWER], "reference": "x"}, "move the answer to 'reference'"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "is from 'alien'; expected one of"),
        ({"conversations": [{"from": "human"}]}, "whose 'from' and 'value' are strings"),
        ({"conversations": "text"}, "expected a list of messages"),
        ({"instruction": ["a"]}, "'instruction' is ['a']; expected a string"),
        ({"instruction": " "}, "the instruction is empty"),
        ({"chosen": "a", "rejected": "b"}, "without a prompt; expected a column 'prompt'"),
        ({"chosen": [USER, ANSWER], "rejected": [ANSWER, OTHER]}, "must be alike"),
        ({"chosen": [ANSWER], "rejected": [OTHER]}, "begin with the instruction"),
        ({"prompt": "a", "chosen": [USER], "rejected": "b"}, "not the assistant's"),
        ({"prompt": "a", "completion": 3}, "'completion' is 3"),
        ({"question": "a"}, "name the one that holds the instruction with columns: {prompt: ...}"),
    ],
)
def test_a_row_that_fits_no_shape_says_what_was_expected(tmp_path, row, expected):
    with pytest.raises(DataError) as caught:
        load(tmp_path, row)
    assert expected in str(caught.value) and "data.jsonl line 1" in str(caught.value)


def test_other_columns_are_mapped_also_from_inside(tmp_path):
    row = {"question": "Who?", "answers": {"text": ["Ada"], "start": [1]}, "topic": "people"}
    names = {"prompt": "question", "references": "answers.text"}
    item = load(tmp_path, row, columns=names)[0]
    assert item.prompt == "Who?"
    assert item.columns["reference"] == ["Ada"] and item.columns["topic"] == "people"
    assert "question" not in item.columns


def test_a_name_with_a_dot_is_taken_as_it_stands_first(tmp_path):
    row = {"a.b": "whole", "a": {"b": "inner"}}
    assert load(tmp_path, row, columns={"prompt": "a.b"})[0].prompt == "whole"


def test_a_mapped_column_that_is_missing_is_named_with_the_closest(tmp_path):
    with pytest.raises(DataError, match=r"line 1: no column 'qestion'.*Did you mean 'question'"):
        load(tmp_path, {"question": "a"}, columns={"prompt": "qestion"})


@pytest.mark.parametrize("columns", ["prompt", {"prompt": 3}, {"": "a"}, ["prompt"]])
def test_a_wrong_mapping_is_refused(tmp_path, columns):
    with pytest.raises(ConfigError, match="columns is"):
        load(tmp_path, {"prompt": "a"}, columns=columns)


def test_conversations_in_csv_cells_hold_json(tmp_path):
    path = tmp_path / "data.csv"
    cell = json.dumps([{"from": "human", "value": "Hi"}]).replace('"', '""')
    path.write_text(f'conversations,topic\n"{cell}",x\n', encoding="utf-8")
    item = DatasetTask(path, split="all")[0]
    assert (item.prompt, dict(item.columns)) == ((USER,), {"topic": "x"})

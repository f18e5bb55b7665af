"""Data files: what they may hold, how they are split, and what the errors say."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec.envs.tasks.base import iterate, make_task
from instructrec.envs.tasks.dataset import DatasetTask
from instructrec.errors import ConfigError, DataError

ROWS = [{"prompt": f"What is {n}?", "reference": str(n), "level": n % 3} for n in range(200)]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path, rows, **options):
    return DatasetTask(write_jsonl(tmp_path / "data.jsonl", rows), **{"split": "all", **options})


def test_rows_become_instructions_with_their_columns(tmp_path):
    task = load(tmp_path, ROWS)
    assert (task.name, task.split, task.columns) == ("data", "all", ("reference", "level"))
    assert [i.prompt for i in iterate(task)] == [row["prompt"] for row in ROWS]
    assert task[5].columns == {"reference": "5", "level": 2}
    assert make_task(str(tmp_path / "data.jsonl"), split="all")[5] == task[5]


def test_messages_and_conversational_prompts_are_kept_as_conversations(tmp_path):
    conversation = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hé 😀"}]
    task = load(tmp_path, [{"messages": conversation}, {"prompt": conversation}])
    assert task[0].prompt == task[1].prompt == tuple(conversation)
    assert task.columns == ()


def test_references_become_a_list_and_numbers_become_text(tmp_path):
    rows = [
        {"prompt": "a", "references": ["x", 2]},
        {"prompt": "b", "reference": ["y"]},
        {"prompt": "c", "reference": 4},
    ]
    task = load(tmp_path, rows)
    assert [i.columns["reference"] for i in iterate(task)] == [["x", "2"], ["y"], "4"]
    assert task.columns == ("reference",)


def test_columns_that_some_rows_lack_are_none_there(tmp_path):
    task = load(tmp_path, [{"prompt": "a", "hint": "h"}, {"prompt": "b"}])
    assert [i.columns for i in iterate(task)] == [{"hint": "h"}, {"hint": None}]


def test_blank_lines_byte_order_marks_and_unicode_separators_are_read(tmp_path):
    path = tmp_path / "data.jsonl"
    text = '\ufeff{"prompt": "a\u2028b"}\r\n\r\n{"prompt": "c"}'
    path.write_bytes(text.encode("utf-8"))
    assert [i.prompt for i in iterate(DatasetTask(path, split="all"))] == ["a\u2028b", "c"]


@pytest.mark.parametrize("ending", ["json", "csv", "parquet"])
def test_other_formats_give_the_same_task(tmp_path, ending):
    rows = [{"id": f"r{n}", "prompt": f"Say, {n}\n!", "reference": str(n)} for n in range(20)]
    path = tmp_path / f"data.{ending}"
    if ending == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif ending == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    assert list(iterate(DatasetTask(path, split="all"))) == list(iterate(load(tmp_path, rows)))


def test_csv_cells_of_messages_and_references_hold_json(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('prompt,references\nGreet,"[""hi"", ""hello""]"\n', encoding="utf-8")
    assert DatasetTask(path, split="all")[0].columns == {"reference": ["hi", "hello"]}


def test_hashed_splits_are_disjoint_complete_and_about_the_asked_size(tmp_path):
    parts = {s: load(tmp_path, ROWS, split=s) for s in ("train", "validation", "test")}
    prompts = [i.prompt for part in parts.values() for i in iterate(part)]
    assert sorted(prompts) == sorted(row["prompt"] for row in ROWS)
    assert 8 <= len(parts["test"]) <= 35 and 8 <= len(parts["validation"]) <= 35
    more = load(tmp_path, ROWS, split="test", test_fraction=0.5)
    assert 75 <= len(more) <= 125
    assert {i.id for i in iterate(parts["test"])} <= {i.id for i in iterate(more)}


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=8, unique=True))
def test_adding_a_row_moves_no_other_row(tmp_path_factory, extra):
    folder = tmp_path_factory.mktemp("rows")
    before, after = ROWS[:40], [{"prompt": text, "reference": "x", "level": 0} for text in extra]
    for split in ("train", "validation", "test"):
        old = {i.id: i for i in iterate(load(folder, before, split=split))}
        new = {i.id: i for i in iterate(load(folder, after + before, split=split))}
        assert old.items() <= new.items()


def test_prompts_that_differ_in_case_and_space_stay_together(tmp_path):
    rows = [{"prompt": f"what  IS {n} ?"} for n in range(60)] + [
        {"prompt": f"What is {n} ?"} for n in range(60)
    ]
    for split in ("train", "validation", "test"):
        prompts = {
            i.prompt.lower().replace("  ", " ") for i in iterate(load(tmp_path, rows, split=split))
        }
        assert 2 * len(prompts) == len(load(tmp_path, rows, split=split))


def test_a_split_column_is_followed(tmp_path):
    rows = [{"prompt": "a", "split": "train"}, {"prompt": "b", "split": "dev"}]
    assert load(tmp_path, rows, split="validation")[0].prompt == "b"
    assert len(load(tmp_path, rows)) == 2
    assert load(tmp_path, rows).columns == ()
    with pytest.raises(DataError, match="the split 'test' is empty; the 2 rows are 1 train, 1 val"):
        load(tmp_path, rows, split="test")


def test_equal_rows_get_different_ids(tmp_path):
    task = load(tmp_path, [{"prompt": "a"}] * 3)
    assert len({i.id for i in iterate(task)}) == 3


def test_fingerprint_follows_content_split_and_fractions(tmp_path):
    first = load(tmp_path, ROWS)
    prints = {
        first.fingerprint,
        load(tmp_path, ROWS, split="train").fingerprint,
        load(tmp_path, ROWS, test_fraction=0.2).fingerprint,
        load(tmp_path, ROWS[1:]).fingerprint,
    }
    assert len(prints) == 4
    assert load(tmp_path, ROWS).fingerprint in prints


MALFORMED = [
    (b'{"prompt": "a"}\n{"prompt": \n', ["data.jsonl line 2", "not valid JSON", '{"prompt":']),
    (b'{"prompt": "a"}\n[1, 2]\n', ["line 2", "found a list [1, 2]", "expected an object"]),
    (b'\n\n"text"\n', ["line 3", "found a string"]),
    (b"null\n", ["line 1", "found null"]),
    (b'{"prompt": NaN}\n', ["line 1", "NaN is not a JSON value"]),
    (b'{"prompt": "a"}\n{"prompt": "\xff"}\n', ["line 2", "not UTF-8"]),
    (b"[" * 100_000, ["line 1", "not valid JSON"]),
    (b"", ["is empty"]),
    (b"\n \n", ["is empty"]),
    (b'{"promt": "a", "x": 1}\n', ["no column 'prompt'", "Did you mean 'promt'", "['promt', 'x']"]),
    (b'{"prompt": "a"}\n{"x": 1}\n', ["line 2", "neither"]),
    (b'{"prompt": null}\n', ["line 1", "neither"]),
    (b'{"prompt": "  "}\n', ["line 1", "the prompt is empty"]),
    (b'{"prompt": 3}\n', ["line 1", "'prompt' is 3"]),
    (b'{"prompt": "a", "messages": []}\n', ["line 1", "found both"]),
    (b'{"messages": []}\n', ["line 1", "'messages' is []"]),
    (b'{"messages": [{"role": "user"}]}\n', ["line 1", "'role' and 'content'"]),
    (
        b'{"messages": [{"role": "assistant", "content": "a"}]}\n',
        ["line 1", "move the answer to 'reference'"],
    ),
    (b'{"prompt": "\\ud800"}\n', ["line 1", "surrogate"]),
    (b'{"prompt": "a", "note": "\\udfff"}\n', ["line 1", "surrogate"]),
    (b'{"prompt": "a", "reference": "x"}\n{"prompt": "b"}\n', ["line 2", "other rows have one"]),
    (b'{"prompt": "a", "reference": "x", "references": ["y"]}\n', ["line 1", "found both"]),
    (b'{"prompt": "a", "references": "y"}\n', ["line 1", "expected a list"]),
    (b'{"prompt": "a", "references": []}\n', ["line 1", "empty"]),
    (b'{"prompt": "a", "reference": {"x": 1}}\n', ["line 1", "expected a string"]),
    (b'{"prompt": "a", "reference": true}\n', ["line 1", "a reference is True"]),
    (b'{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}\n', ["line 2", "'1'", "line 1"]),
    (b'{"prompt": "a", "split": "tran"}\n', ["line 1", "the split is 'tran'"]),
    (b'{"prompt": "a", "split": "test"}\n{"prompt": "b"}\n', ["line 2", "the split is None"]),
    (b'{"prompt": "a", "completions": 1}\n', ["'completions'", "rename"]),
]


@pytest.mark.parametrize(("content", "expected"), MALFORMED)
def test_errors_name_the_file_the_line_and_what_was_found(tmp_path, content, expected):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        DatasetTask(path, split="all")
    assert all(part in str(caught.value) for part in ["data.jsonl", *expected])
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("data.json", b'{"prompt": "a"}', "expected a list of objects"),
        ("data.json", b'[{"prompt": "a"}, 3]', "item 1"),
        ("data.json", b"[]", "is empty"),
        ("data.csv", b"prompt,reference\na,b,c\n", "line 2: 3 fields, but the header names 2"),
        ("data.csv", b"prompt,reference\na\n", "line 2: 1 fields, but the header names 2"),
        ("data.csv", b"prompt,prompt\na,b\n", "comes twice"),
        ("data.csv", b'prompt\n"a\n', "after line 1: unexpected end"),
        ("data.csv", b"prompt,messages\n,nonsense\n", "column 'messages': not valid JSON"),
        ("data.csv", b"", "is empty"),
        ("data.parquet", b"nonsense", "is not a Parquet file"),
    ],
)
def test_errors_of_the_other_formats(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        DatasetTask(path, split="all")
    assert expected in str(caught.value)


def test_a_missing_file_is_an_error_that_suggests_its_neighbour(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"does not exist.*Did you mean 'train\.jsonl'"):
        make_task(str(tmp_path / "trian.jsonl"))
    with pytest.raises(ConfigError, match=r"ending in \.jsonl"):
        DatasetTask(tmp_path / "train.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"test_fraction": 1.5}, "between 0 and 1"),
        ({"test_fraction": "half"}, "between 0 and 1"),
        ({"test_fraction": 0.7, "validation_fraction": 0.7}, "at most 1"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, ROWS, **options)


def test_an_empty_hashed_split_says_how_the_rows_fell(tmp_path):
    with pytest.raises(DataError, match="0 test"):
        load(tmp_path, ROWS[:2], split="test", test_fraction=0.0)

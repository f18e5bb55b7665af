"""Large files: an index instead of the rows, the same rows in the same order, splits that stay."""

import copy
import csv
import json
import multiprocessing
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructrec.envs.tasks import files
from instructrec.envs.tasks.base import iterate, make_task
from instructrec.envs.tasks.dataset import DatasetTask
from instructrec.envs.tasks.rows import MAX_ROW_BYTES
from instructrec.errors import ConfigError, DataError

NAMES = ("train", "validation", "test")


@pytest.fixture(params=["kept", "streamed"])
def streamed(request, monkeypatch):
    """Both ways of holding a file give the same; files count as large from the first byte."""
    if request.param == "streamed":
        monkeypatch.setattr(files, "KEPT_BYTES", -1)
    return request.param == "streamed"


def write_jsonl(path, rows, end="\n"):
    path.write_bytes("".join(json.dumps(row) + end for row in rows).encode())
    return path


texts = st.text(min_size=1).filter(str.strip)


@settings(max_examples=40)
@given(st.lists(texts, min_size=1, max_size=8), st.booleans(), st.sampled_from(["jsonl", "csv"]))
def test_any_row_is_found_by_itself(tmp_path_factory, prompts, streamed, ending):
    folder = tmp_path_factory.mktemp("rows")
    path = folder / f"data.{ending}"
    if ending == "csv":
        prompts = [p.replace("\0", "0").replace("\r", "\n") for p in prompts]
        prompts = [p if p.strip() else "a" for p in prompts]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([["prompt"], *([p] for p in prompts)])
    else:
        lines = [json.dumps({"prompt": p}, ensure_ascii=False) for p in prompts]
        path.write_bytes("\n\n".join(lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        if streamed:
            patch.setattr(files, "KEPT_BYTES", -1)
        task = DatasetTask(path, split="all")
    order = random.Random(0).sample(range(len(prompts)), len(prompts))
    assert [task[i].prompt for i in order] == [prompts[i] for i in order]


def test_a_byte_order_mark_blank_lines_and_crlf_are_read(tmp_path, streamed):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b"}')
    assert [i.prompt for i in iterate(DatasetTask(path, split="all"))] == ["a", "b"]
    table = tmp_path / "data.csv"
    table.write_bytes(b'\xef\xbb\xbfprompt,x\r\n"a\r\nb",1\r\n\r\nc,2')
    assert [i.prompt for i in iterate(DatasetTask(table, split="all"))] == ["a\r\nb", "c"]


def test_the_splits_of_a_file_share_one_reading(tmp_path):
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": f"p{n}"} for n in range(200)])
    tasks = [DatasetTask(path, split=name) for name in NAMES]
    assert len({id(task.catalog) for task in tasks}) == 1
    assert sum(map(len, tasks)) == 200
    path.write_bytes(path.read_bytes().replace(b"p1", b"q1"))
    assert "q1" in {i.prompt for name in NAMES for i in iterate(DatasetTask(path, split=name))}


def test_a_large_file_that_changes_in_use_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "KEPT_BYTES", -1)
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    task = DatasetTask(path, split="all")
    assert task[0].prompt == "a"
    with path.open("ab") as file:
        file.write(b'{"prompt": "c"}\n')
    with pytest.raises(DataError, match=r"data\.jsonl was changed after it had been read"):
        task[1]


def test_a_large_file_that_is_removed_stays_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "KEPT_BYTES", -1)
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    task = DatasetTask(path, split="all")
    path.unlink()
    assert [task[1].prompt, task[0].prompt] == ["b", "a"]


def _prompts(task):
    return [i.prompt for i in iterate(task)]


def test_tasks_work_in_other_processes_and_copies(tmp_path, streamed):
    rows = [{"prompt": f"p{n}"} for n in range(50)]
    task = DatasetTask(write_jsonl(tmp_path / "data.jsonl", rows), split="all")
    expected = _prompts(task)
    assert _prompts(pickle.loads(pickle.dumps(task))) == expected
    assert copy.deepcopy(task) is task
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_prompts, [task, task]) == [expected, expected]


def test_a_huge_line_is_refused_without_being_held(tmp_path):
    path = tmp_path / "data.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "a"}\n')
        file.truncate(20 * 2**20)  # a sparse line of zeros
    with pytest.raises(DataError, match=rf"line 2: \d+ bytes; expected at most {MAX_ROW_BYTES}"):
        DatasetTask(path, split="all")
    assert len(DatasetTask(path, split="all", on_bad_row="skip")) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"prompt": "a", "x": 1e999}', "1e999 is too large"),
        (b'{"prompt": "a", "x": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"prompt": "a", "prompt": "b"}', "the key 'prompt' comes twice"),
        (b'{"prompt": "a", "x": [{"y": "\\uD83D"}]}', "half of a surrogate pair"),
        (b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"prompt": "a\xff"}', r"the byte b'\xff' at offset 29 is not UTF-8"),
        (b'{"prompt": "a", "x"', "was its writer stopped half-way?"),
        (b"\x1b[31m", r"found \x1b[31m"),
    ],
)
def test_what_json_would_let_through_is_refused(tmp_path, line, expected):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "b"}\n' + line)
    with pytest.raises(DataError) as caught:
        DatasetTask(path, split="all")
    assert "line 2" in str(caught.value) and expected in str(caught.value)


def test_splits_may_follow_an_id_or_a_column(tmp_path):
    rows = [{"id": f"r{n}", "prompt": f"p{n}", "document": n // 10} for n in range(300)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    parts = [
        {i.columns["document"] for i in iterate(DatasetTask(path, split=s, split_by="document"))}
        for s in NAMES
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 30
    by_id = {i.id for i in iterate(DatasetTask(path, split="test", split_by="id"))}
    reworded = [{**row, "prompt": row["prompt"] * 2} for row in rows]
    other = write_jsonl(tmp_path / "other.jsonl", reworded)
    assert by_id == {i.id for i in iterate(DatasetTask(other, split="test", split_by="id"))}
    with pytest.raises(DataError, match=r"line 1: split_by is 'documnt'.*Did you mean 'document'"):
        DatasetTask(path, split_by="documnt")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), min_size=1, max_size=20))
def test_made_ids_are_unique_and_stay_when_rows_follow(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("ids")
    rows = [{"prompt": p, "reference": r} for p, r in pairs]
    ids = [
        [i.id for i in iterate(DatasetTask(write_jsonl(folder / "a.jsonl", part), split="all"))]
        for part in (rows, [*rows, *rows])
    ]
    assert len(set(ids[1])) == len(ids[1]) == 2 * len(rows)
    assert ids[1][: len(rows)] == ids[0]


def test_made_ids_can_be_written_down_and_used_again(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}]
    task = DatasetTask(write_jsonl(tmp_path / "a.jsonl", rows), split="all")
    kept = [{"id": i.id, "prompt": i.prompt} for i in iterate(task)]
    again = DatasetTask(write_jsonl(tmp_path / "b.jsonl", kept), split="all")
    assert [i.id for i in iterate(again)] == [i.id for i in iterate(task)]
    with pytest.raises(DataError, match=r"line 4: the id '.{16}' was used before, in .* line 1"):
        DatasetTask(write_jsonl(tmp_path / "c.jsonl", [*rows, kept[0]]), split="all")


def test_a_saved_data_set_is_read_with_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {
        "train": datasets.Dataset.from_list([{"prompt": f"p{n}"} for n in range(5)]),
        "test": datasets.Dataset.from_list([{"prompt": "q"}]),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["train"].save_to_disk(tmp_path / "one")
    both = make_task(str(tmp_path / "both"), split="train")
    assert _prompts(both) == [f"p{n}" for n in range(5)] and both.columns == ()
    assert _prompts(make_task(str(tmp_path / "both"), split="test")) == ["q"]
    one = make_task(str(tmp_path / "one"), split="all")
    assert _prompts(one) == _prompts(both) and one.name == "one"
    assert make_task(str(tmp_path / "one"), split="all").fingerprint == one.fingerprint
    with pytest.raises(DataError, match=r"one row 0: the template names 'x'"):
        make_task(str(tmp_path / "one"), template="{x} {prompt}")


def test_splits_of_a_data_set_are_chosen_and_validation_comes_out_of_training(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {
        name: datasets.Dataset.from_list([{"prompt": f"{name} {n}"} for n in range(100)])
        for name in ("train_sft", "test_sft", "train_gen")
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "data")
    splits = {"train": "train_sft", "test": "test_sft"}
    tasks = {s: make_task(str(tmp_path / "data"), split=s, splits=splits) for s in NAMES}
    prompts = {name: set(_prompts(task)) for name, task in tasks.items()}
    assert prompts["test"] == {f"test_sft {n}" for n in range(100)}
    assert prompts["train"] | prompts["validation"] == {f"train_sft {n}" for n in range(100)}
    assert 2 <= len(prompts["validation"]) <= 25
    assert len(tasks["train"]) + len(tasks["validation"]) == 100
    with pytest.raises(DataError, match="the split is 'train_sft'; expected one of"):
        make_task(str(tmp_path / "data"))
    with pytest.raises(ConfigError, match=r"unknown split 'test_stf'\. Did you mean 'test_sft'"):
        make_task(str(tmp_path / "data"), splits={"test": "test_stf"})
    with pytest.raises(ConfigError, match=r"splits is .*expected train, validation, test"):
        make_task(str(tmp_path / "data"), splits={"tests": "test_sft"})


def test_the_hub_prefix_loads_what_the_library_loads(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    write_jsonl(tmp_path / "files" / "train.jsonl", [{"question": "a", "answer": "b"}])
    names = {"prompt": "question", "reference": "answer"}
    task = make_task(f"hf:{tmp_path / 'files'}", split="all", columns=names)
    assert (task[0].prompt, task[0].columns) == ("a", {"reference": "b"})


def test_data_sets_that_cannot_be_had_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"hf:nobody/nothing cannot be loaded: .*save_to_disk"):
        make_task("hf:nobody/nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"is no saved data set.*hf:"):
        make_task(str(tmp_path / "folder"))
    (tmp_path / "folder" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        make_task(str(tmp_path / "folder"))
    with pytest.raises(ConfigError, match="subset and revision belong"):
        make_task(str(tmp_path / "folder"), subset="x")
    path = write_jsonl(tmp_path / "data.jsonl", [{"prompt": "a"}])
    with pytest.raises(ConfigError, match="is a file: subset, revision"):
        make_task(str(path), revision="main")


message_keys = st.sampled_from(["role", "content", "from", "value", "text"])
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(message_keys, inner, max_size=3),
    max_leaves=6,
)
column_names = st.sampled_from(
    [
        "prompt",
        "messages",
        "reference",
        "references",
        "id",
        "split",
        "chosen",
        "rejected",
        "completion",
        "instruction",
        "input",
        "output",
        "conversations",
        "prompts",
        "x",
    ]
)


@settings(max_examples=300)
@given(
    st.lists(st.dictionaries(column_names, plain_values, max_size=5), min_size=1, max_size=4),
    st.sampled_from([{}, {"template": "{x} {prompt}"}, {"template": "{x}"}, {"few_shot": 1}]),
    st.sampled_from(["raise", "skip"]),
    st.booleans(),
)
def test_whatever_a_row_holds_the_errors_are_ours(tmp_path_factory, rows, options, bad, as_csv):
    path = tmp_path_factory.mktemp("any") / ("data.csv" if as_csv else "data.jsonl")
    if as_csv:
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[json.dumps(row.get(name)) for name in names] for row in rows]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *cells])
    else:
        write_jsonl(path, rows)
    try:
        task = DatasetTask(path, split="all", on_bad_row=bad, **options)
    except DataError as error:
        assert str(path) in str(error)
        return
    ids = [item.id for item in iterate(task)]
    assert len(set(ids)) == len(ids) == len(task)
    assert all(item.columns.keys() == {*task.columns} for item in iterate(task))

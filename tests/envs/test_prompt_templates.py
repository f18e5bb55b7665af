"""Templates whose variables are checked, and solved examples in front of an instruction."""

import json

import pytest

from instructrec.envs.tasks.base import iterate
from instructrec.envs.tasks.dataset import DatasetTask
from instructrec.envs.tasks.templates import (
    add_examples,
    find_template,
    list_templates,
    register_template,
)
from instructrec.errors import ConfigError, DataError

ROWS = [{"prompt": f"What is {n}?", "reference": str(n), "level": n % 3} for n in range(60)]


def load(tmp_path, rows, **options):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DatasetTask(path, **{"split": "all", **options})


def test_a_template_is_filled_with_the_columns_of_a_row(tmp_path):
    task = load(tmp_path, ROWS, template="Level {level}. {prompt} {{end}}")
    assert task[4].prompt == "Level 1. What is 4? {end}"
    assert task[4].columns == {"reference": "4", "level": 1}


def test_a_template_makes_the_instruction_of_other_columns(tmp_path):
    rows = [{"source": "Haus", "to": "English", "reference": "house"}]
    item = load(tmp_path, rows, template="Into {to}: {source}")[0]
    assert item.prompt == "Into English: Haus"
    assert item.columns == {"reference": "house", "source": "Haus", "to": "English"}


def test_of_a_conversation_the_last_message_is_replaced(tmp_path):
    messages = [{"role": "system", "content": "{prompt}"}, {"role": "user", "content": "a {b}"}]
    prompt = load(tmp_path, [{"messages": messages}], template="Q: {prompt}")[0].prompt
    assert prompt == (messages[0], {"role": "user", "content": "Q: a {b}"})


@pytest.mark.parametrize("name", list_templates())
def test_every_named_template_shows_the_instruction(name):
    assert "What is 1?" in find_template(name).render("What is 1?", {})


@pytest.mark.parametrize(
    ("one", "other"),
    [("{prompt}", "question"), ("From {a} to {b}", "To {b}, coming from {a}, go!")],
)
def test_neither_split_nor_id_depends_on_the_wording(tmp_path, one, other):
    rows = [{**row, "a": f"town {n}", "b": f"city {n}"} for n, row in enumerate(ROWS)]
    tasks = [load(tmp_path, rows, split="train", template=template) for template in (one, other)]
    first, second = ([(i.id, i.columns) for i in iterate(task)] for task in tasks)
    assert first == second
    assert tasks[0][0].prompt != tasks[1][0].prompt


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("questoin", "Did you mean 'question'?"),
        ("plain text", "unknown template 'plain text'"),
        ("a {prompt", "a brace itself is written"),
        ("a {prompt.__class__}", "not the plain name of a column"),
        ("a {0[x]}", "not the plain name of a column"),
        ("a {}", "not the plain name of a column"),
        ("a {prompt!r}", "not the plain name of a column"),
        ("a {prompt:>9}", "not the plain name of a column"),
        ("{prompt} {reference}", "would show the expected answer"),
        ("{{no}}", "names no column"),
        (3, "expected a name or a text"),
    ],
)
def test_a_malformed_template_is_refused(tmp_path, template, expected):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, ROWS, template=template)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "lvel": 1}, "names 'level', which is no column. Did you mean 'lvel'?"),
        ({"prompt": "a", "level": None}, "'level', which is None; expected text or a number"),
        ({"prompt": "a", "level": [1]}, "'level', which is [1]"),
        ({"level": 1}, "no column 'prompt'"),
    ],
)
def test_a_row_without_what_the_template_names_is_an_error(tmp_path, row, expected):
    with pytest.raises(DataError) as caught:
        load(tmp_path, [ROWS[0], row], template="{level} {prompt}")
    assert "line 2" in str(caught.value) and expected in str(caught.value)


def test_templates_are_registered_once():
    assert register_template("shout-test", "{prompt}!").render("Hi", {}) == "Hi!"
    register_template("shout-test", "{prompt}!")
    assert find_template("shout-test").variables == ("prompt",)
    with pytest.raises(ConfigError, match="exists already"):
        register_template("shout-test", "{prompt}?")
    with pytest.raises(ConfigError, match="without braces"):
        register_template("{prompt}", "{prompt}?")


def test_examples_stand_in_front_and_leave_the_training_split(tmp_path):
    plain = {i.id: i for i in iterate(load(tmp_path, ROWS, split="train"))}
    task = load(tmp_path, ROWS, split="train", few_shot=2, template="question")
    items = list(iterate(task))
    assert len(items) == len(plain) - 2 and task.catalog.filtered == {"few_shot": 2}
    shown = {i.columns["reference"] for i in plain.values()} - {
        i.columns["reference"] for i in items
    }
    for item in items:
        first, second, asked = item.prompt.split("\n\n")
        assert {part.rsplit("Answer: ", 1)[1] for part in (first, second)} == shown
        assert asked == f"Question: {plain[item.id].prompt}\nAnswer:"
    held_out = load(tmp_path, ROWS, split="test", few_shot=2, template="question")
    assert held_out[0].prompt.rsplit("\n\n", 1)[0] == items[0].prompt.rsplit("\n\n", 1)[0]


def test_the_choice_of_examples_depends_on_no_order(tmp_path):
    before = load(tmp_path, ROWS, split="test", few_shot=3)
    after = load(tmp_path, ROWS[::-1], split="test", few_shot=3)
    assert {i.prompt for i in iterate(before)} == {i.prompt for i in iterate(after)}


def test_an_instruction_of_another_split_is_no_example(tmp_path):
    rows = [{"prompt": f"p{n}", "reference": "r", "split": "train"} for n in range(3)]
    rows += [{"prompt": f"P{n}", "reference": "r", "split": "test"} for n in range(2)]
    prompt = load(tmp_path, rows, split="test", few_shot=1)[0].prompt
    assert prompt.startswith("p2\nr\n\n")


def test_examples_as_turns_come_after_the_system_message():
    system, user = {"role": "system", "content": "S"}, {"role": "user", "content": "Q"}
    examples = [("a", "b"), ((system, {"role": "user", "content": "c"}), "d")]
    turns = add_examples((system, user), examples, "turns")
    assert [m["content"] for m in turns] == ["S", "a", "b", "c", "d", "Q"]
    assert [m["role"] for m in turns][1:5] == ["user", "assistant"] * 2
    assert add_examples("Q", examples[:1], "turns")[-1] == user


def test_examples_that_cannot_be_had_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"asks for 99 examples.*has \d+ instructions"):
        load(tmp_path, ROWS, few_shot=99)
    with pytest.raises(DataError, match="no reference"):
        load(tmp_path, [{"prompt": f"p{n}"} for n in range(30)], few_shot=1)
    with pytest.raises(DataError, match="few_shot_style: turns"):
        messages = [{"role": "user", "content": "a"}]
        rows = [{"messages": messages, "reference": "b", "x": n} for n in range(3)]
        load(tmp_path, [*rows, *ROWS], few_shot=1)[0]
    for option in ({"few_shot": -1}, {"few_shot": True}, {"few_shot_style": "turn"}):
        with pytest.raises(ConfigError, match="few_shot"):
            load(tmp_path, ROWS, **option)

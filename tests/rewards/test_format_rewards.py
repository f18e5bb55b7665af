"""json_valid, json_schema and xml_tags: known answers, what attackers try, refused options."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import think_format_reward

from instructrec.errors import ConfigError, DataError
from instructrec.rewards import make_reward
from instructrec.rewards.formats import JsonSchema, XmlTags, json_valid

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "options", "score"),
    [
        ('{"a": [1, 2.5, null, true]}', {}, 1.0),
        (" [1]\n", {}, 1.0),
        ("42", {}, 1.0),
        ("42", {"top": "object"}, 0.0),
        ("[1]", {"top": "array"}, 1.0),
        ("[1]", {"top": "object"}, 0.0),
        ("null", {"top": "object"}, 0.0),
        ("", {}, 0.0),
        ("{'a': 1}", {}, 0.0),
        ("[1,]", {}, 0.0),
        ("NaN", {}, 0.0),
        ("[-Infinity]", {}, 0.0),
        ("[1] ok", {}, 0.0),
        ("Here it is: [1]", {}, 0.0),
        ('"\x01"', {}, 0.0),
        ('"\ud800"', {}, 1.0),
        ("1" * 5000, {}, 1.0),  # longer than Python reads by default
        ("[" * 100_000 + "]" * 100_000, {}, 0.0),
        ("```json\n[1]\n```", {}, 0.0),
        ("```json\n[1]\n```", {"fenced": True}, 1.0),
        ("\n```\n{}\n```\n", {"fenced": True}, 1.0),
        ("[1]", {"fenced": True}, 1.0),
        ("```json\n[1]", {"fenced": True}, 0.0),
        ("ok ```json\n[1]\n```", {"fenced": True}, 0.0),
    ],
)
def test_json_is_told_from_what_looks_like_it(text, options, score):
    assert json_valid([text], **options) == [score]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_whatever_python_writes_as_json_is_json_and_judged_as_jsonschema_does(value):
    try:
        text = json.dumps(value, allow_nan=False)
    except ValueError:  # infinity
        return
    assert json_valid([text]) == [1.0]
    for schema in ({"type": "integer"}, {"type": ["string", "array"]}, {"maxLength": 2}):
        valid = jsonschema.Draft202012Validator(schema).is_valid(value)
        assert JsonSchema(schema)([text]) == [float(valid)]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        ('{"name": "Ada"}', 1.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"name": "Ada", "age": "36"}', 0.0),
        ('{"age": 36}', 0.0),
        ('{"name": "Ada", "x": 1}', 0.0),
        ("Ada", 0.0),
        ("null", 0.0),
    ],
)
def test_a_schema_is_fitted_or_not(text, score):
    for schema in (PERSON, json.dumps(PERSON)):
        assert make_reward("json_schema", schema=schema)(["p"], [text]) == [score]


def test_each_sample_may_have_its_own_schema():
    schemas = [{"type": "integer"}, '{"type": "string"}', None, {"type": "null"}]
    assert JsonSchema()(["1", "1", "1", "null"], schema=schemas) == [1.0, 0.0, None, 1.0]
    reward = make_reward("json_schema", schema_column="form")
    assert reward(["p"], ["1"], form=[{"type": "integer"}]) == [1.0]


def test_a_schema_may_refer_to_itself_but_nothing_is_fetched():
    tree = {"type": "array", "items": {"$ref": "#"}}
    assert JsonSchema(tree)(["[[], [[]]]", "[[1]]"]) == [1.0, 0.0]
    with pytest.raises(DataError, match=r"refers to .*127.0.0.1"):
        JsonSchema({"$ref": "http://127.0.0.1:9/schema.json"})(["1"])


def test_wrong_schemas_are_refused():
    with pytest.raises(ConfigError, match=r"not a JSON Schema: 'objekt'"):
        make_reward("json_schema", schema={"type": "objekt"})
    with pytest.raises(ConfigError, match=r"'\{' is not JSON"):
        make_reward("json_schema", schema="{")
    with pytest.raises(ConfigError, match=r"expected a mapping or JSON text, not int"):
        make_reward("json_schema", schema=3)
    with pytest.raises(ConfigError, match=r"has no schema: set its option schema"):
        make_reward("json_schema")(["p"], ["1"])
    with pytest.raises(DataError, match=r"schema of sample 1: a schema is an object, not list"):
        JsonSchema()(["1", "1"], schema=[{}, "[]"])


GOOD = "<think>two</think>\n<answer>4</answer>"


@pytest.mark.parametrize(
    ("text", "options", "score"),
    [
        (GOOD, {}, 1.0),
        (f"\n{GOOD}\n", {}, 1.0),
        ("<answer>4</answer><think>two</think>", {}, 0.0),
        ("<think>two</think>", {}, 0.0),
        ("<think>two</think><answer>4", {}, 0.0),
        ("<think>two<answer>4</answer></think>", {}, 0.0),
        (f"{GOOD}<answer>5</answer>", {}, 0.0),
        (f"{GOOD}</answer>", {}, 0.0),
        ("<think></think><answer>4</answer>", {}, 0.0),
        ("<think> </think><answer>4</answer>", {"blank": True}, 1.0),
        (f"Sure: {GOOD}", {}, 0.0),
        (f"{GOOD} Right?", {}, 0.0),
        (f"{GOOD} Right?", {"rest": "after"}, 1.0),
        (f"Sure: {GOOD}", {"rest": "after"}, 0.0),
        (f"Sure: {GOOD} Right?", {"rest": "anywhere"}, 1.0),
        ("two</think><answer>4</answer>", {"opened": True}, 1.0),
        (GOOD, {"opened": True}, 0.0),
        ("<think>two</think> 4", {"tags": ["think"], "rest": "after"}, 1.0),
        ("<a>1</a><b>2</b><c>3</c>", {"tags": ["a", "b", "c"]}, 1.0),
        # Right are: think, answer, nothing beside them.
        (GOOD, {"partial": True}, 1.0),
        (f"Sure: {GOOD}", {"partial": True}, 2 / 3),
        ("<think>two</think>4", {"partial": True}, 1 / 3),
        ("4", {"partial": True}, 0.0),
        ("", {"partial": True}, 0.0),
    ],
)
def test_tags_are_in_order_or_not(text, options, score):
    assert XmlTags(**options)([text]) == [pytest.approx(score)]


def test_thinking_first_is_trls_think_format():
    texts = [
        "<think>a</think>b",
        "<think>a</think>",
        "<think></think>b",
        "a<think>b</think>",
        "<think>a",
        "a</think>b",
        "<think>a<think>b</think>c",
        "",
    ]
    ours = XmlTags(["think"], rest="after", blank=True)(texts)
    assert ours == think_format_reward([[{"content": text}] for text in texts])


def test_wrong_tags_are_refused():
    for tags in ("think", [], ["<think>"], ["a b"], [1]):
        with pytest.raises(ConfigError, match=r"expected a list of names such as"):
            make_reward("xml_tags", tags=tags)
    with pytest.raises(ConfigError, match=r"each name may come once"):
        make_reward("xml_tags", tags=["a", "a"])
    with pytest.raises(ConfigError, match=r"rest = 'before'"):
        make_reward("xml_tags", rest="before")

"""Reading calls out of answers: both ways of writing them, and texts that are neither."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec.envs.tool_calls import Call, Written, literal, parse_calls, read_arguments

ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))


def test_an_answer_without_a_tag_has_no_calls():
    assert parse_calls("57") == parse_calls("") == parse_calls("calculator(2)") == []


@pytest.mark.parametrize(
    "text",
    [
        "<tool>add(1, 2)</tool>",
        "Let me see. <tool> add (1, 2)\n</tool> So.",
        "<tool>add(1, 2)",  # a stop string has cut the tag off
    ],
)
def test_a_short_call_is_found_wherever_it_stands(text):
    assert parse_calls(text) == [Call("add", "1, 2")]


@pytest.mark.parametrize(
    "written",
    [
        '{"name": "add", "arguments": {"a": 1, "b": 2}}',
        '{"name": "add", "parameters": {"a": 1, "b": 2}}',
        '[{"name": "add", "arguments": {"a": 1, "b": 2}}]',
        '{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}',
        '{"name": "add", "arguments": "{\\"a\\": 1, \\"b\\": 2}"}',
    ],
)
@pytest.mark.parametrize("tag", ["tool_call", "tool"])
def test_the_json_of_chat_templates_is_read(tag, written):
    expected = [Call("add", {"a": 1, "b": 2})]
    assert parse_calls(f"<{tag}>{written}</{tag}>") == parse_calls(f"<{tag}>{written}") == expected


def test_several_calls_are_read_in_order():
    text = '<tool>a()</tool> <tool_call>[{"name": "b"}, {"name": "c"}]</tool_call><tool>d()'
    assert [call.tool for call in parse_calls(text)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<tool>", "expected <tool>name"),
        ("<tool>add 1 2</tool>", "expected <tool>name"),
        ("<tool>a.b(1)</tool>", "expected <tool>name"),
        ("<tool_call>add(1)</tool_call>", "not JSON"),
        ("<tool_call>[]</tool_call>", "no call"),
        ("<tool_call>7</tool_call>", 'expected {"name"'),
        ('<tool_call>{"name": 7}</tool_call>', 'expected {"name"'),
        ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', "JSON object"),
        ('<tool_call>{"name": "a", "arguments": "x"}</tool_call>', "arguments are not JSON"),
        ('<tool_call>{"name": "a", "arguments": "' + "[" * 1500 + '"}', "too deeply"),
        ("<tool_call>" + "[" * 1500 + "</tool_call>", "nested too deeply"),
        ("<tool>f(" + "x" * 3000 + ")</tool>", "longer than 2000"),
    ],
)
def test_what_cannot_be_read_says_why(text, message):
    (call,) = parse_calls(text)
    assert message in call.error


@pytest.mark.parametrize(
    ("text", "placed", "named"),
    [
        ("", [], {}),
        ("1, 'two', [3]", [1, "two", [3]], {}),
        ("a=1, b='x, y'", [], {"a": 1, "b": "x, y"}),
        ("2024-01-09, 3", ["2024-01-09", 3], {}),  # is no literal, nor even Python
        ("day=2024-01-09, days=-3", [], {"day": "2024-01-09", "days": -3}),
        ("2 * 3, b", ["2 * 3", "b"], {}),
        ("1)(2", ["1)(2"], {}),
        ("x == y", ["x == y"], {}),
    ],
)
def test_arguments_are_literals_or_the_text_itself(text, placed, named):
    given_placed, given_named = read_arguments(text)
    assert [written.value for written in given_placed] == placed
    assert {name: written.value for name, written in given_named.items()} == named


@pytest.mark.parametrize("text", ["a=1, a=2", "a=01, a=02", "*[1]", "**{}"])
def test_arguments_given_twice_or_starred_are_refused(text):
    with pytest.raises(ValueError, match=r"twice|not allowed"):
        read_arguments(text)


def test_escapes_bring_no_lone_surrogates_in():
    (call,) = parse_calls('<tool_call>{"name": "f", "arguments": {"a": ["\\ud800"]}}</tool_call>')
    assert call.arguments == {"a": ["?"]}
    assert literal(r"'a\ud800'") == "a?" and literal(r"{'\udfff': 1}") == {"?": 1}


@given(ANY_TEXT, st.sampled_from(["<tool>f({})</tool>", "<tool_call>{}</tool_call>", "<tool>{}"]))
def test_no_text_raises(text, shape):
    for call in parse_calls(shape.replace("{}", text)):
        assert call.error or isinstance(call.arguments, str | dict)
        if not call.error and isinstance(call.arguments, str):
            try:
                read_arguments(call.arguments)
            except ValueError as error:
                assert str(error)


@given(st.recursive(st.none() | st.booleans() | st.integers() | ANY_TEXT, st.lists))
def test_any_json_is_read_or_refused(value):
    parse_calls(f"<tool_call>{json.dumps(value)}</tool_call>")
    parse_calls(f"<tool_call>{json.dumps({'name': 'f', 'arguments': value})}</tool_call>")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r", ""])
def test_a_source_is_found_behind_other_letters_and_on_other_lines(newline):
    text = f"'é𝄞', {newline}0x1F,{newline} day={newline} 7 + x, b=[1,{newline} 2]"
    placed, named = read_arguments(text)
    assert named["day"] == Written("7 + x", "7 + x")
    assert [written.source for written in placed] == ["'é𝄞'", "0x1F"]
    assert [written.value for written in placed] == ["é𝄞", 31]
    assert named["b"].value == [1, 2]


def test_a_thousand_arguments_cost_little():
    text = ",".join("1" * 990)
    began = time.process_time()
    placed, _ = read_arguments(text)
    assert len(placed) == 990
    assert time.process_time() - began < 0.15  # 0.02; 0.3 if each looked through the whole text

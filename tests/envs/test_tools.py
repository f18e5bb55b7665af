"""Tools: types of arguments, deadlines, results, and those that come with the package."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec.envs.builtin_tools import lookup, make_tools
from instructrec.envs.calculator import calculator
from instructrec.envs.tools import Tool
from instructrec.errors import ConfigError, DataError


def book(guest: str, nights: int, room: Literal["single", "double"] = "single", extra: float = 0.5):
    """Books a room.

    Args:
        guest: Who comes.
        nights: How long.
        room: What kind.
        extra: What else it costs.
    """
    return [guest, nights, room, extra]


def run(tool, arguments="", deadline_s=5.0, max_chars=100):
    return tool.call(tool.bind(arguments), deadline_s, max_chars)


def failing(tool, arguments="", **limits):
    with pytest.raises(ValueError) as caught:
        run(tool, arguments, **limits)
    return str(caught.value)


def test_a_tool_shows_its_signature_its_purpose_and_its_schema():
    tool = Tool(book)
    shown = "guest: str, nights: int, room: Literal['single', 'double'] = 'single'"
    assert tool.signature == f"book({shown}, extra: float = 0.5)"
    assert tool.description == "Books a room."
    schema = tool.schema["function"]
    assert schema["name"] == "book" and schema["parameters"]["required"] == ["guest", "nights"]
    assert schema["parameters"]["properties"]["nights"]["type"] == "integer"


def test_making_tools_imports_no_transformers():
    code = (
        "import sys; from instructrec.envs import ToolEnv; ToolEnv(tools=['calculator', 'weekday'])"
        "; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        "'Ann', 2, 'double'",
        "Ann, 2, double",
        "Ann, nights=2.0, room='double'",
        {"guest": "Ann", "nights": "2", "room": "double", "extra": "0.5"},
    ],
)
def test_arguments_become_what_the_parameters_say(arguments):
    assert json.loads(run(Tool(book), arguments)) in (
        ["Ann", 2, "double", 0.5],
        ["Ann", 2, "double", 0.5],
    )


def test_elements_of_lists_and_dicts_become_what_the_parameter_says():
    def f(a: list[int], b: dict[str, float], c: list[list[int] | None], d: list[Any]):
        """Does nothing."""

    tool = Tool(f)
    bound = tool.bind({"a": ["1", 2.0], "b": {"x": "3"}, "c": [[4], None], "d": ["5", 6]})
    assert bound == {"a": [1, 2], "b": {"x": 3.0}, "c": [[4], None], "d": ["5", 6]}
    assert [type(value) for value in bound["a"]] == [int, int]
    assert tool.bind("['1', 2], {'x': 3}, [], []")["a"] == [1, 2]
    assert failing(tool, "[1, 'two'], {}, [], []") == "a[1] = two: expected int"
    assert failing(tool, "[], {'x': 'y'}, [], []") == "b['x'] = y: expected float"
    with pytest.raises(ConfigError, match="lists and dicts of them"):
        Tool(takes_paths)


def test_text_is_kept_as_it_was_written():
    assert Tool(book).bind("007, 1")["guest"] == "007"
    assert Tool(book).bind("1.50, 1")["guest"] == "1.50"
    assert Tool(calculator).bind("1, 2")["expression"] == "1, 2"
    assert Tool(calculator).bind("'1 + 2'") == Tool(calculator).bind("expression='1 + 2'")


def test_none_is_no_text_where_there_may_be_none():
    def f(a: str | None, b: str | int, c: list[str | None]):
        """Does nothing."""

    tool = Tool(f)
    assert tool.bind("None, 3, [None, 'x']") == {"a": None, "b": 3, "c": [None, "x"]}
    assert tool.bind("nothing, 'three', []") == {"a": "nothing", "b": "three", "c": []}


def test_optional_lists_and_truth_values_are_read():
    def f(a: int | None, b: list[int], c: bool, d: Optional[dict] = None):  # noqa: UP045
        """Gives back."""
        return [a, b, c, d]

    tool = Tool(f)
    assert json.loads(run(tool, "None, [1], true")) == [None, [1], True, None]
    assert json.loads(run(tool, {"a": 3, "b": [], "c": False, "d": {"x": 1}})) == [
        *(3, [], False),
        {"x": 1},
    ]
    assert failing(tool, "x, [1], True") == "a = x: expected int | None"
    assert failing(tool, "1, 2, True") == "b = 2: expected list[int]"
    assert failing(tool, "1, [2], 3") == "c = 3: expected bool"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "'guest' is missing, expected book(guest: str"),
        ("Ann, 1, single, 2, 3", "too many arguments"),
        ("Ann, 1, guest=Bob", "given twice"),
        ({"gest": "Ann"}, "unknown argument 'gest'. Did you mean 'guest'?"),
        ("Ann, 1.5", "nights = 1.5: expected int"),
        ("Ann, many", "nights = many: expected int"),
        ({"guest": "Ann", "nights": True}, "nights = True: expected int"),
        ("Ann, 1, suite", "room = suite: expected Literal['single', 'double']"),
        ({"guest": "Ann", "nights": 1, "extra": float("nan")}, "extra = nan: expected float"),
        ({"guest": ["Ann"], "nights": 1}, "guest = ['Ann']: expected str"),
    ],
)
def test_arguments_that_do_not_fit_are_explained(arguments, message):
    assert message in failing(Tool(book), arguments)


def test_what_a_tool_raises_is_told():
    def f(kind: str):
        """Raises."""
        if kind == "exit":
            raise SystemExit(3)
        if kind == "deep":
            return f(kind)
        raise {"key": KeyError("k"), "value": ValueError("no such thing")}[kind]

    tool = Tool(f)
    assert failing(tool, "value") == "no such thing"
    assert failing(tool, "key") == "KeyError: 'k'"
    assert failing(tool, "exit") == "SystemExit: 3"
    assert failing(tool, "deep").startswith("RecursionError")


def test_results_are_cut_and_made_fit_for_text():
    def f(kind: str) -> Any:
        """Gives all kinds of things back."""
        return {"long": "x" * 500, "odd": "a\ud800b", "none": None, "dict": {"ä": 1}}[kind]

    tool = Tool(f)
    assert run(tool, "long") == "x" * 100 + " [cut]"
    assert [run(tool, kind) for kind in ("odd", "none", "dict")] == ["a?b", "None", '{"ä": 1}']


def test_a_call_that_hangs_is_given_up_and_the_tool_after_some_of_them():
    release = threading.Event()

    def waits(how: str):
        """Waits."""
        return how if how == "no" else release.wait(20)

    tool = Tool(waits)
    for _ in range(4):
        assert failing(tool, "yes", deadline_s=0.01) == "waits took longer than 0.01 seconds"
    assert failing(tool, "no") == "waits does not answer any more"
    threads = list(tool._hung)
    release.set()
    for thread in threads:
        thread.join()
    assert run(tool, "no") == "no"


def no_docstring(a: str):
    return a


def untyped(a):
    """Has no type."""


def odd_type(a: set[str]):
    """Takes what no call can hold."""


def starred(*a: str):
    """Takes anything."""


async def later(a: str):
    """Answers later."""


@pytest.mark.parametrize("function", [no_docstring, untyped, odd_type, starred, later, 7])
def test_functions_that_cannot_be_tools_are_refused(function):
    with pytest.raises(ConfigError, match="tool"):
        Tool(function)


def test_a_docstring_without_arguments_gives_no_schema():
    def f(a: str):
        """Does it."""

    with pytest.raises(ConfigError, match="Describe every parameter"):
        Tool(f).schema  # noqa: B018


def test_tools_are_found_by_name_by_file_and_with_options(tmp_path):
    assert list(make_tools("calendar")) == ["weekday", "days_between", "add_days"]
    path = tmp_path / "mine.py"
    path.write_text('def shout(text: str) -> str:\n    """Shouts."""\n    return text.upper()\n')
    facts = {"use": "lookup", "options": {"entries": {"Paris": "a city"}, "name": "facts"}}
    tools = make_tools([f"{path}:shout", facts, book, Tool(calculator)])
    assert list(tools) == ["shout", "facts", "book", "calculator"]
    assert run(tools["shout"], "hi") == "HI" and run(tools["facts"], " paris ") == "a city"


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("calculater", "Did you mean 'calculator'"),
        ([], "tools is empty"),
        (["calendar", "weekday"], "two are called 'weekday'"),
        ([{"use": "lookup", "opts": {}}], "expected the keys 'use' and 'options'"),
        ([{"use": "lookup", "options": {"entrys": {}}}], "entrys"),
        ([{"use": "calculator", "options": {"a": 1}}], "unknown tool with options"),
        ([{"use": None}], "neither a name nor a function"),
        ("lookup", "expected one of entries and file"),
    ],
)
def test_wrong_tools_are_refused(tools, message):
    with pytest.raises(ConfigError, match=message):
        make_tools(tools)


def test_a_dictionary_comes_from_a_file(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text('{"Straße": "street", "two": 2}')
    tool = Tool(lookup(file=str(path)))
    assert run(tool, "STRASSE") == "street" and run(tool, "two") == "2"
    assert failing(tool, "tow") == "there is no entry 'tow'. Did you mean 'two'?"
    for text in ("[1]", "{", None):
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(DataError, match=r"facts\.json"):
            lookup(file=str(path))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("weekday", "2024-02-29", "Thursday"),
        ("days_between", "2024-02-28, 2024-03-01", "2"),
        ("days_between", "2024-03-01, 2024-02-28", "-2"),
        ("add_days", "2024-12-31, 1", "2025-01-01"),
        ("add_days", "2024-01-01, days=-1", "2023-12-31"),
    ],
)
def test_the_calendar_counts_days(name, arguments, expected):
    tools = make_tools("calendar")
    assert run(tools[name], arguments) == expected
    assert "is no date" in failing(tools["weekday"], "2023-02-29")
    assert "out of range" in failing(tools["add_days"], "9999-12-31, 1")
    assert "out of range" in failing(tools["add_days"], "2024-01-01, " + "9" * 50)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("23 + 34", "57"),
        ("2 * (3 - 5)", "-4"),
        ("7 / 2", "3.5"),
        ("6 / 3", "2"),
        ("7 // 2 + 7 % 2", "4"),
        ("-2 ** 2", "-4"),
        ("2 ^ 10", "1024"),
        ("12 × 3 ÷ 4 \u2212 1", "8"),
        ("0.1 + 0.2", "0.3"),
        ("sqrt(2)", "1.41421356237"),
        ("max(1, abs(-3), min(2, 9)) + round(2.567, 1)", "5.6"),
        ("10 ** -2", "0.01"),
        ("2 ** 500", str(2**500)),
        ("1 ** 99999", "1"),
        (" 1_000 + 0x10 ", "1016"),
    ],
)
def test_the_calculator_computes(expression, value):
    assert calculator(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("9 ** 9 ** 9", "too large"),
        ("2 ** 600", "too large"),
        ("(2 ** 400) * (2 ** 400)", "too large"),
        ("9" * 190, "too large"),
        ("10.0 ** 400", "too large"),
        ("1e308 * 10", "not finite"),
        ("1 / 0", "division by zero"),
        ("5 % 0", "division by zero"),
        ("0 ** -1", "division by zero"),
        ("(-8) ** 0.5", "no real number"),
        ("sqrt(-1)", "math domain error|nonnegative"),
        ("1j * 1j", "no real number"),
        ("True + 1", "no real number"),
        ("'a' * 3", "no real number"),
        ("[1] * 3", "no arithmetic"),
        ("x + 1", "no arithmetic"),
        ("__import__('os')", "no real number|no function"),
        ("exec(1)", "there is no function 'exec'"),
        ("abs.__class__", "no arithmetic"),
        ("(lambda: 1)()", "no arithmetic"),
        ("round(1, 10 ** 9)", "at most 20 digits"),
        ("round(1.5, 0.5)", "no arguments for round"),
        ("max()", "no arguments for max"),
        ("min(1)", "no arguments for min"),
        ("1 < 2", "no arithmetic"),
        ("", "no arithmetic"),
        ("1 +", "no arithmetic"),
        ("\x00", "no arithmetic|null"),
        ("(" * 190 + "1", "no arithmetic"),
        ("-" * 198 + "1", "^$"),
        ("1+" * 150 + "1", "longer than 200"),
    ],
)
def test_the_calculator_refuses_what_is_too_large_or_no_arithmetic(expression, message):
    if message == "^$":  # deep, but within what it computes
        assert calculator(expression) == "1"
        return
    with pytest.raises(ValueError, match=message):
        calculator(expression)


@given(st.text(st.sampled_from("0123456789.+-*/%() ,^eabsmaxroundqt_'\x00\ud800é"), max_size=60))
def test_the_calculator_raises_nothing_else(text):
    try:
        assert float(calculator(text)) == float(calculator(text))
    except ValueError as error:
        assert str(error)


def takes_paths(paths: list[Path]):
    """Takes what no call can hold."""

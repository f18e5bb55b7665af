"""multiple_choice and numeric: which answer a longer response settles on."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructrec.errors import ConfigError, DataError
from instructrec.rewards import make_reward
from instructrec.rewards.choices import multiple_choice, numeric
from instructrec.rewards.numerals import last_number, whole_number


@pytest.mark.parametrize(
    "text",
    [
        "B",
        "b",
        "(B)",
        "(b)",
        "B.",
        "**B**",
        "B) Paris",
        "B: Paris",
        "**B)** Paris",
        "B\n\nBecause it is.",
        "The answer is B",
        "The answer is (b).",
        "answer: b",
        "Answer:\nB",
        "Answer: **B**",
        "The answer is 'B'.",
        "the correct option is B because A is wrong",
        "A) is wrong. The answer is B",
        "Answer: A. No, wait. Answer: B",
        "$\\boxed{B}$",
        "\\boxed{\\text{B}}",
        "The answer is: $\\mathbf{B}$",
        "I think it is B",
        "Between A and B, I choose B",
        "The answer is B, A is wrong",
        "Answer: B. A is wrong.",
        "B. Paris\nA) is not",
    ],
)
def test_the_letter_is_read_from_the_usual_forms(text):
    assert multiple_choice([text], ["B"]) == [1.0]
    assert multiple_choice([text], ["A"]) == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        "A or B",
        "A, B",
        "(A) or (B)",
        "(A) (B)",
        "A B C D",
        "A) B) C) D)",
        "A. B. C. D.",
        "The answer is A or B",
        "Answer: A/B",
        "It is not B",
        "It isn't B",
        "A cat sat down",
        "Dad and Bob",
        "the answer is clear",
        "",
        "Paris",
    ],
)
def test_a_response_that_settles_on_nothing_is_never_right(text):
    assert multiple_choice([text] * 4, list("ABCD")) == [0.0] * 4


def test_the_text_of_an_option_chooses_it():
    cities = [["Lima", "Paris.", "Rome"]] * 4
    texts = ["paris", " Rome.", "Oslo", "(A)"]
    assert multiple_choice(texts, ["B", "Rome", "A", "lima"], cities) == [1.0, 1.0, 0.0, 1.0]
    reward = make_reward("multiple_choice", choices_column="options")
    assert reward(["p"], ["Paris"], reference=["(b)"], options=[["Lima", "Paris"]]) == [1.0]


def test_more_letters_can_be_declared():
    assert multiple_choice(["The answer is G"], ["G"], letters="ABCDEFG") == [1.0]
    with pytest.raises(DataError, match=r"sample 1 is 'G'; expected one of the letters ABCD"):
        multiple_choice(["x", "x"], ["A", "G"])
    for letters in ("abc", "AAB", "A", "AB1", ""):
        with pytest.raises(ConfigError, match=r"expected different capital letters"):
            multiple_choice(["A"], ["A"], letters=letters)


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("42", "42", ""),
        ("-3.5", "-7/2", ""),
        ("\u22123", "-3", ""),
        ("x=-3", "-3", ""),
        ("from 3-5", "5", ""),
        ("GPT4", None, ""),
        ("1,234.5", "2469/2", ""),
        ("1,23", "23", ""),
        ("12,3456", "3456", ""),
        ("1\u2019000\u202f000", "1000000", ""),
        ("3/4", "3/4", ""),
        ("1 1/2 cups", "3/2", "cups"),
        ("-\\frac{3}{4}", "-3/4", ""),
        ("10/20/2024", "10", ""),
        ("1/0", None, ""),
        ("-$5.00", "-5", ""),
        ("50\\%", "50", "%"),
        ("5 km/h", "5", "km/h"),
        ("1e3", "1000", ""),
        (".5", "1/2", ""),
        ("٣", "3", ""),
        ("9" * 301, None, ""),
        ("", None, ""),
    ],
)
def test_the_last_number_is_read_exactly(text, value, unit):
    number = last_number(text)
    if value is None:
        assert number is None
    else:
        assert number is not None
        assert (number.value, number.unit) == (Fraction(value), unit)


@given(st.fractions(max_denominator=10**6) | st.decimals(-(10**9), 10**9, allow_nan=False))
def test_every_number_that_python_writes_is_read(number):
    assert last_number(f"It is {number}.").value == Fraction(number)
    assert whole_number(f" {number}\n").value == Fraction(number)


@given(st.integers(-(10**12), 10**12))
def test_both_ways_to_group_thousands_are_read(number):
    assert last_number(f"{number:,}").value == number
    assert last_number(f"{number:,}".replace(",", "."), ",").value == number


@pytest.mark.parametrize(
    ("completion", "reference", "options", "score"),
    [
        ("It is 5, no, 6.", "6", {}, 1.0),
        ("It is 5, no, 6.", "5", {}, 0.0),
        ("It is 5, no, 6.", "5", {"take": "first"}, 1.0),
        ("It is 5", "5", {"take": "whole"}, 0.0),
        ("5 apples.", "5", {"take": "whole"}, 1.0),
        ("3.14", "3.14159", {}, 0.0),
        ("3.14", "3.14159", {"abs_tolerance": 0.01}, 1.0),
        ("99", "100", {"rel_tolerance": 0.01}, 1.0),
        ("98.9", "100", {"rel_tolerance": 0.01}, 0.0),
        ("0.1", "0.3", {"abs_tolerance": 0.1}, 0.0),
        ("50%", "50", {}, 1.0),
        ("50%", "0.5", {}, 0.0),
        ("50%", "0.5", {"percent": "hundredth"}, 1.0),
        ("5 km", "5 miles", {}, 1.0),
        ("5 km", "5 miles", {"units": "same"}, 0.0),
        ("5 KM", "5 km", {"units": "same"}, 1.0),
        ("5", "5 km", {"units": "same"}, 0.0),
        ("5 km", "5", {"units": "same"}, 1.0),
        ("1.000,5", "1000,5", {"decimal": ","}, 1.0),
        ("none", "5", {}, 0.0),
        ("5", "none", {}, None),
        ("5", ["none", "5"], {}, 1.0),
    ],
)
def test_numeric_gives_the_known_answer(completion, reference, options, score):
    assert numeric([completion], [reference], **options) == [score]


def test_wrong_options_of_choice_rewards_are_refused():
    with pytest.raises(ConfigError, match=r"abs_tolerance = -1; expected at least 0"):
        numeric(["1"], ["1"], abs_tolerance=-1)
    with pytest.raises(ConfigError, match=r"rel_tolerance = nan; expected at least 0"):
        numeric(["1"], ["1"], rel_tolerance=float("nan"))
    with pytest.raises(ConfigError, match=r"take = 'lst'.*Did you mean 'last'"):
        make_reward("numeric", take="lst")
